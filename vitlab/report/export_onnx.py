"""ONNX: one file for any runtime, with classes, size and normalisation in its metadata; also with 8-bit weights."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.files import atomic_write, readable_json
from vitlab.models.artifact import ModelMeta
from vitlab.models.eval_mode import eval_mode
from vitlab.report.export_card import crop_of
from vitlab.report.export_check import Exported, Test, compare, quiet
from vitlab.report.export_formats import ONNX_NEEDS
from vitlab.report.task import ReportTask

if TYPE_CHECKING:
    import onnx

ONNX_FILE, INT8_FILE = "model.onnx", "model-int8.onnx"
ONNX_LIMIT = 2**31 - 2**24
"""Bytes of weights that still fit one ONNX file: protobuf stops at 2 GiB, and the graph needs a little."""


def export_onnx(
    content: bytes, model: nn.Module, folder: Path, sample: Tensor, tolerance: float, task: ReportTask
) -> Exported:
    """Write :func:`to_onnx`'s ``content`` as ``model.onnx``, checked in onnxruntime against ``model`` on the CPU."""
    difference = compare("ONNX", onnx_session(content, task), model, sample, tolerance)
    atomic_write(folder / ONNX_FILE, content)
    return {"format": "onnx", "path": str(folder / ONNX_FILE), "bytes": len(content), "max_diff": difference}


def require_labelled(test: Test | None) -> Test:
    """The labelled images on which an inexact export is measured.

    Raises:
        UserError: there are none.
    """
    if test is None:
        raise UserError(
            "What 8-bit weights cost is measured on labelled images, and the model belongs to no data set.",
            "Name it: dataset=NAME, or leave onnx_int8 out of export.formats.",
        )
    return test


def export_int8(
    content: bytes,
    model: nn.Module,
    meta: ModelMeta,
    folder: Path,
    sample: Tensor,
    test: Test | None,
    task: ReportTask,
) -> Exported:
    """Write ``model-int8.onnx``: onnxruntime's dynamic quantisation of the linear layers, and measure what it costs.

    Weights are stored as 8-bit integers, one scale for each output channel; activations are quantised as they come, by
    their range in the batch. Convolutions stay in float: onnxruntime's integer convolution is slower on CPUs.

    Raises:
        UserError: there are no labelled images to measure on, or there is no linear layer to make smaller.
    """
    test = require_labelled(test)
    small = quantised(content)
    if len(small) > 0.97 * len(content):
        raise UserError(
            f"Dynamic quantisation makes the network no smaller ({len(content):,} to {len(small):,} bytes): it has "
            "almost no linear layers.",
            "Leave onnx_int8 out of export.formats.",
        )
    run = onnx_session(small, task)
    with eval_mode(model):
        found = task.agreement(run, model, test(), meta.fitted)
    difference = compare("int8", run, model, sample, float("inf"))
    atomic_write(folder / INT8_FILE, small)
    note = f"{found}; {len(content) / len(small):.1f} times smaller than ONNX in float"
    path = str(folder / INT8_FILE)
    return {"format": "onnx_int8", "path": path, "bytes": len(small), "max_diff": difference, "note": note}


def quantised(content: bytes) -> bytes:
    """An ONNX file with its linear layers in 8 bits; metadata stay."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="vitlab-int8-") as name, quiet():
        target = Path(name) / INT8_FILE
        quantize_dynamic(
            onnx.load_from_string(content),
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
        return target.read_bytes()


def require_onnx() -> None:
    """Refuse early where a package is missing.

    Raises:
        UserError: naming it.
    """
    if missing := [name for name in ONNX_NEEDS if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"The ONNX export needs {' and '.join(missing)}, not installed here.",
            f"pip install {' '.join(ONNX_NEEDS)}, or leave onnx out of export.formats.",
        )


def to_onnx(model: nn.Module, meta: ModelMeta, sample: Tensor, task: ReportTask) -> bytes:
    """The network as an ONNX file: ``image`` [batch, 3, H, W] float32 -> the task's outputs (``logits`` [batch,
    classes]).

    Raises:
        UserError: a package is missing, or the network is too large for one file.
    """
    require_onnx()
    weights = sum(value.nbytes for value in model.state_dict().values())
    if weights > ONNX_LIMIT:
        raise UserError(
            f"'{meta.name}' has {weights / 2**30:.1f} GiB of weights; one ONNX file holds 2 GiB.",
            "Leave onnx out of export.formats.",
        )
    with quiet(), eval_mode(model):
        program = torch.onnx.export(
            model,
            (sample[:2].clone(),),
            input_names=["image"],
            output_names=list(task.outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:  # torch's signature allows it for the exporter that is not used here
        raise RuntimeError("torch.onnx.export returned no program")
    proto: onnx.ModelProto = program.model_proto
    for key, value in (onnx_metadata(meta) | task.export_metadata(meta.fitted)).items():
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString()
    return content


def onnx_metadata(meta: ModelMeta) -> dict[str, str]:
    """What a runtime must know besides the graph; lists are JSON, also a size that is no square: [height, width].

    :data:`vitlab.report.snippets.ONNX_CODE` reads them.
    """
    shape = "size, size" if isinstance(meta.size, int) else "height, width"
    return {
        "input": f"RGB image in [0, 1], minus mean, divided by std, float32 [batch, 3, {shape}]",
        "classes": readable_json(meta.classes),
        "size": json.dumps(meta.size),
        "mean": json.dumps(meta.mean),
        "std": json.dumps(meta.std),
        "crop": crop_of(meta),  # what auto means
        "crop_pct": str(meta.crop_pct),
        "interpolation": meta.interpolation,
        "model": meta.name,
        "method": meta.method,
        "origin": meta.origin,
        "licence": meta.licence,
        "vitlab": meta.vitlab,
    }


def onnx_session(content: bytes, task: ReportTask) -> Callable[[Tensor], Tensor]:
    """The file as a function from images to logits, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        (logits,) = session.run(list(task.outputs), {"image": image.numpy()})
        return torch.from_numpy(logits)

    return run
