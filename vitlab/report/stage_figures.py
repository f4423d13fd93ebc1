"""Figures that a stage of the method drew itself: ``figures.json`` in its folder names them for the report.

The file is a list of ``{"file": "structure.png", "title": ..., "caption": ...}``; a figure ``NAME.png`` may have a
version ``NAME_dark.png`` beside it. The report shows them in a section of their own, in the order of the stages.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from vitlab.errors import DamagedError
from vitlab.files import read_json, write_json
from vitlab.report.pieces import Picture
from vitlab.report.style import DPI

RECORD = "figures.json"


def name_figures(folder: Path, figures: Sequence[tuple[str, str, str]]) -> None:
    """Name the figures of a stage's ``folder`` for the report.

    Args:
        figures: file, title and caption of each.
    """
    write_json(folder / RECORD, [dict(zip(("file", "title", "caption"), one, strict=True)) for one in figures])


def stage_pictures(run: Path, stages: Sequence[str]) -> list[Picture]:
    """The figures of the stages of a run, those whose file is there.

    Raises:
        DamagedError: ``figures.json`` is not what :func:`name_figures` wrote.
    """
    found = []
    for stage in stages:
        path = run / stage / RECORD
        for one in read_json(path, list) if path.is_file() else []:
            try:
                name, title, caption = str(one["file"]), str(one["title"]), str(one["caption"])
            except (KeyError, TypeError) as error:
                raise DamagedError(path, repr(error), "mode=report goes on without it once it is deleted.") from None
            file = path.parent / Path(name).name
            if not file.is_file():
                continue
            light = file.read_bytes()
            dark = file.with_stem(f"{file.stem}_dark")
            width, height = (int.from_bytes(light[at : at + 4], "big") * 96 // DPI for at in (16, 20))
            uris = (data_uri(light), data_uri(dark.read_bytes() if dark.is_file() else light))
            found.append(Picture("method", f"{stage}/{file.name}", title, caption, *uris, width, height))
    return found


def data_uri(image: bytes) -> str:
    """A PNG inside a page."""
    return "data:image/png;base64," + base64.b64encode(image).decode()
