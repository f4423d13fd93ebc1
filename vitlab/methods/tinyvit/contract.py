"""Progressive contraction (paper section on model scaling): a large network becomes a smaller one, step by step.

Each step makes every candidate that up to ``moves`` moves reach from the current network, keeps those within the
step's budgets of parameters and of measured speed, scores some of them by a proxy, and continues from the best. Budgets
shrink geometrically from start to target. The paper publishes neither step sizes nor the proxy: those are ours.

All measurements are in a journal, one JSON object a line; a search that was killed continues from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vitlab.errors import UserError
from vitlab.methods.tinyvit.families import Args, Family
from vitlab.run.recorder import append_line, drop_half_line

Verdict = Literal["start", "over budget", "too slow", "not scored", "scored", "chosen"]


@dataclass(frozen=True)
class Limits:
    """Targets and sizes of a search; see ``ContractOptions``."""

    params: float
    speed: float
    steps: int
    moves: int
    tolerance: float
    candidates: int

    FIRST: ClassVar[tuple[str, ...]] = ("params", "speed", "steps", "moves", "tolerance", "candidates")
    """Never changed: journals of all times are known by these (:func:`vitlab.files.stable_dict`)."""

    def __post_init__(self) -> None:
        for name, good in (
            ("params", self.params >= 1),
            ("speed", self.speed >= 0),
            ("steps", self.steps >= 1),
            ("moves", self.moves >= 1),
            ("tolerance", 0 <= self.tolerance < 1),
            ("candidates", self.candidates >= 1),
        ):
            if not good:
                raise UserError(f"method.contract.{name}={getattr(self, name)} is out of range.")


@dataclass
class Row:
    """One candidate of one step: network, costs, verdict."""

    step: int
    moves: str  # "D1+N3": from the network of the step before
    args: Args
    params: int
    macs: int
    verdict: Verdict
    throughput: float | None = None  # images a second
    score: float | None = None

    @property
    def key(self) -> str:
        """Eight hex digits of its arguments."""
        return digest(self.args)


def digest(args: Args) -> str:
    """Eight hex digits that name a network by its arguments."""
    return hashlib.sha256(json.dumps(args, sort_keys=True).encode()).hexdigest()[:8]


def budget(start: float, target: float, step: int, steps: int) -> float:
    """Geometric interpolation: ``start`` at step 0, ``target`` at step ``steps``."""
    return start * (target / start) ** (step / steps)


class Journal:
    """Measurements and finished steps on disk; ``settings`` identify the search.

    Raises:
        UserError: the file is the journal of another search.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.measured: dict[tuple[str, str], float] = {}
        self.rows: list[Row] = []
        drop_half_line(path)
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        settings = json.loads(json.dumps(settings))  # as JSON returns them: tuples become lists
        if lines and lines[0] != {"question": settings}:
            raise UserError(f"{path} is the journal of another search.", "Start beside it with fresh=true.")
        for line in lines[1:]:
            if "measured" in line:
                self.measured[line["measured"], line["key"]] = line["value"]
            else:
                self.rows += [Row(**row) for row in line["rows"]]
        if not lines:
            self._write({"question": settings})

    def measure_once(self, what: str, args: Args, measure: Callable[[Args], float]) -> float:
        """``measure(args)``, or its recorded value."""
        key = what, digest(args)
        if key not in self.measured:
            self.measured[key] = float(measure(args))
            self._write({"measured": what, "key": key[1], "value": self.measured[key]})
        return self.measured[key]

    def finish(self, rows: list[Row]) -> None:
        """Record all rows of a finished step."""
        self.rows += rows
        self._write({"rows": [asdict(row) for row in rows]})

    def _write(self, line: dict[str, Any]) -> None:
        append_line(self.path, line)


