"""``mode=convert method=nvit``: an official checkpoint becomes a model folder."""

from __future__ import annotations

from pathlib import Path

from vitlab.config.composed import Composed
from vitlab.errors import UserError

MEANING = "an official NViT checkpoint to a model folder: input=FILE method.convert_to=FOLDER"
READS = ("method", "input")


def answer(composed: Composed) -> int:
    """Convert the checkpoint ``input=`` into the folder ``method.convert_to`` and print its structure.

    Raises:
        UserError: no file or no folder to write to; no checkpoint of NViT.
    """
    config = composed.config
    target = config.method.convert_to
    if not isinstance(config.input, str) or target is None:
        raise UserError(
            "mode=convert method=nvit needs a checkpoint and a folder.", "Give input=FILE method.convert_to=FOLDER."
        )
    into, path = Path(target).expanduser(), Path(config.input).expanduser()
    if into.exists() and any(into.iterdir()):
        raise UserError(f"method.convert_to={target} is not empty.", "Name a new folder.")
    from vitlab.models.nvit_weights import read_official

    found = read_official(path)
    into.mkdir(parents=True, exist_ok=True)
    found.save(into, origin=path.name)
    print(found.structure)
    folded = f"; token factors folded in blocks {', '.join(map(str, found.folded))}" if found.folded else ""
    print(f"{into}: {sum(value.numel() for value in found.state.values()):,} parameters{folded}")
    return 0
