"""Overrides of a sweep on the command line: the keys with several values, and these values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from vitlab.compose.hydra_private import BasicSweeper
from vitlab.compose.load import load
from vitlab.config.composed import Composed
from vitlab.errors import UserError
from vitlab.launch.slurm import is_queued

LOCKED_CURE = "Wait for it, stop it, or give this one a name: sweep.name=NAME."
"""Cure if another process runs the same sweep."""


def read_sweep(words: Sequence[str]) -> tuple[list[str], list[Override], Composed]:
    """Overrides with one value, those with several (with ``sweep.over``), and the first job, composed.

    Raises:
        UserError: no key has several values, a path with a comma, or a mistake in the first job.
    """
    plain, swept = _split_words(words)
    if not any(word.startswith(("sweep=", "sweep.sampler=", "experiment=")) for word in words):
        refuse_ranges(swept)
    first = load([*plain, *(example(one) for one in swept)])
    typed = {one.get_key_element() for one in swept} | {word.partition("=")[0] for word in plain}
    single, over = _split_words(first.config.sweep.over)
    if single:
        raise UserError(f"sweep.over: {single[0]} has one value.", "Give several: KEY=a,b or KEY=interval(a,b).")
    swept += [one for one in over if one.get_key_element() not in typed]  # the command line takes precedence
    if not swept:
        raise UserError("-m: no key has several values.", "Give some, for instance -m seed=0,1,2, or leave -m out.")
    if first.config.mode != "train" or first.config.fresh:
        raise UserError("-m applies to trainings that the same command continues.", "Leave out mode= and fresh=true.")
    if is_queued(first.config) or any(
        one.get_key_element() == "hardware" and "slurm" in values_of(one) for one in swept
    ):
        raise UserError(
            "-m hardware=slurm: a sweep waits for its runs and compares them, and queued ones would count as finished.",
            "Submit each run by a command of its own, or the sweep in one job: sbatch, with hardware=gpu.",
        )
    return plain, swept, first


def _split_words(words: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Overrides with one value, and overrides with several."""
    given: dict[str, str | Override] = {}  # of a key that is given twice the last, as in Hydra
    for number, word in enumerate(words):
        key, equals, value = word.partition("=")
        key = key.lstrip("+") if equals else f"{number}"  # what is no override is reported by load()
        given.pop(key, None)
        try:
            parsed = OverridesParser.create().parse_override(word)
        except HydraException:
            given[key] = word  # load() reports what is wrong with it, or reads it as text
            continue
        if parsed.is_sweep_override() and "," in value and Path(value).expanduser().exists():
            raise UserError(
                f"{word}: after -m a comma separates values, and {value} is one file or folder.",
                f"Quote it, for the shell too: '{key}=\"{value}\"'.",
            )
        given[key] = parsed if parsed.is_sweep_override() else word
    return [one for one in given.values() if isinstance(one, str)], [
        one for one in given.values() if not isinstance(one, str)
    ]


def refuse_ranges(swept: Sequence[Override]) -> None:
    """Refuse intervals, which a grid cannot enumerate.

    Raises:
        UserError: naming the override.
    """
    for one in swept:
        if not one.is_discrete_sweep():
            raise UserError(
                f"{one.input_line}: a grid takes single values, not an interval.",
                "Write a,b,c, choice(a,b) or range(1,4); or search the interval: sweep=optuna.",
            )


def example(swept: Override) -> str:
    """The override that gives a swept key its first value."""
    return f"{swept.get_key_element()}={values_of(swept)[0]}"


def values_of(swept: Override) -> list[str]:
    """The values of a swept key as text; of an interval its two ends.

    Raises:
        UserError: a glob over the choices of a group.
    """
    value = swept.value()
    if isinstance(value, IntervalSweep):
        ends = [float(str(end)) for end in (value.start, value.end)]
        return [str(int(end)) if end.is_integer() else repr(end) for end in ends]
    try:
        (row,) = zip(*BasicSweeper.split_arguments([swept], None)[0], strict=True)
    except HydraException as error:
        raise UserError(f"{swept.input_line}: {error}.", "Give each value.") from None
    return [word.partition("=")[2] for word in row]


def is_sweep_key(word: str) -> bool:
    """Whether an override belongs to the sweep, not to its jobs."""
    return word.startswith(("sweep.", "sweep="))


def sweep_folder(first: Composed, name: str) -> Path:
    """``OUTPUT/sweeps/NAME``, created if it does not exist."""
    folder = Path(first.config.output) / "sweeps" / name
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    return folder
