"""Progressive contraction (paper section on model scaling): a large network becomes a smaller one, step by step.

Each step makes every candidate that up to ``moves`` moves reach from the current network, keeps those within the
step's budgets of parameters and of measured speed, scores some of them by a proxy, and continues from the best. Budgets
shrink geometrically from start to target; all but the last may be missed by a tolerance. Those that are scored are of
as many kinds as possible (which factors changed), in turn the largest and the one of fewest multiply-adds a parameter.
The paper publishes neither step sizes nor the proxy: those are ours.

All measurements are in a journal, one JSON object a line; a search that was killed continues from it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vitlab.errors import UserError
from vitlab.methods.tinyvit.families import Args, Family
from vitlab.methods.tinyvit.reach import budget, budgets, digest, enlarged, fewest, keeps_pace, reachable, varied
from vitlab.run.recorder import append_line, drop_half_line
from vitlab.training.progress import format_duration

Verdict = Literal["start", "over budget", "too slow", "dead end", "not scored", "scored", "chosen"]
"""``dead end``: from there the later budgets cannot be kept."""


MOST_MOVES = 200
"""Moves within which a target must be reachable at all."""


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


def check_target(family: Family, limits: Limits) -> None:
    """Refuse a target that the start is below, or that ``steps`` times ``moves`` cannot reach, before anything runs.

    Raises:
        UserError: with the smallest network that was found, and the steps or moves that would do.
    """
    params = family.params(family.start)
    if limits.params >= params:
        raise UserError(
            f"method.contract.params={limits.params:,.0f} is not below the start's {params:,}.", "Lower it."
        )
    least = fewest(family, family.start, MOST_MOVES, family.params, limits.params)
    if least[-1] > limits.params:
        raise UserError(
            f"method.contract.params={limits.params:,.0f} is out of reach: the smallest network that contraction makes "
            f"of this one has {least[-1]:,} parameters, {family.head(family.start):,} of the start's being its head.",
            f"Give at least {least[-1]:,}, or a smaller model=.",
        )
    within = budgets(params, limits.params, limits.steps, limits.tolerance)
    if not keeps_pace(least, within, limits.moves):
        steps, moves = enlarged(least, limits.params, limits.steps, limits.moves, limits.tolerance)
        reached = least[min(limits.steps * limits.moves, len(least) - 1)]
        raise UserError(
            f"method.contract.params={limits.params:,.0f} is out of reach of method.contract.steps={limits.steps} with "
            f"method.contract.moves={limits.moves}: the smallest network {limits.steps * limits.moves} moves away has "
            f"{reached:,} parameters, and each step must come within its own budget.",
            f"Give method.contract.steps={steps}, or method.contract.moves={moves}; more leaves more choice.",
        )


def outline(family: Family, limits: Limits, classes: int) -> list[str]:
    """What a search will do, a line each: sizes with the head, moves that are needed, speed that can be expected."""
    params, macs = family.cost(family.start)
    head = family.head(family.start)
    lines = [
        f"from {params:,} to at most {limits.params:,.0f} parameters, with the head of {classes} classes ({head:,} of "
        f"the start's; published counts are with 1,000 classes)"
    ]
    moves = limits.steps * limits.moves
    needed = len(fewest(family, family.start, moves, family.params, limits.params)) - 1
    lines.append(
        f"steps: {limits.steps}, of up to {limits.moves} moves; at least {needed} of these {moves} are needed"
        + (", which leaves little choice: more steps are better" if 2 * needed > moves else "")
    )
    if limits.speed > 1:
        least = fewest(family, family.start, moves, lambda args: family.cost(args)[1], macs / limits.speed)[-1]
        if macs < limits.speed * least:
            lines.append(
                f"the fewest multiply-adds within reach are 1/{macs / least:.1f} of the start's; {limits.speed:g} "
                "times its speed (method.contract.speed) is unlikely"
            )
    return lines


def contract(
    family: Family,
    limits: Limits,
    journal: Journal,
    throughput: Callable[[Args], float],
    score: Callable[[Args], float],
    log: Callable[[str], None] = lambda text: None,
    seconds: float = 0.0,
) -> list[Row]:
    """Run the search; returns the chosen network of every step, the start first.

    Args:
        throughput: images a second of the network with these arguments, on this device.
        score: the proxy: higher is better. Ties go to the faster, then the smaller, then the first by its arguments.
        log: gets a line before and after each step.
        seconds: about what one measurement of ``throughput`` takes, for the line before a step.

    Raises:
        UserError: the target is not smaller than the start or out of reach, or no candidate of a step is within its
            budgets.
    """
    check_target(family, limits)
    params, macs = family.cost(family.start)
    if not journal.rows:
        speed = journal.measure_once("throughput", family.start, throughput) if limits.speed else None
        journal.finish([Row(0, "", family.start, params, macs, "start", speed)])
    start = journal.rows[0]
    chosen = [start, *(row for row in journal.rows if row.verdict == "chosen")]
    most = budgets(start.params, limits.params, limits.steps, limits.tolerance)
    for step in range(len(chosen), limits.steps + 1):
        min_speed = None
        if start.throughput is not None:
            wanted = budget(start.throughput, start.throughput * limits.speed, step, limits.steps)
            min_speed = wanted * (1 - (limits.tolerance if step < limits.steps else 0.0))
        rows = _candidates(family, limits, step, chosen[-1], most[step - 1])
        fits = [row for row in rows if row.verdict == "not scored" and row.params < chosen[-1].params]
        log(_expected(step, limits, len(rows), len(fits), most[step - 1], None if min_speed is None else seconds))
        took = _measure(family, limits, journal, throughput, score, fits, min_speed, start, most[step:])
        scored = [row for row in fits if row.score is not None]
        if not scored:
            raise _none_found(limits, step, rows, fits, most[step - 1], min_speed)
        best = max(scored, key=lambda row: (row.score or 0.0, row.throughput or 0.0, -row.params, _reversed(row.args)))
        best.verdict = "chosen"
        journal.finish(rows)
        chosen.append(best)
        rest = format_duration(took * (limits.steps - step))
        log(
            f"step {step}/{limits.steps}: {len(scored)} of {len(fits)} scored, {best.moves} chosen, {best.params:,} "
            "parameters" + (f"; about {rest} to go" if step < limits.steps and took >= 1 else "")
        )
    return chosen


def _candidates(family: Family, limits: Limits, step: int, current: Row, max_params: float) -> list[Row]:
    rows = []
    for path, args in reachable(family, current.args, limits.moves).values():
        params, macs = family.cost(args)
        rows.append(Row(step, path, args, params, macs, "over budget" if params > max_params else "not scored"))
    return sorted(rows, key=lambda row: (-row.params, row.macs, json.dumps(row.args, sort_keys=True)))


def _expected(step: int, limits: Limits, count: int, fits: int, max_params: float, seconds: float | None) -> str:
    """The line before a step: candidates, and the time of their measurements where there are any."""
    text = f"step {step}/{limits.steps}: {fits} of {count} candidates have at most {max_params:,.0f} parameters"
    if seconds:
        least, most = (format_duration(seconds * one) for one in (min(fits, limits.candidates), fits))
        text += f"; throughput takes {least} if the first are fast enough, {most} if none is"
    return text


def _order(fits: list[Row], min_speed: float | None, start: Row) -> Iterator[Row]:
    """Differently made ones first; last those that their multiply-adds make expect to be too slow."""

    def kind(row: Row) -> frozenset[str]:
        return frozenset(move.rstrip("0123456789") for move in row.moves.split("+"))

    def by_size(row: Row) -> tuple[object, ...]:
        return -row.params, row.macs, json.dumps(row.args, sort_keys=True)

    def by_speed(row: Row) -> tuple[object, ...]:
        return row.macs / row.params, *by_size(row)

    def likely(row: Row) -> bool:
        return min_speed is None or start.throughput is None or start.throughput * start.macs >= min_speed * row.macs

    for expected in (True, False):
        yield from varied([row for row in fits if likely(row) == expected], kind, by_size, by_speed)


def _measure(
    family: Family,
    limits: Limits,
    journal: Journal,
    throughput: Callable[[Args], float],
    score: Callable[[Args], float],
    fits: list[Row],
    min_speed: float | None,
    start: Row,
    later: list[float],
) -> float:
    """Fill in ``fits`` until enough are scored; returns the seconds that it took."""
    begin, scored = time.monotonic(), 0
    for row in _order(fits, min_speed, start):
        if scored == limits.candidates:
            break
        least = fewest(family, row.args, len(later) * limits.moves, family.params, limits.params)
        if not keeps_pace(least, later, limits.moves):
            row.verdict = "dead end"
            continue
        if min_speed is not None:
            row.throughput = journal.measure_once("throughput", row.args, throughput)
            if row.throughput < min_speed:
                row.verdict = "too slow"
                continue
        row.score = journal.measure_once("score", row.args, score)
        row.verdict = "scored"
        scored += 1
    return time.monotonic() - begin


def _none_found(
    limits: Limits, step: int, rows: list[Row], fits: list[Row], max_params: float, min_speed: float | None
) -> UserError:
    asked = f"at most {max_params:,.0f} parameters"
    asked += f" and at least {min_speed:,.0f} images/s" if min_speed else ""
    slow, dead = (sum(row.verdict == one for row in fits) for one in ("too slow", "dead end"))
    found = f"; {len(fits)} are small enough, of which {slow} too slow and {dead} too large for the later steps"
    return UserError(
        f"Contraction, step {step}: none of {len(rows)} candidates has {asked}{found if fits else ''}.",
        "Raise method.contract.moves, steps or tolerance, or lower method.contract.speed.",
    )


def _reversed(args: Args) -> tuple[int, ...]:
    """Sort key by which the lexicographically first arguments are the largest."""
    return tuple(-ord(character) for character in json.dumps(args, sort_keys=True))
