"""The model artifact: ``model.safetensors`` + ``model.json``, which suffice to use a network without its training run.

The weights file is written first and the description last; the description contains the SHA-256 of the weights, so that
a folder whose two files do not belong together is refused.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import timm
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

import vitlab.models  # noqa: F401  (registers vitlab's own networks with timm)
from vitlab.errors import UserError
from vitlab.files import atomic_write, sha256
from vitlab.models.checkpoints import WEIGHTS_FILE
from vitlab.models.finite import list_first, non_finite
from vitlab.run.model_file import META_FILE, ModelMeta, as_json, read_meta, write_meta, write_metrics

__all__ = ["ModelMeta", "as_json", "build_from_meta", "load_model", "read_meta", "save_model", "write_metrics"]


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
    write_meta(folder, meta)
    return meta


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
