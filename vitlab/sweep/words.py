"""The words of a sweep at the prompt: which keys have several values, and what these are."""

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


def read(words: Sequence[str]) -> tuple[list[str], list[Override], Composed]:
    """The words for every job, the swept ones (those of ``sweep.over`` among them), and one example, composed.

    Raises:
        UserError: nothing is to be swept, a key is given twice, or the example is mistaken.
    """
    plain, swept = _split_words(words)
    if not any(word.startswith(("sweep=", "sweep.sampler=", "experiment=")) for word in words):
        refuse_ranges(swept)
    first = load([*plain, *(example(one) for one in swept)])
    typed = {one.get_key_element() for one in swept} | {word.partition("=")[0] for word in plain}
    stray, over = _split_words(first.config.sweep.over)
    if stray:
        raise UserError(f"sweep.over: {stray[0]} has one value.", "Give several: KEY=a,b or KEY=interval(a,b).")
    swept += [one for one in over if one.get_key_element() not in typed]  # the prompt is stronger
    if not swept:
        raise UserError("-m: no key has several values.", "Give some, for instance -m seed=0,1,2, or leave -m out.")
    if first.config.mode != "train" or first.config.fresh:
        raise UserError("-m is for trainings that the same command continues.", "Leave out mode= and fresh=true.")
    return plain, swept, first


def _split_words(words: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Words with one value, and words with several."""
    plain: list[str] = []
    swept: list[Override] = []
    for word in words:
        try:
            parsed = OverridesParser.create().parse_override(word)
        except HydraException:
            plain.append(word)  # load explains what is wrong with it, or takes it as text
            continue
        if not parsed.is_sweep_override():
            plain.append(word)
        elif any(parsed.get_key_element() == other.get_key_element() for other in swept):
            raise UserError(f"{parsed.get_key_element()} is given twice.", "Leave one of them out.")
        else:
            swept.append(parsed)
    return plain, swept


def refuse_ranges(swept: Sequence[Override]) -> None:
    for one in swept:
        if not one.is_discrete_sweep():
            raise UserError(
                f"{one.input_line}: a grid takes values one by one.",
                "Write a,b,c, choice(a,b) or range(1,4); or search in it: sweep=optuna.",
            )


def example(swept: Override) -> str:
    """The word that gives a swept key its first value."""
    return f"{swept.get_key_element()}={values_of(swept)[0]}"


def values_of(swept: Override) -> list[str]:
    """The values of a swept key as typed one by one; of an interval both ends.

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
        raise UserError(f"{swept.input_line}: {error}.", "Write the values one by one.") from None
    return [word.partition("=")[2] for word in row]


def is_of_sweep(word: str) -> bool:
    """Whether a word is about the sweep itself, not about its jobs."""
    return word.startswith(("sweep.", "sweep="))


def folder_of(first: Composed, name: str) -> Path:
    """``OUTPUT/sweeps/NAME``, made if need be."""
    folder = Path(first.config.output) / "sweeps" / name
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    return folder
