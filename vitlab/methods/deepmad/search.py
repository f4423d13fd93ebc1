"""Common parts of the solvers: result, best structure so far, time limit, journal.

The journal is a folder with two files. ``journal.jsonl`` starts with problem and settings, and has one line for each
improvement: it is the trace. ``state.json`` is the complete state of the solver, replaced every few seconds. A search
that finds both continues from that state, and ends as if it had never been interrupted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.files import atomic_write, read_as, read_json, write_json
from vitlab.methods.deepmad.problem import Problem
from vitlab.methods.deepmad.structure import Structure
from vitlab.run.recorder import append_line, drop_half_line
from vitlab.training.interrupt import stop_if_requested, stop_requested

JOURNAL, STATE = "journal.jsonl", "state.json"
SAVE_EVERY, PRINT_EVERY = 5.0, 2.0  # seconds


@dataclass(frozen=True)
class Point:
    """One improvement: the best score after ``seconds`` and ``evaluations``."""

    seconds: float
    evaluations: int
    score: float


@dataclass
class Design:
    """The result of a solver.

    Attributes:
        bound: no structure of the space within the budgets scores more; None where the solver proves nothing.
        trace: every improvement, in order.
        notes: remarks for the report, a sentence each.
    """

    structure: Structure
    score: float
    solver: str
    bound: float | None = None
    trace: list[Point] = field(default_factory=list)
    seconds: float = 0.0
    evaluations: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def gap(self) -> float | None:
        """How far the score may lie below the best possible one, as a share of it."""
        return None if self.bound is None else max(0.0, self.bound - self.score) / abs(self.bound)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "structure": self.structure.to_list(), "gap": self.gap}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Design:
        """The inverse of :meth:`to_dict`."""
        plain = {key: entry for key, entry in value.items() if key != "gap"}
        plain["structure"] = Structure.from_list(value["structure"])
        plain["trace"] = [Point(**point) for point in value["trace"]]
        return cls(**plain)


class Search:
    """One search for a solution of ``problem``.

    Args:
        solver: its name.
        settings: everything else that determines the course of the search (seed, sizes); plain values.
        folder: of the journal; None: no journal.
        time_limit: seconds over all sessions; None: no limit.
        quiet: no progress line.
        first: stop at the first solution.
        clock: a monotonic clock in seconds (a parameter, so that tests need not wait).
    """

    def __init__(
        self,
        problem: Problem,
        solver: str,
        settings: dict[str, Any],
        *,
        folder: Path | None = None,
        time_limit: float | None = None,
        quiet: bool = True,
        first: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        problem.check()
        self.problem, self.solver, self.folder, self.time_limit, self.quiet = problem, solver, folder, time_limit, quiet
        self.first = first
        self.best: Structure | None = None
        self.score = float("-inf")
        self.bound: float | None = None
        self.trace: list[Point] = []
        self.notes: list[str] = []
        self.evaluations = 0
        self.total: int | None = None  # evaluations planned, for the progress line
        self._clock, self._start, self._before = clock, clock(), 0.0
        self._saved = self._printed = self._start
        self._head = json.loads(json.dumps({"solver": solver, **settings, "problem": problem.describe()}))
        self._state: dict[str, Any] | None = None
        if folder is not None:
            self._open(folder)

    @property
    def seconds(self) -> float:
        """Spent on this search, earlier sessions included."""
        return self._before + self._clock() - self._start

    @property
    def over(self) -> bool:
        """Whether the time limit is reached, or with ``first`` a solution was found."""
        if self.first and self.best is not None:
            return True
        return self.time_limit is not None and self.seconds >= self.time_limit

    @property
    def left(self) -> float:
        """Seconds left, infinite without a limit."""
        return float("inf") if self.time_limit is None else max(0.0, self.time_limit - self.seconds)

    def resume(self) -> dict[str, Any] | None:
        """The state of the solver that an earlier session saved."""
        return self._state

    def offer(self, structure: Structure) -> bool:
        """Take ``structure`` if it is a solution and better than the best so far; whether it was taken.

        Score and costs are recomputed from the structure, so an error of a solver cannot enter the result.
        """
        score = self.problem.evaluate(structure).score
        if score <= self.score or self.problem.violations(structure):
            return False
        self.best, self.score = structure, score
        self.trace.append(Point(round(self.seconds, 3), self.evaluations, score))
        if self.folder is not None:
            append_line(self.folder / JOURNAL, {**asdict(self.trace[-1]), "units": structure.to_list()})
        return True

    def report(self, note: str = "") -> bool:
        """Called often: print progress every few seconds. Returns whether :meth:`save` is due."""
        now = self._clock()
        if not self.quiet and now - self._printed >= PRINT_EVERY:
            self._print_progress(note)
        return now - self._saved >= SAVE_EVERY or stop_requested()

    def save(self, state: dict[str, Any]) -> None:
        """Save ``state``, the complete state of the solver in plain values, for the next session.

        Raises:
            Interrupted: a stop was requested; the state is saved.
        """
        self._saved = self._clock()
        if self.folder is None:
            stop_if_requested()
            return
        kept = {"seconds": self.seconds, "evaluations": self.evaluations, "improvements": len(self.trace)}
        bests = {"bound": self.bound, "notes": self.notes}
        atomic_write(self.folder / STATE, json.dumps({**kept, **bests, "state": state}))
        stop_if_requested()

    def finish(self) -> Design:
        """The result.

        Raises:
            UserError: no structure within all budgets was found.
        """
        if self.best is None:
            raise UserError(
                f"{self.solver} found no network within the budgets after {self.evaluations:,} evaluations and "
                f"{self.seconds:.0f} s.",
                "Give larger budgets (method.budget.*; a small budget and a small rho contradict each other), or more "
                "time.",
            )
        if not self.quiet:
            self._print_progress("")
            if sys.stderr.isatty():
                print(file=sys.stderr)
        return Design(
            self.best,
            self.score,
            self.solver,
            self.bound,
            self.trace,
            seconds=round(self.seconds, 3),
            evaluations=self.evaluations,
            notes=self.notes,
        )

    def _print_progress(self, note: str) -> None:
        self._printed = self._clock()
        best = "no solution yet" if self.best is None else f"score {self.score:,.2f}"
        bound = "" if self.bound is None else f" of at most {self.bound:,.2f}"
        share = f" of {self.total:,}" if self.total else ""
        limit = f"/{self.time_limit:.0f}" if self.time_limit is not None else ""
        line = f"{self.solver}: {best}{bound}, {self.evaluations:,}{share} evaluations, {self.seconds:.0f}{limit} s"
        line += f", {note}" if note else ""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _open(self, folder: Path) -> None:
        path = folder / JOURNAL
        drop_half_line(path)
        lines = path.read_text().splitlines() if path.exists() else []
        if not lines:
            append_line(path, self._head)
            return
        if json.loads(lines[0]) != self._head:
            raise UserError(
                f"'{path}' is the journal of another search: {_difference(json.loads(lines[0]), self._head)}.",
                "Give another folder, or the same problem and settings.",
            )
        kept = read_json(folder / STATE) if (folder / STATE).exists() else None
        known = 0 if kept is None else kept["improvements"]
        for line in lines[1 : 1 + known]:
            row = json.loads(line)
            self.best, self.score = Structure.from_list(row.pop("units")), row["score"]
            self.trace.append(Point(**row))
        atomic_write(path, "".join(f"{line}\n" for line in lines[: 1 + known]))
        if kept is not None:
            self._before, self.evaluations = kept["seconds"], kept["evaluations"]
            self.bound, self.notes = kept["bound"], kept["notes"]
            self._state = kept["state"]


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return ", ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in keys)


def save_design(path: Path, design: Design) -> None:
    """Write a design as JSON."""
    write_json(path, design.to_dict())


def load_design(path: Path) -> Design:
    """Read what :func:`save_design` wrote.

    Raises:
        DamagedError: it is not that.
    """
    return read_as(path, Design.from_dict, "Delete it; the same command designs it again.")
