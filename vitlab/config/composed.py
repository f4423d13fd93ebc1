"""The composed and checked configuration of one command line, for the modes and the launcher."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from vitlab.config.catalogue import GROUPS, RESULT_FREE, RESULT_FREE_KEYS, top_level_key
from vitlab.config.tree import Config


@dataclass
class Composed:
    """The composed and checked configuration of one command line."""

    config: Config  # plain dataclasses
    choices: dict[str, str | None]  # choice of every group, also mounted ones (recipe@teacher.recipe)
    chosen: set[str]  # groups given on the command line, by a choice (model=x) or a key (model.name=x)
    overrides: list[str]  # the overrides on the command line, as typed
    tree: dict[str, Any]  # the configuration as plain dicts, lists and scalars
    changed: dict[str, Any]  # by dotted key, values that differ from those of the choices alone
    defaults: dict[str, Any]  # the values of the choices alone, for the same keys
    read: set[str]  # groups that some stage of the method, or the mode, reads
    notes: list[str] = field(default_factory=list)  # lines for the plan: what a key has changed beside itself

    @property
    def network(self) -> str:
        """Name of the model in names of runs: its choice, or the timm name given by model.name."""
        named = "model.name" in self.changed
        return re.sub(r"[^\w.+-]+", "-", self.config.model.name) if named else str(self.choices["model"])

    def identity(self) -> dict[str, Any]:
        """Identity of a run: the choices and changed values that can change its results."""

        def matters(key: str) -> bool:
            if key.rpartition(".")[2] in RESULT_FREE_KEYS:
                return False
            return top_level_key(key) not in RESULT_FREE and (
                top_level_key(key) in self.read or top_level_key(key) not in GROUPS
            )

        choices = {group: choice for group, choice in sorted(self.choices.items()) if matters(group)}
        changed = {key: value for key, value in sorted(self.changed.items()) if matters(key)}
        return {"choices": choices, "changed": changed}
