"""What two processes cost on this machine: the same global batch in one process with one thread and with two, and in
two processes with one thread each.

Two cores could halve the time of one. The floor is a step on half the batch, with nothing else at work, and the bare
exchange of the gradients' bytes; what two processes need beyond it is ours, torch's, and what two processes at work
take from each other (memory's speed). Seconds lie between the records of a run, so that starting Python, validating and
writing checkpoints are not in them; the lower quartile is reported, since other programs only add time. Every way is a
process of its own, forked here: threads outlive no fork.

Measured on two shared cores, milliseconds a step: one process with one thread 331, with two 195; two processes 180,
with weights shared out (fsdp) 275; the floor 175, of which 3.8 are the exchange of 3.7 MB. Two processes need 1.03
times the floor.
"""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from tests.contract.story import run_command, the_run
from tests.contract.together import run_ranks
from vitlab.files import read_json, write_json
from vitlab.run.recorder import read_rows

STEPS, BATCH = 14, 64
WORDS = (
    *("method=supervised", "debug.max_images=128", f"debug.max_steps={STEPS}", "export=none", "evaluation=quick"),
    *("evaluation.batch_size=64", "recipe.validate_every=1000ep", "logger.every=1", "model=vit_small"),
    *("model.name=vit_tiny_patch16_224", "model.args.patch_size=4", "model.args.embed_dim=192", "model.args.depth=2"),
)
ONE = "one process, one thread"
HALF = "one process, half the batch"
TWO = "two processes"
WAYS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    ONE: (1, BATCH, ()),
    "one process, two threads": (1, BATCH, ("hardware.threads=2",)),
    HALF: (1, BATCH // 2, ()),
    TWO: (2, BATCH, ()),
    "two, weights shared out": (2, BATCH, ("trainer.strategy=fsdp",)),
}
"""Processes, batch, further words."""


def steps(output: Path, processes: int, *words: str) -> tuple[list[float], int]:
    """Seconds a step between the records of one run, and the bytes of its gradients."""

    def run() -> None:
        if processes == 2:
            assert run_ranks(output, *WORDS, *words) == [0, 0]
        else:
            assert run_command(output, *WORDS, *words) == 0

    in_a_fork(run)
    found = the_run(output)
    times = [float(str(row["time"])) for row in read_rows(found / "metrics.jsonl") if "loss" in row]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return gaps, 4 * int(read_json(found / "train" / "done.json")["params"])


def exchange(bytes_: int, folder: Path, rounds: int = 30) -> float:
    """Seconds in which two processes add up so many bytes of gradients by gloo, in buckets as DDP's."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"

    def talk(rank: int) -> None:
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
        parts = torch.zeros(bytes_ // 4).split(25 * 2**20 // 4)
        seconds = []
        for _ in range(rounds):
            dist.barrier()
            begun = time.perf_counter()
            for part in parts:
                dist.all_reduce(part)
            seconds.append(time.perf_counter() - begun)
        if rank == 0:
            write_json(folder / "exchange.json", statistics.median(seconds))

    in_a_fork(lambda: talk(0), lambda: talk(1))
    return float(read_json(folder / "exchange.json"))


def in_a_fork(*work: Callable[[], None]) -> None:
    """Each piece of work in a process of its own, all at once; what they say is shown where one does not end well."""
    children = []
    with tempfile.TemporaryFile("w+") as log:
        for piece in work:
            if (child := os.fork()) == 0:
                code = 1
                try:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                    piece()
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    os._exit(code)
            children.append(child)
        codes = [os.waitpid(child, 0)[1] for child in children]
        if any(codes):
            log.seek(0)
            raise RuntimeError(log.read())


def main(rounds: int = 1) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    bytes_ = 0
    for number in range(rounds):  # in turn: a machine whose speed drifts slows all
        for name, (processes, batch, words) in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                given = (*words, f"recipe.batch_size={batch}", f"seed={number}")
                gaps, bytes_ = steps(Path(folder), processes, *given)
                seconds[name] += gaps[1:]  # the first one warms up
    step = {name: statistics.quantiles(found, n=4)[0] for name, found in seconds.items()}
    for name, found in step.items():
        print(f"{name:<28} {1000 * found:7.1f} ms a step, {found / step[ONE]:5.2f} × {ONE}")
    with tempfile.TemporaryDirectory() as folder:
        talk = exchange(bytes_, Path(folder))
    print(
        f"{f'{bytes_ / 1e6:.1f} MB of gradients by gloo':<28} {1000 * talk:7.1f} ms, {talk / step[TWO]:.1%} of a step"
    )
    floor = step[HALF] + talk
    print(
        f"{'floor: half the batch + them':<28} {1000 * floor:7.1f} ms; two processes need {step[TWO] / floor:.2f} × it"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
