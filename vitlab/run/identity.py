"""Identity of a run: which of the folders that exist belong to a configuration, and how configurations differ."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from vitlab.config.catalogue import RESULT_FREE, RESULT_FREE_KEYS
from vitlab.errors import UserError
from vitlab.files import read_json

FORMAT = 1
"""Version of the folder's layout."""

_SHOWN = 12  # changed keys that an error message lists before it counts the rest


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """Dotted keys that can change the result and differ: key → (old, new) as JSON; "absent" where there is none."""
    before, after = _leaves(old), _leaves(new)
    return {
        key: (before.get(key, "absent"), after.get(key, "absent"))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def siblings_of(home: Path, stem: str) -> list[tuple[int, Path]]:
    """Runs named ``stem``, ``stem-2``, ``stem-3``, ... by number."""
    found = []
    for folder in home.glob(f"{stem}*"):
        match = re.fullmatch(re.escape(stem) + r"(?:-(\d+))?", folder.name)
        if match and (folder / "run.json").exists():
            found.append((int(match[1] or 1), folder))
    return sorted(found)


def runs_of(home: Path, prefix: str) -> list[Path]:
    """All runs of a prefix, the youngest last."""
    born = {marker.parent: read_record(marker.parent) for marker in home.glob(f"{prefix}-*/run.json")}
    return sorted((run for run in born if born[run]["prefix"] == prefix), key=lambda run: str(born[run]["created"]))


def read_record(folder: Path) -> dict[str, object]:
    path = folder / "run.json"
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.", "Move the folder away to start again.") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}, which this vitlab reads.", "Move the folder away.")
    return record


def stored_tree(folder: Path) -> Mapping[str, object]:
    return tree_in(read_record(folder))


def tree_in(record: Mapping[str, object]) -> Mapping[str, object]:
    tree = record["tree"]
    assert isinstance(tree, dict)
    return tree


def _leaves(tree: Mapping[str, object], at: str = "") -> dict[str, str]:
    """Dotted key → value as JSON, for every leaf (lists and empty mappings are leaves) outside RESULT_FREE."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if not at and key in RESULT_FREE:
            continue
        if key in RESULT_FREE_KEYS:
            continue
        if isinstance(value, Mapping) and value:
            found.update(_leaves(value, f"{at}{key}."))
        else:
            found[f"{at}{key}"] = canonical(value)
    return found


def list_changes(changed: Mapping[str, tuple[str, str]]) -> str:
    shown = [f"{key}: {old} → {new}" for key, (old, new) in list(changed.items())[:_SHOWN]]
    rest = len(changed) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def as_json(value: Mapping[str, object]) -> dict[str, object]:
    """What the value will be when it is read back: tuples are lists, keys are text."""
    plain = json.loads(json.dumps(value))
    assert isinstance(plain, dict)
    return plain
