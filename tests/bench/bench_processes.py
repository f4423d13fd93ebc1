"""What two processes cost on this machine: the same global batch in one process with one thread, and in two with one.

Two cores would halve the time; what is lost is the talk about gradients and the waiting for the slower one. Seconds
are those of the training itself (done.json), so starting Python is not in them; the last line says what that costs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 30
WORDS = (
    *("method=supervised", "dataset=digits", "recipe=digits", "export=none", "evaluation=quick", "model=vit_small"),
    *("model.name=vit_tiny_patch16_224", "model.args.patch_size=4", "model.args.embed_dim=192", "model.args.depth=2"),
    *(f"debug.max_steps={STEPS}", "recipe.batch_size=64", "recipe.validate_every=1000ep", "hardware.threads=1"),
)
HARDWARE = {
    "1 process": ("hardware=cpu",),
    "2 processes": ("hardware=ddp_cpu",),
    "2, weights shared out": ("hardware=ddp_cpu", "trainer.strategy=fsdp"),
}


def train(output: Path, words: tuple[str, ...]) -> tuple[float, float]:
    """Seconds of training, seconds of the whole command."""
    begun = time.monotonic()
    line = [sys.executable, "-m", "vitlab", *WORDS, *words, f"output={output}"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    (done,) = output.glob("*/*/train/done.json")
    return float(json.loads(done.read_text())["seconds"]), time.monotonic() - begun


def main(rounds: int = 3) -> None:
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in HARDWARE}
    for number in range(rounds):  # in turn: a machine whose speed drifts slows all
        for name, words in HARDWARE.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds[name].append(train(Path(folder), (*words, f"seed={number}")))
    one = statistics.median(training for training, _ in seconds["1 process"])
    for name, found in seconds.items():
        training = statistics.median(training for training, _ in found)
        rest = statistics.median(whole - training for training, whole in found)
        step = f"{1000 * training / STEPS:7.1f} ms a step"
        print(f"{name:<22} {step}, {training / one:5.2f} × one process; {rest:5.1f} s beside it")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
