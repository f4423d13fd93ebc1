"""Pictures that the audit looks at each second, beside decoding them in full: ``python tests/bench/bench_audit.py``.

The target is 300 pictures a second and core for JPEGs of 100 KB (500 x 375, as in ImageNet).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitlab.data.audit_files import inspect_files


def make(folder: Path, count: int) -> list[str]:
    """JPEGs of about 100 KB with large forms and noise; their names."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.asarray(coarse, np.int16) + random.integers(-24, 24, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=93)
    return [f"{number}.jpg" for number in range(count)]


def rates(count: int, rounds: int = 3) -> dict[str, float]:
    """Pictures a second of CPU time: the best of ``rounds``, so that other work on the machine counts little."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = make(folder, count)
        size = sum((folder / one).stat().st_size for one in names) / count
        best = {"audit, one thread": 0.0, "audit, known files": 0.0, "decoded in full": 0.0}
        for _ in range(rounds):
            start = time.process_time()
            inspect_files(folder, names, workers=1)
            best["audit, one thread"] = max(best["audit, one thread"], count / (time.process_time() - start))
            cache = folder / "cache.sqlite"
            inspect_files(folder, names, cache, workers=1)
            start = time.process_time()
            inspect_files(folder, names, cache, workers=1)
            best["audit, known files"] = max(best["audit, known files"], count / (time.process_time() - start))
            start = time.process_time()
            for one in names:
                with Image.open(folder / one) as image:
                    image.convert("RGB")
            best["decoded in full"] = max(best["decoded in full"], count / (time.process_time() - start))
    return {"KB a picture": size / 1000, **best}


def main(count: int = 300) -> None:
    for name, value in rates(count).items():
        unit = "" if name.startswith("KB") else " pictures/s of CPU"
        print(f"{name:<20} {value:>9,.0f}{unit}")


@pytest.mark.bench
def test_rates(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        main(60)


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    main()
