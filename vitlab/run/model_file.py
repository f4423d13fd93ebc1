"""``model.json``, the description beside a model's weights: how to rebuild the network, its input, its classes.

No torch: the command line reads it to know what a folder holds. Its last key is a digest over the others, so that a
file that was damaged or edited is noticed; files of earlier versions have none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitlab._version import __version__
from vitlab.errors import UserError
from vitlab.files import read_json, sha256, write_json
from vitlab.run.identity import as_json as plain
from vitlab.run.identity import canonical
from vitlab.run.model_schema import check_meta

META_FILE = "model.json"

FORMAT = 1
"""Version of ``model.json``; raised when an older reader could misunderstand a newer file."""

DIGEST = "digest"
"""Key of the SHA-256 (hex) over all other keys and values; independent of spaces and the order of keys."""

REMOVED: dict[str, Any] = {"surgeries": []}
"""Keys that earlier versions wrote, with the neutral value at which a reader drops them."""


@dataclass
class ModelMeta:
    """The content of ``model.json``: how to rebuild the network, its input, the meaning of its logits, its origin."""

    name: str  # timm's name of the architecture
    args: dict[str, Any]  # arguments of timm.create_model, without num_classes
    classes: list[str]  # in the order of the logits
    size: int | list[int]  # side of the input in pixels, or [height, width]
    mean: list[float]  # per channel, of images in [0, 1]
    std: list[float]
    crop_pct: float = 1.0  # resize the short side to size/crop_pct, then centre crop; 1.0: see crop
    interpolation: str = "bicubic"
    crop: str = "auto"  # center, squash, squash_crop, or auto: squash where crop_pct is 1; see EvalView
    origin: str = ""  # where the weights started, e.g. timm's tag or a file's name; empty: from scratch
    licence: str = ""  # of the weights it started from
    method: str = ""  # what trained it
    metrics: dict[str, Any] = field(default_factory=dict)  # measured: figures, and dataset, split, images, date
    vitlab: str = __version__  # the version that wrote it
    sha256: str = ""  # of model.safetensors; filled in when saved
    task: str = "classification"  # what the logits mean: the name of a task
    fitted: dict[str, Any] = field(default_factory=dict)  # by an evaluation, for predictions: thresholds by class


def as_json(meta: ModelMeta) -> dict[str, Any]:
    """``meta`` as written to ``model.json``; fields added in later versions are left out at their defaults."""
    value = dataclasses.asdict(meta)
    # The bytes of a classification model are then those that earlier versions wrote, and they can read it.
    for item in dataclasses.fields(meta):
        if item.name in ("task", "fitted") and value[item.name] == getattr(ModelMeta, item.name, {}):
            del value[item.name]
    return value


def write_meta(folder: Path, meta: ModelMeta) -> None:
    """Write ``model.json`` of a model folder."""
    _write(folder / META_FILE, {"format": FORMAT, **as_json(meta), DIGEST: ""})


def write_metrics(folder: Path, metrics: dict[str, Any], fitted: dict[str, Any]) -> None:
    """Write ``metrics`` and the parameters ``fitted`` by an evaluation into ``model.json`` of a model folder, in one
    atomic step; its other keys stay.

    Raises:
        UserError: as :func:`read_meta`.
    """
    read_meta(folder)  # a file that was changed must not get a new digest
    stored = {name: value for name, value in read_json(folder / META_FILE).items() if name != "fitted"}
    digest = {DIGEST: stored.pop(DIGEST)} if DIGEST in stored else {}  # last, as in a new file
    _write(folder / META_FILE, {**stored, "metrics": metrics, **({"fitted": fitted} if fitted else {}), **digest})


def _write(path: Path, value: dict[str, Any]) -> None:
    value = plain(value)  # as it is read back, since the digest is of that
    write_json(path, {**value, DIGEST: digest_of(value)} if DIGEST in value else value)


def digest_of(stored: Mapping[str, Any]) -> str:
    """The digest of the content of a ``model.json``; :data:`DIGEST` itself does not count."""
    return sha256(canonical({name: value for name, value in stored.items() if name != DIGEST}).encode())


def is_unchanged(stored: Mapping[str, Any]) -> bool:
    """Whether the content of a ``model.json`` has the digest that was written with it, or has none."""
    return DIGEST not in stored or stored[DIGEST] == digest_of(stored)


def read_meta(folder: Path) -> ModelMeta:
    """Read the description of a model folder; fields that are newer than the file have their defaults.

    Raises:
        UserError: not a model folder, damaged, or written by a newer vitlab.
    """
    path = folder / META_FILE
    if not path.is_file():
        raise UserError(f"'{folder}' is not a model folder: it has no {META_FILE}.", "Give the folder that holds both.")
    try:
        stored = read_json(path)
        if not isinstance(stored, dict):
            raise ValueError(f"a {type(stored).__name__} instead of an object")
    except (ValueError, RecursionError) as error:  # of JSON nested thousands deep
        raise UserError(f"'{path}' is damaged ({error}).", "Copy the folder again.") from error
    if surgeries := stored.get("surgeries"):  # today a modified network is a registered timm name with arguments
        listed = surgeries if isinstance(surgeries, list) else [surgeries]
        kinds = ", ".join(str(one.get("kind") if isinstance(one, dict) else one) for one in listed)
        raise UserError(
            f"'{path}': the model needs surgeries that this vitlab cannot do: {kinds}.", "Use a newer vitlab."
        )
    unchanged = is_unchanged(stored)
    stored.pop(DIGEST, None)
    version = stored.pop("format", None)
    stored = {key: value for key, value in stored.items() if key not in REMOVED or value != REMOVED[key]}
    known = {item.name for item in dataclasses.fields(ModelMeta)}
    if version != FORMAT or not known.issuperset(stored):
        raise UserError(
            f"'{path}' has format {version} (vitlab {stored.get('vitlab', 'unknown')}); this vitlab {__version__} "
            f"reads format {FORMAT}.",
            "Use the vitlab that wrote it, or a newer one.",
        )
    required = {item.name for item in dataclasses.fields(ModelMeta) if _is_required(item)}
    if absent := sorted(required.difference(stored)):
        raise UserError(f"'{path}' lacks {', '.join(absent)}.", "Copy the folder again.")
    if wrong := check_meta(stored):
        raise UserError(f"'{path}' is damaged: {wrong}.", "Copy the folder again.")
    if not unchanged:
        raise UserError(
            f"'{path}' was changed since it was written: its {DIGEST} is that of another content.",
            f'Copy the folder again; if you changed it on purpose, remove the line "{DIGEST}" from it.',
        )
    return ModelMeta(**stored)


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
