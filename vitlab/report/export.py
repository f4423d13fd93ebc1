"""The trained network as files for others, each compared with the network in memory before it counts.

=============  ======================================================================================================
safetensors    the model artifact (``model.safetensors`` + ``model.json``), for :func:`vitlab.load_model`
timm           a folder for ``timm.create_model("local-dir:...", pretrained=True)``
hub            the same with a model card, as the Hugging Face hub wants it; uploaded only with export.push
onnx           one file for any runtime, with a dynamic batch; checked in onnxruntime
onnx_int8      the same with the linear layers in 8 bits, for CPUs; its accuracy is measured
torch_export   a ``torch.export`` program, which runs in torch without vitlab or timm
=============  ======================================================================================================

README.md beside them has their input, the classes and a snippet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.files import atomic_write
from vitlab.models.artifact import ModelMeta, as_json, build_from_meta, load_model, save_model
from vitlab.models.checkpoints import WEIGHTS_FILE
from vitlab.models.eval_mode import eval_mode
from vitlab.report.export_card import Facts, export_readme, model_card
from vitlab.report.export_check import Exported, Test, compare, quiet
from vitlab.report.export_formats import FORMATS
from vitlab.report.export_onnx import (
    INT8_FILE,
    ONNX_FILE,
    export_int8,
    export_onnx,
    require_labelled,
    require_onnx,
    to_onnx,
)
from vitlab.report.export_timm import CARD_FILE, HUB_FOLDER, TIMM_FOLDER, export_hub, export_timm, non_timm_part
from vitlab.report.task import ReportTask

__all__ = ["Exported", "export"]

PROGRAM_FILE = "model.pt2"
FILES = {
    ONNX_FILE: "ONNX, for any runtime; size, normalisation and classes are in its metadata",
    INT8_FILE: "the same with the linear layers in 8 bits, for CPUs",
    TIMM_FOLDER: "a folder for `timm.create_model`",
    HUB_FOLDER: "the same with a model card, for the Hugging Face hub",
    WEIGHTS_FILE: "weights for vitlab, described by `model.json`",
    PROGRAM_FILE: "a `torch.export` program; `model.json` is in it as an extra file",
}
"""What may lie in a folder of exports, in the order of its README."""


def export(
    model: nn.Module,
    meta: ModelMeta,
    folder: Path,
    formats: Sequence[str],
    sample: Tensor,
    tolerance: float,
    task: ReportTask,
    test: Test | None = None,
    facts: Facts | None = None,
) -> list[Exported]:
    """Write ``model`` into ``folder`` in each of ``formats``.

    Args:
        model: the trained network, on any device; it is not changed.
        meta: its description.
        folder: where the files go.
        formats: what to write, in this order.
        sample: real images [B, 3, H, W] with B >= 3, normalised, on which the logits are compared.
        tolerance: largest allowed difference of a logit; of onnx_int8 the accuracy is measured instead.
        task: what the network predicts: names of the outputs, metadata, how an inexact export is measured.
        test: opens the labelled images for that.
        facts: for the model card.

    Raises:
        UserError: an unknown format, a missing package, a network too large for one ONNX file, logits that differ by
            more than ``tolerance``, a network that timm cannot rebuild.
        ValueError: fewer than three sample images.
    """
    if len(sample) < 3:
        raise ValueError(f"logits are compared at batch 1 and 3, so three images are needed, not {len(sample)}")
    # A network of its own: exporters see no hooks, wrappers or cached tables of the one that was trained.
    clean = partial(build_from_meta, meta, {name: value.detach().cpu() for name, value in model.state_dict().items()})
    here = sample.cpu().float()
    graph = cache(lambda: to_onnx(clean(), meta, here, task))
    facts = facts or Facts(meta.name)
    writers: dict[str, Callable[[], Exported]] = {  # of each of FORMATS
        "safetensors": lambda: _export_safetensors(model, meta, folder, sample, tolerance),
        "timm": lambda: export_timm(clean(), meta, folder, here, tolerance),
        "hub": lambda: export_hub(clean(), meta, folder, here, tolerance, _card(meta, facts, task)),
        "onnx": lambda: export_onnx(graph(), clean(), folder, here, tolerance, task),
        "onnx_int8": lambda: export_int8(graph(), clean(), meta, folder, here, test, task),
        "torch_export": lambda: _export_program(clean(), meta, folder, here, tolerance),
    }
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(
            f"export.formats has '{unknown[0]}', which vitlab cannot write.", f"It writes {', '.join(FORMATS)}."
        )
    if any(name.startswith("onnx") for name in formats):
        require_onnx()
    if "onnx_int8" in formats:
        require_labelled(test)  # before the minutes that a large network takes to export
    written = [writers[name]() for name in dict.fromkeys(formats)]
    files = {name: what for name, what in FILES.items() if (folder / name).exists()}
    atomic_write(folder / CARD_FILE, export_readme(meta, replace(facts, imports=non_timm_part(meta)), task, files))
    return written


def _export_safetensors(model: nn.Module, meta: ModelMeta, folder: Path, sample: Tensor, tolerance: float) -> Exported:
    save_model(folder, model, meta)
    device = next(model.parameters()).device
    difference = compare("safetensors", load_model(folder).to(device), model, sample.to(device), tolerance)
    path = folder / WEIGHTS_FILE
    return {"format": "safetensors", "path": str(path), "bytes": path.stat().st_size, "max_diff": difference}


def _export_program(model: nn.Module, meta: ModelMeta, folder: Path, sample: Tensor, tolerance: float) -> Exported:
    """``model.pt2`` with a dynamic batch; ``model.json`` travels in it as an extra file."""
    path = folder / PROGRAM_FILE
    temporary = path.with_name(f".{PROGRAM_FILE}.new.pt2")  # torch insists on the suffix
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with quiet(), eval_mode(model):
            program = torch.export.export(
                model, (sample[:2].clone(),), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
            torch.export.save(program, temporary, extra_files={"model.json": json.dumps(as_json(meta))})
            again = torch.export.load(temporary).module()
        difference = compare("torch.export", again, model, sample, tolerance)
        atomic_write(path, temporary.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)
    note = f"torch.export.load with torch {torch.__version__.partition('+')[0]} or newer"
    return {
        "format": "torch_export",
        "path": str(path),
        "bytes": path.stat().st_size,
        "max_diff": difference,
        "note": note,
    }


def _card(meta: ModelMeta, facts: Facts, task: ReportTask) -> str:
    return model_card(meta, replace(facts, imports=non_timm_part(meta)), task)
