"""Identity of a run: the existing folders of a configuration, and the differences between configurations."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitlab.config.catalogue import RESULT_FREE, RESULT_FREE_KEYS
from vitlab.errors import DamagedError, UserError
from vitlab.files import read_json

FORMAT = 1
"""Version of the folder's layout."""

_SHOWN = 12  # differences that a message lists before it counts the rest


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value of every leaf of a nested mapping; lists and empty mappings are leaves."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            values.update(leaves(value, f"{prefix}{key}."))
        else:
            values[f"{prefix}{key}"] = value
    return values


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """Dotted keys that can change the result and differ: key → (old, new) as JSON; "absent" where there is none."""
    before, after = _relevant(old), _relevant(new)
    return {
        key: (before.get(key, "absent"), after.get(key, "absent"))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def _relevant(tree: Mapping[str, object]) -> dict[str, str]:
    """Dotted key → value as JSON, of the leaves that can change the result."""
    return {
        key: canonical(value)
        for key, value in leaves(tree).items()
        if key.partition(".")[0] not in RESULT_FREE and RESULT_FREE_KEYS.isdisjoint(key.split("."))
    }


def list_changes(changed: Mapping[str, tuple[str, str]]) -> str:
    """The differences as text, cut after 12 keys."""
    shown = [f"{key}: {old} → {new}" for key, (old, new) in list(changed.items())[:_SHOWN]]
    rest = len(changed) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def siblings_of(home: Path, stem: str) -> list[tuple[int, Path]]:
    """Runs in ``home`` named ``stem``, ``stem-2``, ``stem-3``, ..., with their numbers, in order."""
    runs = []
    for folder in home.glob(f"{stem}*"):
        match = re.fullmatch(re.escape(stem) + r"(?:-(\d+))?", folder.name)
        if match and (folder / "run.json").exists():
            runs.append((int(match[1] or 1), folder))
    return sorted(runs)


def runs_of(home: Path, prefix: str) -> list[Path]:
    """All runs of a prefix, in the order of their creation."""
    records: dict[Path, dict[str, object]] = {}
    for marker in home.glob(f"{prefix}-*/run.json"):
        with contextlib.suppress(UserError):  # damaged, or of another version: no run to be continued here
            records[marker.parent] = read_record(marker.parent)
    runs = (run for run in records if records[run]["prefix"] == prefix)
    return sorted(runs, key=lambda run: str(records[run]["created"]))


def read_record(folder: Path) -> dict[str, object]:
    """The content of ``run.json``.

    Raises:
        UserError: the file cannot be read, or has another format.
    """
    path = folder / "run.json"
    try:
        record: dict[str, object] = read_json(path, dict)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.", "Move the folder away to start again.") from None
    except DamagedError as error:
        raise DamagedError(path, error.why, "Restore it from a copy, or move the folder away to start again.") from None
    if record.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}, which this vitlab reads.", "Move the folder away.")
    kinds = {"format": int, "method": str, "prefix": str, "identity": dict, "tree": dict, "created": str}
    if wrong := [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]:
        cure = "Restore it from a copy, or move the folder away to start again."
        raise DamagedError(path, f"it lacks {', '.join(wrong)}", cure)
    return record


def record_damage(folder: Path) -> str:
    """Why ``run.json`` cannot be read; "" where it can."""
    try:
        read_record(folder)
    except DamagedError as error:
        return error.why
    return ""


def stored_tree(folder: Path) -> Mapping[str, object] | None:
    """The configuration of a run: of ``run.json``, or where that is damaged of ``config.yaml``, which is the same; None
    where neither can be read."""
    try:
        return tree_in(read_record(folder))
    except DamagedError:
        pass
    from omegaconf import OmegaConf  # only a damaged run needs it

    try:
        tree = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except Exception:  # of YAML, of OmegaConf, of the file system: whatever is wrong, it is no configuration
        return None
    return as_json({str(key): value for key, value in tree.items()}) if isinstance(tree, dict) else None


def tree_in(record: Mapping[str, object]) -> Mapping[str, object]:
    """The configuration in the content of ``run.json``."""
    tree = record["tree"]
    assert isinstance(tree, dict)
    return tree


def canonical(value: object) -> str:
    """``value`` as JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def as_json(value: Mapping[str, object]) -> dict[str, object]:
    """``value`` as it is read back from JSON: tuples become lists, keys become strings."""
    plain = json.loads(json.dumps(value))
    assert isinstance(plain, dict)
    return plain
