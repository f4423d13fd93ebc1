"""Folders that others load: timm's (``local-dir:``), and the same with a model card as the Hugging Face hub wants it.

Both also hold vitlab's ``model.json``, so that :func:`vitlab.load_model` reads them too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import timm
from timm.models import model_entrypoint, save_for_hf
from torch import Tensor, nn

from vitlab.config.size import hw
from vitlab.errors import UserError
from vitlab.files import atomic_write, readable_json
from vitlab.models.artifact import ModelMeta, save_model
from vitlab.models.checkpoints import WEIGHTS_FILE
from vitlab.report.export_card import crop_of, squashed
from vitlab.report.export_check import Exported, compare, quiet

TIMM_FOLDER, HUB_FOLDER = "timm", "hub"
CONFIG_FILE, CARD_FILE = "config.json", "README.md"


def export_timm(
    model: nn.Module, meta: ModelMeta, folder: Path, sample: Tensor, tolerance: float, kind: str = TIMM_FOLDER
) -> Exported:
    """Write ``<folder>/timm`` so that ``timm.create_model("local-dir:<folder>/timm", pretrained=True)`` gives the
    network: checked by doing that. ``model`` is on the CPU, built by timm.
    """
    target = folder / kind
    save_model(target, model, meta)
    with tempfile.TemporaryDirectory(prefix="vitlab-timm-") as made, quiet():
        save_for_hf(
            model,
            made,
            model_config={"label_names": meta.classes, "pretrained_cfg": {"license": meta.licence or None}},
            model_args=meta.args,
            safe_serialization=True,
            data_config={
                "input_size": (3, *hw(meta.size)),
                "mean": tuple(meta.mean),
                "std": tuple(meta.std),
                "crop_pct": 1.0 if squashed(meta) else meta.crop_pct,
                "crop_mode": crop_of(meta).removesuffix("_crop"),
                "interpolation": meta.interpolation,
            },
        )
        config = json.loads((Path(made) / CONFIG_FILE).read_text())
    if not meta.licence:
        config["pretrained_cfg"].pop("license", None)
    for key in ("url", "hf_hub_id", "origin_url", "paper_ids", "paper_name", "tag"):  # of the weights it started from
        config["pretrained_cfg"].pop(key, None)
    atomic_write(target / CONFIG_FILE, readable_json(config, indent=2) + "\n")
    with quiet():
        again = timm.create_model(f"local-dir:{target.resolve()}", pretrained=True).eval()
    run: Callable[[Tensor], Tensor] = again
    difference = compare(kind, run, model, sample, tolerance)
    weights = target / WEIGHTS_FILE
    note = f'timm.create_model("local-dir:{target}", pretrained=True)'
    if module := non_timm_part(meta):
        note += f' after "import {module}"'
    return {"format": kind, "path": str(weights), "bytes": weights.stat().st_size, "max_diff": difference, "note": note}


def export_hub(
    model: nn.Module, meta: ModelMeta, folder: Path, sample: Tensor, tolerance: float, card: str
) -> Exported:
    """Write ``<folder>/hub``: timm's folder and the model card ``card`` as README.md. Nothing is uploaded."""
    record = export_timm(model, meta, folder, sample, tolerance, HUB_FOLDER)
    atomic_write(folder / HUB_FOLDER / CARD_FILE, card)
    record["note"] = f"timm's folder, and the model card {CARD_FILE}"
    return record


def non_timm_part(meta: ModelMeta) -> str | None:
    """The module to import before timm knows the architecture; None for timm's own."""
    module = model_entrypoint(meta.name.partition(".")[0]).__module__
    if module.startswith("timm."):
        return None
    return "vitlab.models" if module.startswith("vitlab.models.") else module


def push(folder: Path, repository: str) -> str:
    """Upload the hub layout in ``folder`` to ``repository`` (USER/NAME, made private if it is not there); its address.

    Who is asking is Hugging Face's own business: ``hf auth login`` or HF_TOKEN.

    Raises:
        UserError: not logged in, not allowed, or no network.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Model from vitlab")
    # Names, tokens, rights and networks each fail in their own way, the latter with whatever the HTTP client raises.
    except Exception as error:
        raise UserError(
            f"export.push={repository}: the upload failed ({type(error).__name__}: {str(error).splitlines()[0]}).",
            f"Log in with 'hf auth login' or set HF_TOKEN, and give USER/NAME; what was to be uploaded is in {folder}.",
        ) from error
    return str(address)
