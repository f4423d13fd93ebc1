"""One command line, composed and checked: what the modes and the launcher are given."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vitlab.config.catalogue import GROUPS, RESULT_FREE, RESULT_FREE_KEYS, top_level_key
from vitlab.config.tree import Config


@dataclass
class Composed:
    """One command line, composed and checked."""

    config: Config  # plain dataclasses, all the way down
    choices: dict[str, str | None]  # every group (also mounted ones, recipe@teacher.recipe) and the choice in force
    chosen: set[str]  # groups that the prompt named, by a choice (model=x) or by a key (model.name=x)
    overrides: list[str]  # the words at the prompt, as typed
    tree: dict[str, Any]  # the configuration as plain dicts, lists and scalars
    changed: dict[str, Any]  # leaves that differ from what the choices alone give, by dotted key
    usual: dict[str, Any]  # what those leaves are without the change
    read: set[str]  # groups that some stage of the method, or the mode, reads

    @property
    def network(self) -> str:
        """What the model is called in the names of runs: its choice, or the timm name that was typed instead."""
        named = "model.name" in self.changed
        return re.sub(r"[^\w.+-]+", "-", self.config.model.name) if named else str(self.choices["model"])

    def identity(self) -> dict[str, Any]:
        """What names a run: the choices and the changed leaves that can change its results."""

        def matters(key: str) -> bool:
            if key.rpartition(".")[2] in RESULT_FREE_KEYS:
                return False
            return top_level_key(key) not in RESULT_FREE and (
                top_level_key(key) in self.read or top_level_key(key) not in GROUPS
            )

        choices = {group: choice for group, choice in sorted(self.choices.items()) if matters(group)}
        changed = {key: value for key, value in sorted(self.changed.items()) if matters(key)}
        return {"choices": choices, "changed": changed}
