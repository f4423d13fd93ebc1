"""What stored views are worth where labels are few: labels alone, the teacher at every step, NS = 1 to 400 samples.

Real digits, ten labelled images of each class, three seeds, equally many steps. Two teachers: one learns from the same
hundred images, one is fixed and knows all 1,347. "stored" students see views of the same crops as the other students;
the last row's stored views have RandAugment and erasing besides (the default of method=reinforce). Corrupted: mean
top-1 over some of ImageNet-C's corruptions, made on the fly. Run as a script; it prints a table for each teacher and
what follows from it, and writes both to a Markdown file when one is named: ``bench_reinforce_digits.py [EPOCHS]
[FILE]``. What was run before is not run again: the runs lie in ``outputs/reinforce_digits``.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from vitlab.cli.main import main as vitlab
from vitlab.compose.load import load as compose
from vitlab.data.build import open_splits
from vitlab.distill.views import EvalView
from vitlab.files import read_json
from vitlab.measure.corruptions import corrupt
from vitlab.models.artifact import load_model, read_meta
from vitlab.sweep.statistics import SIGNIFICANT, holm, paired

SEEDS = (0, 1, 2)
SAMPLES = (1, 10, 50, 400)
AUGMENTED = 50
CORRUPTED = tuple(
    (name, severity)
    for name in ("gaussian_noise", "defocus_blur", "fog", "contrast", "elastic_transform", "pixelate")
    for severity in (2, 4)
)
COMMON = (
    "experiment=reinforce_digits", "hardware=cpu", "hardware.threads=1", "evaluation.latency=false",
    "evaluation.resamples=0", "export=none",
)  # fmt: skip
ROWS = (
    "labels alone",
    "teacher run at every step",
    *(f"stored, NS={samples}" for samples in SAMPLES),
    f"stored, NS={AUGMENTED}, with RandAugment and erasing",
    "the teacher itself",
)
STORED = ROWS[2:-2]
LAST, FIFTY = STORED[-1], STORED[-2]
COLUMNS = {"top1": "Top-1 %", "ece": "ECE %", "corrupted": "Top-1 % corrupted", "corrupted_ece": "ECE % corrupted"}

Metrics = dict[str, float]


def measure(
    output: Path, seeds: Sequence[int], words: Sequence[str], taught: Sequence[str] = (), fixed: Path | None = None
) -> dict[str, list[Metrics]]:
    """Run what is not there yet; for each row its metrics, one a seed.

    Args:
        taught: words for the teacher's training, for each seed anew; or
        fixed: a trained one.

    Raises:
        RuntimeError: a command failed.
    """
    found: dict[str, list[Metrics]] = {name: [] for name in ROWS}
    for seed in seeds:
        most = f"method.samples={SAMPLES[-1]}"
        taught = taught if fixed is None else by(fixed)
        first = story(output, f"stored-{seed}", seed, *words, *taught, "method.views.variant=rrc", most)
        models = {
            ROWS[0]: first / "erm",
            ROWS[1]: first / "kd",
            LAST: first / "train",
            ROWS[-1]: fixed or first / "teacher",
        }
        for row, samples in zip(STORED[:-1], SAMPLES, strict=False):
            store = output / f"store-{seed}-{samples}"
            source = f"method.store={first}/reinforce/targets"
            parts = (source, f"method.samples={samples}", f"method.convert_to={store}")
            call("mode=subset", "method=reinforce", "dataset=digits", *parts)
            models[row] = story(output, f"ns{samples}-{seed}", seed, *words, *ALONE, f"method.store={store}") / "train"
        teacher = by(models[ROWS[-1]])
        strong = story(output, f"randaug-{seed}", seed, *words, *ALONE, *teacher, f"method.samples={AUGMENTED}")
        models[ROWS[-2]] = strong / "train"
        images = corruptions(first, seed)
        for row, folder in models.items():
            record = read_json(folder.parent / "evaluation" / "done.json")["metrics"][folder.name]
            found[row].append({"top1": record["top1"], "ece": record["ece"], **robustness(folder, *images)})
    return found


ALONE = ("method.erm=false", "method.kd=false")
LEARNS_ALL = (
    "dataset.labels_per_class=null", "teacher.recipe.duration=12ep", "teacher.recipe.warmup=15%",
    "recipe.duration=1ep", "recipe.warmup=0st", "method.samples=1", "method.views.variant=center",
)  # fmt: skip


def by(teacher: Path) -> tuple[str, ...]:
    """Words that name a trained teacher."""
    return "teacher.train=false", f"teacher.members.0.checkpoint={teacher}"


def call(*words: str) -> None:
    if vitlab(list(words)) != 0:
        raise RuntimeError(f"failed: {' '.join(words)}")


def story(output: Path, name: str, seed: int, *words: str) -> Path:
    """One run; its folder."""
    call(*COMMON, *words, f"seed={seed}", f"name={name}", f"output={output}")
    (run,) = output.glob(f"reinforce/{name}-*/finished.json")
    return run.parent


def corruptions(run: Path, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """The corrupted test images [M, 3, S, S], normalised as the students want them, and their labels [M]."""
    meta = read_meta(run / "train")
    view = EvalView(meta.size, meta.crop_pct, meta.mean, meta.std, meta.interpolation)
    config = compose([*COMMON, f"seed={seed}"]).config
    source = open_splits(config.dataset, seed, config.debug.max_images)["test"]
    pictures = [source[i] for i in range(len(source))]
    views = [
        view(corrupt(picture, name, severity, seed=index))
        for name, severity in CORRUPTED
        for index, (picture, _) in enumerate(pictures)
    ]
    return torch.stack(views), np.array([label for _, label in pictures] * len(CORRUPTED))


def robustness(model: Path, images: torch.Tensor, labels: np.ndarray) -> Metrics:
    """Mean accuracy over the corruptions, and the calibration error over all their images."""
    from vitlab.measure.classification import evaluate_logits

    network = load_model(model).eval()
    with torch.inference_mode():
        logits = torch.cat([network(part) for part in images.split(256)]).numpy()
    scores = evaluate_logits(logits, labels, read_meta(model).classes)
    return {"corrupted": scores.top1, "corrupted_ece": scores.ece}


def table(found: dict[str, list[Metrics]]) -> str:
    """Markdown: mean and, behind ±, the sample standard deviation over the seeds."""
    lines = ["| Student | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
    for name, rows in found.items():
        cells = []
        for key in COLUMNS:
            mean, spread = moments(rows, key)
            cells.append(f"{mean:.2f} ± {spread:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def moments(rows: Sequence[Metrics], key: str) -> tuple[float, float]:
    values = [100 * row[key] for row in rows]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def conclusions(found: dict[str, list[Metrics]]) -> str:
    """What the table shows, as a list. A difference counts where Student's paired t-test over the seeds, corrected for
    all comparisons of the table, gives p < 0.05; else the rows are not told apart."""
    pairs = [
        (ROWS[1], ROWS[0]),
        (FIFTY, ROWS[0]),
        (FIFTY, ROWS[1]),
        (LAST, ROWS[0]),
        (LAST, ROWS[1]),
        (LAST, FIFTY),
        (ROWS[-2], FIFTY),
        (ROWS[-2], ROWS[0]),
    ]
    tests = [
        (one, other, key, paired(*([100 * row[key] for row in found[name]] for name in (one, other))))
        for one, other in pairs
        for key in COLUMNS
    ]
    words: dict[tuple[str, str], list[str]] = {}
    for (one, other, key, gap), p in zip(tests, holm([test[3].p_value for test in tests]), strict=True):
        verdict = "not told apart" if p >= SIGNIFICANT else ("higher" if gap.mean > 0 else "lower")
        words.setdefault((one, other), []).append(f"{COLUMNS[key]} {gap.mean:+.2f} ({verdict})")
    return "".join(f"- {one} against {other}: {'; '.join(parts)}.\n" for (one, other), parts in words.items())


@pytest.mark.slow
def test_every_row_is_there(tmp_path: Path) -> None:
    short = ("debug.max_images=48", "debug.max_steps=2", "debug.max_slots=51", "recipe.batch_size=16")
    found = measure(tmp_path, (0,), (*short, "dataset.labels_per_class=null"), ("teacher.recipe.batch_size=16",))
    assert list(found) == list(ROWS) and all(len(rows) == 1 for rows in found.values())
    assert table(found).count("\n") == 2 + len(ROWS) and "no clear difference" in conclusions(found)


def main() -> None:
    """Run and print."""
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    words = [f"recipe.duration={epochs}ep", "recipe.batch_size=50", "recipe.validate_every=1000ep"]
    output = Path("outputs/reinforce_digits")
    full = story(output / "all", "teacher", 0, *words[1:], *ALONE, *LEARNS_ALL) / "teacher"
    text = ""
    for title, fixed in {"all 1,347 digits": full, "the same hundred digits": None}.items():
        place = "fixed" if fixed else "own"
        found = measure(output / place, SEEDS, words, [f"teacher.{word}" for word in words], fixed)
        section = f"A teacher of {title}:\n\n{table(found)}\n{conclusions(found)}\n"
        print(section, flush=True)
        text += section
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(text)


if __name__ == "__main__":
    main()
