"""What a sweep adds to its jobs: so many jobs of a grid, one after the other, against the same commands typed.

Measured three times on two shared cores: 1.09, 1.20 and 0.86 of the time typed, so less than the machine's own
unrest; the sweep again, with nothing to do, takes 1.6 s.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

WORDS = (
    *("method=supervised", "dataset=digits", "debug=smoke", "export=none", "evaluation=quick", "hardware=cpu"),
    *("recipe.batch_size=16", "hardware.threads=1"),
)
JOBS = 3


def command(*words: str) -> float:
    begun = time.monotonic()
    line = [sys.executable, "-m", "vitlab", *words]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    return time.monotonic() - begun


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command(*WORDS, "seed=99", f"output={folder}/warm")
        typed = sum(command(*WORDS, f"seed={seed}", f"output={folder}/typed") for seed in range(JOBS))
        seeds = ",".join(map(str, range(JOBS)))
        swept = command("-m", *WORDS, f"seed={seeds}", f"output={folder}/swept")
        again = command("-m", *WORDS, f"seed={seeds}", f"output={folder}/swept")
    print(f"{JOBS} jobs typed one by one {typed:6.1f} s, swept {swept:6.1f} s: {swept / typed:.2f} ×")
    more = (swept - typed) / JOBS
    print(f"a job of the sweep costs {more:+.2f} s more; the sweep again, with nothing to do, {again:.1f} s")


if __name__ == "__main__":
    main()
