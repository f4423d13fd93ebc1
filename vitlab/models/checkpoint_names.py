"""Where in a checkpoint the weights of a network may be: under which entry, with which prefix before their names.

Training programs keep a network beside its moving average, a teacher, metrics and losses, as ``net.``, ``student.``,
``backbone.``, ... Every place that has enough tensors is a candidate; which of them fits is for
:func:`vitlab.models.checkpoints.load_checkpoint` to try.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
"""Usual keys of the weights inside a training checkpoint, by priority: averaged weights first, as in timm."""

AVERAGED = re.compile(r"(^|[._/])(ema|average|averaged|avg|swa|momentum)([._/]|$)|_ema([._/]|$)")
TEACHER = re.compile(r"(^|[._/])teacher([._/]|$)")

DEPTH = 3
"""Modules of a prefix, and nested dicts of an entry, at most."""


@dataclass(frozen=True)
class Candidate:
    """One place in a checkpoint and its tensors, by their names without the prefix."""

    entry: str  # keys of the dict that holds them, joined by /; empty: the file itself
    prefix: str
    state: Mapping[str, Tensor]
    averaged: bool
    left_out: int = 0  # tensors of the entry that are not part of it

    @property
    def rank(self) -> tuple[int, bool, int]:
        """Averaged weights first, as in timm; a teacher last, also among averages; of equals, the usual entries
        first."""
        teacher = bool(TEACHER.search(f"{self.entry}/{self.prefix}"))
        kind = 0 if self.averaged else 2 if teacher else 1
        return kind, teacher, ENTRIES.index(self.entry) if self.entry in ENTRIES else len(ENTRIES)

    def rivals(self, other: Candidate) -> bool:
        """Whether nothing decides between the two: equal rank, the same names and other weights."""
        if self.rank != other.rank or self.state.keys() != other.state.keys():
            return False
        return not all(value.equal(other.state[name]) for name, value in self.state.items())

    def __str__(self) -> str:
        parts = [f"entry {self.entry}"] if self.entry else []
        parts += [f"names under {self.prefix}"] if self.prefix else []
        parts += ["averaged weights"] if self.averaged else []
        parts += [f"{self.left_out} other tensors left out"] if self.left_out else []
        return ", ".join(parts)


def candidates(content: object, size: int) -> list[Candidate]:
    """Every place of ``content`` with at least half of ``size`` tensors, by rank, the outer before the inner ones."""
    found = [one for entry, state in _entries(content) for one in _prefixed(entry, state, size)]
    return sorted(found, key=lambda one: one.rank)


def _entries(content: object, path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dict with tensors, with its place."""
    if not isinstance(content, Mapping) or depth > DEPTH:
        return
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if state:
        yield path, state
    for name, value in content.items():
        if isinstance(name, str):
            yield from _entries(value, f"{path}/{name}" if path else name, depth + 1)


def _prefixed(entry: str, state: dict[str, Tensor], size: int) -> Iterator[Candidate]:
    counts: Counter[str] = Counter({"": len(state)})
    for name in state:
        parts = name.split(".")
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, min(DEPTH, len(parts) - 1) + 1))
    large = [prefix for prefix, count in counts.items() if 2 * count >= size]
    for prefix in sorted(large, key=lambda one: one.count(".")):
        inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        # Without a copy of the network beside it, such as a teacher.
        nested = {other.removeprefix(prefix) for other in large if other != prefix and other.startswith(prefix)}
        twins = {other for other in nested if _is_twin(other, inside)}
        inside = {name: value for name, value in inside.items() if not any(map(name.startswith, twins))}
        averaged = bool(AVERAGED.search(f"{entry}/{prefix}")) or ("n_averaged" in state and prefix == "module.")
        yield Candidate(entry, prefix, inside, averaged, len(state) - len(inside))


def _is_twin(prefix: str, state: dict[str, Tensor]) -> bool:
    """Whether every tensor under ``prefix`` is there a second time without it."""
    return all(name.removeprefix(prefix) in state for name in state if name.startswith(prefix))
