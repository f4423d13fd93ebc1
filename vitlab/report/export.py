"""The trained network as files for others, each compared with the network in memory before it counts.

``safetensors`` is the model artifact (``model.safetensors`` + ``model.json``, for :func:`vitlab.load_model`);
``onnx`` is one file for any runtime, with classes, size and normalisation in its metadata.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.files import atomic_write
from vitlab.models.artifact import ModelMeta, load_model, rebuild, save_model
from vitlab.models.checkpoints import WEIGHTS_FILE
from vitlab.models.mode import evaluating

if TYPE_CHECKING:
    import onnx

ONNX_FILE = "model.onnx"
ONNX_NEEDS = ("onnx", "onnxruntime", "onnxscript")
ONNX_LIMIT = 2**31 - 2**24
"""Bytes of weights that still fit one ONNX file: protobuf stops at 2 GiB, and the graph needs a little."""


class Exported(TypedDict):
    """One file that was written."""

    format: str
    path: str
    bytes: int
    max_diff: float  # largest |exported - torch| of a logit over the sample images


def export(
    model: nn.Module, meta: ModelMeta, folder: Path, formats: Sequence[str], sample: Tensor, tolerance: float
) -> list[Exported]:
    """Write ``model`` into ``folder`` in each of ``formats`` ("safetensors", "onnx").

    Args:
        model: the trained network, on any device; it is not changed.
        meta: its description.
        folder: where the files go.
        formats: what to write, in this order.
        sample: real images [B, 3, size, size] with B >= 3, normalised, on which the logits are compared.
        tolerance: largest allowed difference of a logit.

    Raises:
        UserError: an unknown format, a missing package, a network too large for one ONNX file, or logits that differ
            by more than ``tolerance``.
        ValueError: fewer than three sample images.
    """
    writers: dict[str, Callable[[nn.Module, ModelMeta, Path, Tensor, float], Exported]] = {
        "safetensors": _export_safetensors,
        "onnx": _export_onnx,
    }
    if unknown := [name for name in formats if name not in writers]:
        raise UserError(
            f"export.formats has '{unknown[0]}', which vitlab cannot write.", f"It writes {', '.join(writers)}."
        )
    if len(sample) < 3:
        raise ValueError(f"logits are compared at batch 1 and 3, so three images are needed, not {len(sample)}")
    return [writers[name](model, meta, folder, sample, tolerance) for name in formats]


def _export_safetensors(model: nn.Module, meta: ModelMeta, folder: Path, sample: Tensor, tolerance: float) -> Exported:
    save_model(folder, model, meta)
    device = next(model.parameters()).device
    difference = _compare("safetensors", load_model(folder).to(device), model, sample.to(device), tolerance)
    path = folder / WEIGHTS_FILE
    return {"format": "safetensors", "path": str(path), "bytes": path.stat().st_size, "max_diff": difference}


def _export_onnx(model: nn.Module, meta: ModelMeta, folder: Path, sample: Tensor, tolerance: float) -> Exported:
    if missing := [name for name in ONNX_NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"The ONNX export needs {' and '.join(missing)}, not installed here.",
            f"pip install {' '.join(ONNX_NEEDS)}, or leave onnx out of export.formats.",
        )
    # A network of its own: tracing sees no hooks, wrappers or cached tables of the one that was trained.
    clean = rebuild(meta, {name: value.detach().cpu() for name, value in model.state_dict().items()})
    sample = sample.cpu().float()
    content = _to_onnx(clean, meta, sample)
    difference = _compare("ONNX", _onnx_session(content), clean, sample, tolerance)
    atomic_write(folder / ONNX_FILE, content)
    return {"format": "onnx", "path": str(folder / ONNX_FILE), "bytes": len(content), "max_diff": difference}


def _to_onnx(model: nn.Module, meta: ModelMeta, sample: Tensor) -> bytes:
    """The network as an ONNX file: ``image`` [batch, 3, size, size] float32 -> ``logits`` [batch, classes]."""
    weights = sum(value.nbytes for value in model.state_dict().values())
    if weights > ONNX_LIMIT:
        raise UserError(
            f"'{meta.name}' has {weights / 2**30:.1f} GiB of weights; one ONNX file holds 2 GiB.",
            "Leave onnx out of export.formats.",
        )
    with _quiet(), evaluating(model):
        program = torch.onnx.export(
            model,
            (sample[:2].clone(),),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:  # torch's signature allows it for the exporter that is not used here
        raise RuntimeError("torch.onnx.export returned no program")
    proto: onnx.ModelProto = program.model_proto
    for key, value in _onnx_metadata(meta).items():
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString()
    return content


def _onnx_metadata(meta: ModelMeta) -> dict[str, str]:
    """What a runtime must know besides the graph; lists are JSON."""
    return {
        "input": "RGB image in [0, 1], minus mean, divided by std, float32 [batch, 3, size, size]",
        "classes": json.dumps(meta.classes, ensure_ascii=False),
        "size": str(meta.size),
        "mean": json.dumps(meta.mean),
        "std": json.dumps(meta.std),
        "crop_pct": str(meta.crop_pct),
        "interpolation": meta.interpolation,
        "model": meta.name,
        "method": meta.method,
        "origin": meta.origin,
        "licence": meta.licence,
        "vitlab": meta.vitlab,
    }


def _onnx_session(content: bytes) -> Callable[[Tensor], Tensor]:
    """The file as a function from images to logits, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"image": image.numpy()})
        return torch.from_numpy(logits)

    return run


def _compare(
    name: str, exported: Callable[[Tensor], Tensor], model: nn.Module, sample: Tensor, tolerance: float
) -> float:
    """Largest difference of a logit at batch 1, 3 and all of ``sample``."""
    with evaluating(model):
        differences = [exported(sample[:batch]) - model(sample[:batch]) for batch in (1, 3, len(sample))]
    difference = float(torch.cat(differences).abs().max())  # NaN if there is one
    if not difference <= tolerance:  # not >, so that NaN is refused
        raise UserError(
            f"Logits of the {name} export differ from torch's by {difference:.2g}; export.tolerance allows "
            f"{tolerance:.2g}.",
            "The trained model itself is safe. Raise export.tolerance if that is small for your use, or leave the "
            "format out of export.formats.",
        )
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress lines, warnings and log records from the screen; errors are raised anyhow."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
