"""The model artifact: ``model.safetensors`` + ``model.json``, which suffice to use a network without its training run.

The weights file is written first and the description last; the description contains the SHA-256 of the weights, so that
a folder whose two files do not belong together is refused.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

import vitlab.models  # noqa: F401  (registers vitlab's own networks with timm)
from vitlab._version import __version__
from vitlab.errors import UserError
from vitlab.files import atomic_write, read_json, sha256, write_json
from vitlab.models.artifact_schema import check_meta
from vitlab.models.checkpoints import META_FILE, WEIGHTS_FILE
from vitlab.models.finite import list_first, non_finite

FORMAT = 1
"""Version of ``model.json``; raised when an older reader could misunderstand a newer file."""

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
    crop: str = "auto"  # center, squash (resize both sides), or auto: squash where crop_pct is 1
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


def save_model(folder: Path, model: nn.Module, meta: ModelMeta, state: dict[str, Tensor] | None = None) -> ModelMeta:
    """Write ``model``'s weights and ``meta`` into ``folder``; an artifact already there is replaced.

    Args:
        state: the weights, where ``model`` itself has only a shard of them; None: its state dict.

    Returns:
        ``meta`` with the hash of the weights filled in.

    Raises:
        ValueError: ``meta`` names another number of classes than the network has logits.
        UserError: a weight is not finite; nothing is written.
    """
    logits = getattr(model, "num_classes", len(meta.classes))
    if logits != len(meta.classes):
        raise ValueError(f"{len(meta.classes)} class names for a network with {logits} logits")
    # Copies: safetensors refuses views and shared memory, and a network on a device is saved as one on the CPU.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in (state or model.state_dict()).items()}
    if names := non_finite(model, state):
        raise UserError(
            f"The weights of '{meta.name}' for {folder} are not finite ({list_first(names)}); no model was written.",
            "Lower the learning rate, or start from other weights.",
        )
    weights = save_bytes(state, metadata={"format": "pt"})
    meta = dataclasses.replace(meta, sha256=sha256(weights))
    atomic_write(folder / WEIGHTS_FILE, weights)
    write_json(folder / META_FILE, {"format": FORMAT, **as_json(meta)})
    return meta


def write_metrics(folder: Path, metrics: dict[str, Any], fitted: dict[str, Any]) -> None:
    """Write ``metrics`` and the parameters ``fitted`` by an evaluation into ``model.json`` of a model folder, in one
    atomic step; its other keys stay."""
    path = folder / META_FILE
    stored = {name: value for name, value in read_json(path).items() if name != "fitted"}
    write_json(path, {**stored, "metrics": metrics, **({"fitted": fitted} if fitted else {})})


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
    return ModelMeta(**stored)


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def load_model(folder: str | Path) -> nn.Module:
    """Rebuild the network of a model folder, in eval mode, with its description as ``.meta`` (a :class:`ModelMeta`).

    Its logits [B, classes] for an image [B, 3, H, W], normalised with ``meta.mean`` and ``meta.std``, are those
    of the network that was saved, bit for bit on the same machine.

    Raises:
        UserError: files missing, not belonging together, or of an architecture that is not registered here.
    """
    folder = Path(folder).expanduser()
    meta = read_meta(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"'{folder}' has no {WEIGHTS_FILE}.", "Copy the folder again.")
    weights = path.read_bytes()  # once: the bytes that are hashed are those that are loaded
    if sha256(weights) != meta.sha256:
        raise UserError(
            f"{WEIGHTS_FILE} in '{folder}' is not the file that {META_FILE} describes (other SHA-256).",
            "Copy both files again, or run the stage that makes them once more.",
        )
    try:
        state = load_bytes(weights)
    except SafetensorError as error:  # model.json may have been made for such a file
        raise UserError(f"'{path}' is not a readable safetensors file ({error}).", "Copy it again.") from error
    return build_from_meta(meta, state)


def build_from_meta(meta: ModelMeta, state: dict[str, Tensor]) -> nn.Module:
    """The network that ``meta`` describes with the weights ``state``: on the CPU, in eval mode, with ``.meta``.

    Raises:
        UserError: an architecture that is not registered with timm here, or weights that are not finite.
    """
    if not timm.is_model(meta.name.partition(".")[0]):
        raise UserError(f"timm {timm.__version__} has no model '{meta.name}' (model.json).", "Update timm.")
    try:
        model = timm.create_model(meta.name, pretrained=False, num_classes=len(meta.classes), **meta.args)
        model.load_state_dict(state)
    except Exception as error:  # of any kind, from timm's many constructors
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"The network of {META_FILE} ('{meta.name}', {meta.args}) cannot be built with its weights: {reason}",
            "Copy the folder again, or use the timm version that it was made with.",
        ) from error
    if names := non_finite(model):
        raise UserError(
            f"The model '{meta.name}' has weights that are not finite ({list_first(names)}).",
            "Use another one: the training that made it diverged.",
        )
    model.eval()
    model.meta = meta  # type: ignore[assignment]  # torch types an attribute as a Tensor or a Module
    return model
