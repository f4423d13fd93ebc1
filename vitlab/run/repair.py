"""Small records of a run that were damaged (a power failure, a bad disk, an editor): what can be made again is.

The weights and stores are the result of the training; markers and tables follow from them. A damaged marker is moved
aside, never deleted, and what it records is made again by the command that locks the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vitlab.errors import DamagedError, UserError
from vitlab.files import atomic_write, read_json, sha256, write_json
from vitlab.run.environment import now
from vitlab.run.model_file import META_FILE, is_unchanged, read_meta
from vitlab.run.recorder import parse_row

ASIDE = ".damaged"
"""Suffix of a damaged record that was moved aside."""

MEASURED: dict[str, dict[str, type]] = {
    "evaluation": {"metrics": dict, "result": str},
    "benchmark": {"costs": dict},
    "export": {"files": list},
}
"""Steps after the training, with what their ``done.json`` must hold; each is made again where that is damaged."""


def read_marker(path: Path) -> dict[str, Any]:
    """The content of a ``done.json`` or ``finished.json``.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is not what vitlab wrote.
    """
    cure = "The command that trained the run, given again, makes it anew."
    try:
        record: dict[str, Any] = read_json(path, dict)
    except DamagedError as error:
        raise DamagedError(path, error.why, cure) from None
    kinds: dict[str, type] = {"time": str} if path.name == "finished.json" else MEASURED.get(path.parent.name, {})
    if path.name == "done.json" and path.parent.name not in MEASURED:
        kinds = {"stage": str}
    if wrong := [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]:
        raise DamagedError(path, f"it lacks {', '.join(wrong)}", cure)
    return record


def repair_records(folder: Path) -> Iterator[str]:
    """Make the records of a locked run readable again; a line for each one that was not."""
    yield from _rows(folder / "metrics.jsonl")
    for name in ("commands.jsonl", "environment.jsonl"):
        yield from _objects(folder / name)
    for path in (folder / "finished.json", *sorted(folder.glob("*/done.json"))):
        try:
            read_marker(path)
        except DamagedError as error:
            yield from _marker(path, error.why)
        except FileNotFoundError:
            continue
    for path in sorted((folder / "evaluation").glob("*.json")):
        if path.name != "done.json" and (why := _why(path, list if path.stem in _LISTS else dict)):
            aside(path)
            done = path.with_name("done.json")
            if done.exists():
                aside(done)
            yield f"{path} was damaged ({why}); the models are evaluated again"
    if why := _why(folder / "images.json", dict):
        aside(folder / "images.json")
        yield f"{folder / 'images.json'} was damaged ({why}); the images are recorded as they are now"


_LISTS = ("mistakes", "comparisons")


def _why(path: Path, kind: type) -> str:
    try:
        read_json(path, kind)
    except FileNotFoundError:
        return ""
    except DamagedError as error:
        return error.why
    return ""


def _marker(path: Path, why: str) -> Iterator[str]:
    stage = path.parent
    aside(path)
    if path.name == "finished.json":
        yield f"{path} was damaged ({why}); the run is finished again from its files"
    elif stage.name in MEASURED:
        yield f"{path} was damaged ({why}); the {stage.name} is made again"
    elif model_is_intact(stage):
        note = f"The record of stage {stage.name} was damaged: its steps and seconds are not known."
        write_json(path, {"stage": stage.name, "time": now(), "notes": [note]})
        yield f"{path} was damaged ({why}); the model beside it is intact, its steps and seconds are lost"
    else:
        yield f"{path} was damaged ({why}); stage {stage.name} continues from its own files"


def model_is_intact(folder: Path) -> bool:
    """Whether ``folder`` holds a model whose description is as it was written, and whose weights it names."""
    try:
        described = read_json(folder / META_FILE, dict)
        return is_unchanged(described) and bool(sha256(folder / "model.safetensors") == described.get("sha256"))
    except (OSError, DamagedError):
        return False


def refuse_lost_models(folder: Path) -> None:
    """Refuse to pass for finished where the weights of a finished stage are gone or others.

    Raises:
        UserError: naming the file, and how to get it back.
    """
    for done in sorted(folder.glob("*/done.json")):
        stage = done.parent
        measured = (folder / "evaluation" / f"{stage.name}.json").exists()
        if not (stage / "model.json").exists() and not measured:  # of another kind, or loaded and not kept
            continue
        weights = stage / "model.safetensors"
        missing = next((path for path in (stage / "model.json", weights) if not path.is_file()), None)
        if missing is None and model_is_intact(stage):
            continue
        if missing is None:
            read_meta(stage)  # raises where it is the description that was changed
        what = (
            f"{missing} is missing" if missing is not None else f"{weights} is not the file that model.json describes"
        )
        raise UserError(
            f"Stage {stage.name} of this run is finished, but {what}.",
            f"Restore it from a copy; or move {stage} away, and the stage is trained again.",
        )


def lost_files(folder: Path) -> list[str]:
    """Exported files and the report of a finished run that are gone."""
    paths = [folder / "report.html"] if (folder / "report.json").exists() else []
    with contextlib.suppress(FileNotFoundError, DamagedError):
        for file in read_marker(folder / "export" / "done.json")["files"]:
            parts = Path(str(file["path"])).parts
            start = len(parts) - 1 - parts[::-1].index("export") if "export" in parts else 0
            paths.append(folder.joinpath(*parts[start:]))
    return [str(path) for path in paths if not path.exists()]


def relocated(table: str, record: Mapping[str, Any], folder: Path) -> str:
    """The final table of a run with the paths below its folder as it is called now.

    Args:
        record: of ``finished.json``. Earlier versions did not note the folder; the line on the report names it.
    """
    line = re.search(r"^report +(.+)/report\.html$", table, re.MULTILINE)
    line = line or re.search(rf"^\w+ +(.*{re.escape(folder.name)})/", table, re.MULTILINE)  # a design has no report
    before = str(record.get("folder") or (line[1] if line else folder))
    return re.sub(rf"(?<=\s){re.escape(before)}(?=/)", lambda _: str(folder), table)


def _rows(path: Path) -> Iterator[str]:
    """Drop the lines of ``metrics.jsonl`` that are no rows."""
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")[:-1]
    kept = [line for line in lines if parse_row(line) is not None]
    if len(kept) < len(lines):
        _copy_aside(path)
        atomic_write(path, b"".join(line + b"\n" for line in kept))
        yield f"{path}: {len(lines) - len(kept)} damaged line(s) left out; a copy is beside it"


def _objects(path: Path) -> Iterator[str]:
    """Drop the lines of a ``.jsonl`` file that are no objects."""
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    kept = [line for line in lines if _is_object(line)]
    if len(kept) < len([line for line in lines if line]):
        _copy_aside(path)
        atomic_write(path, b"".join(line + b"\n" for line in kept))
        yield f"{path}: damaged lines left out; a copy is beside it"


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _free(path: Path) -> Path:
    number, free = 1, path.with_name(path.name + ASIDE)
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}{ASIDE}-{number}")
    return free


def first_start(folder: Path) -> str:
    """Time of the first command in ``commands.jsonl``, ISO 8601; "" where it is not known."""
    try:
        with open(folder / "commands.jsonl", "rb") as file:
            return str(json.loads(file.readline())["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def aside(path: Path) -> None:
    """Move a damaged record beside its place."""
    os.rename(path, _free(path))


def _copy_aside(path: Path) -> None:
    atomic_write(_free(path), path.read_bytes())
