"""Keys on the command line that the chosen data set, logger, schedule, ... does not read: refused, never ignored.

A field whose help text begins with ``NAME only:`` belongs to that choice of its group; the other conditions are listed
here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vitlab.compose.schema import Field, find
from vitlab.config import Config
from vitlab.errors import UserError


def check_unread(config: Config, typed: Mapping[str, str], known: Mapping[str, Field]) -> None:
    """Refuse the first key that is given and not read under the other choices.

    Args:
        config: with the choices that count: of a run's data set, those of the run.
        typed: dotted key → override as typed.
        known: all fields by key.

    Raises:
        UserError: naming the override, the choice that does not read it, and the likely intention.
    """
    for key, word in typed.items():
        field = find(key, dict(known))
        plain = word.lstrip("+")
        if field is None:
            continue
        group = key.partition(".")[0]
        part = getattr(config, group, None)
        choice = getattr(part, "name", None)
        owner = re.match(r"(\w+) only:", field.meaning)
        if owner is not None and choice is not None and owner[1] not in (choice, *getattr(part, "also", ())):
            raise UserError(
                f"{word}: {key} is read with {group}={owner[1]} only, and {group} is {choice}.",
                f"Did you mean {group}={owner[1]} {plain}? Otherwise leave it out.",
            )
        reason = _unread(config, key)
        if reason:
            what, cure = reason
            raise UserError(f"{word}: {what}", cure.format(word=plain))


def _unread(config: Config, key: str) -> tuple[str, str] | None:
    """Why ``key`` has no effect, and the cure with the override as ``{word}``; None where it is read."""
    dataset, recipes = config.dataset, {"recipe": config.recipe, "teacher.recipe": config.teacher.recipe}
    if key == "dataset.root" and dataset.embedded:
        return (
            f"dataset={dataset.name} is part of a package and reads no folder.",
            "Did you mean dataset=folder {word}? Otherwise leave it out.",
        )
    if key == "dataset.download" and dataset.embedded and dataset.download:
        return f"dataset={dataset.name} is part of a package; there is nothing to download.", "Leave it out."
    if key == "dataset.download" and dataset.name == "folder" and dataset.download:
        return "dataset=folder reads images of your own; there is nothing to download.", "Leave it out."
    if key.startswith("teacher.recipe.") and not config.teacher.train:
        return "the teacher is not trained.", "Add teacher.train=true, or leave it out."
    if key.startswith("slurm.") and config.hardware.name != "slurm":
        return f"slurm. is read with hardware=slurm only, and hardware is {config.hardware.name}.", "Leave it out."
    above, _, last = key.rpartition(".")
    recipe = recipes.get(above)
    if recipe is not None and last in ("decay_at", "decay_rate") and recipe.schedule != "step":
        return (
            f"it belongs to the step schedule, and {above}.schedule is {recipe.schedule}.",
            f"Add {above}.schedule=step, or leave it out.",
        )
    if recipe is not None and last == "min_lr" and recipe.schedule == "constant" and recipe.min_lr:
        return f"{above}.schedule=constant keeps lr after the warm-up.", "Leave it out, or choose another schedule."
    return None
