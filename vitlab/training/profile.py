"""debug=profile: where the time of a training step goes, and a trace of a few steps for chrome://tracing or Perfetto;
where that of a stage goes which has a teacher label views.

Times are taken without torch's profiler, which slows what it looks at, and with the device waited for at every border,
so that work is charged to the part that started it. Then a few more steps run under torch's profiler for the trace.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler
from torch.profiler import ProfilerActivity, record_function

from vitlab.files import atomic_write, write_json
from vitlab.training.progress import print_line

TRACED = 5  # steps under torch's profiler
PARTS = (
    ("data", ("train_dataloader_next", "batch_to_device", "transfer_batch")),
    ("teacher", ("teacher",)),
    ("forward and loss", ("training_step",)),
    ("backward", ("backward",)),
    ("optimiser", ("optimizer", "zero_grad", "clip")),
    ("weight average", ("weight average",)),
    ("validation", ("validation",)),
    ("checkpoint", ("checkpoint",)),
    ("logging", ("RecordAndCheckpoint", "[Callback]")),
)
"""Rows of the table, and the actions of Lightning's and ours that count for each; the first match counts."""
REST = "Lightning's loop"


def part_of(action: str) -> str:
    """The row of the table that an action counts for."""
    return next((part for part, words in PARTS if any(word in action for word in words)), REST)


def timed(trainer: L.Trainer, part: str) -> AbstractContextManager[str]:
    """While the block runs, its time counts for ``part``, where a profiler runs."""
    profiler: Profiler = trainer.profiler  # type: ignore[attr-defined]  # set by a connector of Lightning's
    return profiler.profile(part)


class StepProfiler(Profiler):
    """Charges the time of some training steps to the parts of a step.

    Args:
        stage: as the table calls it.
        folder: for ``profile.json``, ``operators.txt`` and ``trace.json``.
        total: batches of the training.
        batches: how many are timed; they end where the traced ones begin, before the last batch.
        device: what is waited for.
    """

    def __init__(self, stage: str, folder: Path, total: int, batches: int, device: torch.device) -> None:
        super().__init__()
        self.stage, self.folder, self.device = stage, folder, device
        last = max(1, total - 1)  # the last batch validates and writes a checkpoint
        self.trace_from = max(1, last - TRACED)
        self.end = last
        self.begin = max(1 if self.trace_from > 1 else 0, self.trace_from - batches)
        self.batch = 0
        self.stack: list[str] = []
        self.scopes: list[Any] = []
        self.spent: dict[str, float] = defaultdict(float)
        self.mark = 0.0
        self.torch: torch.profiler.profile | None = None

    # Lightning fetches a batch, then works on it: a step begins when its batch is requested.
    def start(self, action_name: str) -> None:
        if "train_dataloader_next" in action_name:
            self._next()
        self._charge()
        self.stack.append(action_name)
        if self.torch is not None:
            scope = record_function(f"{part_of(action_name)}: {action_name}")
            scope.__enter__()
            self.scopes.append((len(self.stack), scope))

    def stop(self, action_name: str) -> None:
        if action_name not in self.stack:
            return
        self._charge()
        while self.stack:
            if self.scopes and self.scopes[-1][0] == len(self.stack):
                self.scopes.pop()[1].__exit__(None, None, None)
            if self.stack.pop() == action_name:
                return

    def _charge(self) -> None:
        """The time since the last border belongs to the innermost action that is at work."""
        if not self.begin < self.batch <= self.trace_from:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.spent[part_of(self.stack[-1]) if self.stack else REST] += now - self.mark
        self.mark = now

    def _next(self) -> None:
        self._charge()
        self.batch += 1
        if self.batch == self.begin + 1:
            self.mark = time.perf_counter()
        if self.batch == self.trace_from + 1:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports its own beginning and end as errors
            kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])
            self.torch = torch.profiler.profile(activities=kinds)
            self.torch.start()
        if self.batch == self.end + 1:
            self._finish()

    def _finish(self) -> None:
        for _, scope in reversed(self.scopes):
            scope.__exit__(None, None, None)
        self.scopes.clear()
        if self.torch is None:
            return
        profiler, self.torch = self.torch, None
        profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        order = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        atomic_write(self.folder / "operators.txt", profiler.key_averages().table(sort_by=order, row_limit=25))
        write_json(
            self.folder / "profile.json", {"batches": self.timed, "device": str(self.device), "ms": self.parts()}
        )
        print_line(self.table())

    @property
    def timed(self) -> int:
        """Batches whose time was taken."""
        return self.trace_from - self.begin

    def parts(self) -> dict[str, float]:
        """Milliseconds a batch of each part, in the order of a step."""
        names = [*(name for name, _ in PARTS), REST]
        return {name: round(1e3 * self.spent[name] / max(1, self.timed), 4) for name in names if name in self.spent}

    def table(self) -> str:
        """Where the time goes, for people."""
        parts = describe_profile(self.stage, self.parts(), self.device, self.timed)
        return f"{parts}\n  trace and operators: {self.folder}"


class Tally:
    """Charges the time of a stage that trains nothing to the parts of its work, from border to border.

    Args:
        on: false: nothing is timed and nothing waited for.
        device: what is waited for at every border.
    """

    def __init__(self, on: bool, device: torch.device) -> None:
        self.on, self.device = on, device
        self.spent: dict[str, float] = {}
        self.batches = 0
        self.mark = time.perf_counter()

    def charge(self, part: str | None) -> None:
        """The time since the last border belongs to ``part``; None: to no part."""
        if not self.on:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if part is not None:
            self.spent[part] = self.spent.get(part, 0.0) + now - self.mark
        self.mark = now

    def report(self, stage: str, folder: Path) -> None:
        """Write ``profile.json`` and show the table, if there is something in it."""
        if not self.on or not self.batches:
            return
        ms = {part: round(1e3 * seconds / self.batches, 4) for part, seconds in self.spent.items()}
        write_json(folder / "profile.json", {"batches": self.batches, "device": str(self.device), "ms": ms})
        print_line(describe_profile(stage, ms, self.device, self.batches))


def describe_profile(stage: str, parts: Mapping[str, float], device: torch.device, batches: int) -> str:
    """Where the time goes, for people: milliseconds a batch of every part, and its share."""
    total = sum(parts.values())
    lines = [f"{stage}: {total:.2f} ms a batch on {device.type} (mean of {batches})"]
    lines += [f"  {name:<18}{ms:>9.2f} ms {100 * ms / max(total, 1e-9):>5.1f} %" for name, ms in parts.items()]
    return "\n".join(lines)