def reachable(family: Family, args: Args, moves: int) -> dict[str, tuple[str, Args]]:
    """Every network within ``moves`` moves of ``args``: digest to (the moves, its arguments); each once."""
    found: dict[str, tuple[str, Args]] = {digest(args): ("", args)}
    edge = list(found.values())
    for _ in range(moves):
        next_edge = []
        for path, here in edge:
            for move, there in family.smaller(here):
                if (key := digest(there)) not in found:
                    found[key] = "+".join(sorted([*filter(None, path.split("+")), move])), there
                    next_edge.append(found[key])
        edge = next_edge
    found.pop(digest(args))
    return found


def contract(
    family: Family,
    limits: Limits,
    journal: Journal,
    throughput: Callable[[Args], float],
    score: Callable[[Args], float],
    log: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Run the search; returns the chosen network of every step, the start first.

    Args:
        throughput: images a second of the network with these arguments, on this device.
        score: the proxy: higher is better. Ties go to the faster, then the smaller, then the first by its arguments.

    Raises:
        UserError: the target is not smaller than the start, or no candidate of a step is within its budgets.
    """
    params, macs = family.cost(family.start)
    if limits.params >= params:
        raise UserError(
            f"method.contract.params={limits.params:,.0f} is not below the start's {params:,}.", "Lower it."
        )
    if not journal.rows:
        speed = journal.measure_once("throughput", family.start, throughput) if limits.speed else None
        journal.finish([Row(0, "", family.start, params, macs, "start", speed)])
    start = journal.rows[0]
    chosen = [start, *(row for row in journal.rows if row.verdict == "chosen")]
    for step in range(len(chosen), limits.steps + 1):
        max_params = budget(start.params, limits.params, step, limits.steps) * (1 + limits.tolerance)
        min_speed = None
        if start.throughput is not None:
            wanted = budget(start.throughput, start.throughput * limits.speed, step, limits.steps)
            min_speed = wanted * (1 - limits.tolerance)
        rows = _step(family, limits, journal, throughput, score, step, chosen[-1], max_params, min_speed)
        journal.finish(rows)
        chosen.append(next(row for row in rows if row.verdict == "chosen"))
        kept = sum(row.score is not None for row in rows)
        log(f"step {step}/{limits.steps}: {len(rows)} candidates, {kept} scored, {chosen[-1].moves} chosen")
    return chosen


def _step(
    family: Family,
    limits: Limits,
    journal: Journal,
    throughput: Callable[[Args], float],
    score: Callable[[Args], float],
    step: int,
    current: Row,
    max_params: float,
    min_speed: float | None,
) -> list[Row]:
    rows = []
    for path, args in reachable(family, current.args, limits.moves).values():
        params, macs = family.cost(args)
        rows.append(Row(step, path, args, params, macs, "over budget" if params > max_params else "not scored"))
    rows.sort(key=lambda row: (-row.params, row.macs, json.dumps(row.args, sort_keys=True)))
    fits = [row for row in rows if row.verdict == "not scored" and row.params < current.params]
    scored: list[Row] = []
    for row in fits:
        if len(scored) == limits.candidates:
            break
        if min_speed is not None:
            row.throughput = journal.measure_once("throughput", row.args, throughput)
            if row.throughput < min_speed:
                row.verdict = "too slow"
                continue
        row.score = journal.measure_once("score", row.args, score)
        row.verdict = "scored"
        scored.append(row)
    if not scored:
        limits_text = f"at most {max_params:,.0f} parameters" + (
            f" and at least {min_speed:,.0f} images/s" if min_speed else ""
        )
        raise UserError(
            f"Contraction, step {step}: none of {len(rows)} candidates has {limits_text}"
            + (f"; {len(fits)} are small enough." if fits else "."),
            "Raise method.contract.moves, steps or tolerance, or lower method.contract.speed.",
        )
    best = max(scored, key=lambda row: (row.score or 0.0, row.throughput or 0.0, -row.params, _reversed(row.args)))
    best.verdict = "chosen"
    return rows


def _reversed(args: Args) -> tuple[int, ...]:
    """Sort key by which the lexicographically first arguments are the largest."""
    return tuple(-ord(character) for character in json.dumps(args, sort_keys=True))
