"""A network that no run made: timm's own weights, or a checkpoint from elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import resolve_model_input_args
from torch import nn

from vitlab.config import AugmentationConfig, Config, DatasetConfig
from vitlab.config.size import Size, plain_size, same_size
from vitlab.data.build import open_splits
from vitlab.errors import UserError
from vitlab.models.artifact import ModelMeta
from vitlab.models.build import build_model, normalisation, resolve_architecture

CROP_MODES = {"center": "center", "squash": "squash_crop", "border": "center"}
"""timm's names of what is done at evaluation, and ours; no classifier of timm's has a border."""


def build(
    config: Config, title: str, on_data: bool, trained: bool, typed: frozenset[str]
) -> tuple[nn.Module, ModelMeta]:
    """The network of ``config.model`` in eval mode, and its description.

    Where timm states another size or crop for tests than for training (``test_input_size``, ``test_crop_pct``), the
    override for it is printed; its crop goes with its size.

    Its classes are those of timm's weights or, with ``on_data``, of the data set; its view is timm's for timm's
    weights (size, crop and interpolation of their record), else the data set's. A typed ``dataset.size``,
    ``dataset.crop_pct`` or ``dataset.crop`` wins over both.

    Raises:
        UserError: the classes are not known, or the head would be an untrained one where ``trained`` is demanded.
    """
    model, dataset = config.model, config.dataset
    resolve_architecture(model, dataset.size)  # raises for an unknown name
    record = _record(model.name) if model.pretrained and model.checkpoint is None else {}
    size, interpolation = dataset.size, AugmentationConfig.interpolation
    crop_pct, crop = dataset.crop_pct, dataset.crop
    if not on_data and "size" not in typed:
        size = _input_size(_record(model.name), size)
    if record:
        size, crop_pct, crop, interpolation = view_of_record(record, dataset, typed)
        if hint := hint_of_tests(record, typed):
            print(f"view           {hint}", file=sys.stderr)
    classes: list[str] = []
    if on_data:
        classes = list(open_splits(dataset, config.seed, config.debug.max_images, measuring=True)["test"].classes)
    own = _names(int(record.get("num_classes", 0)))
    if own and set(classes) <= set(own):
        classes = own
    if not classes:
        if trained:
            raise UserError(f"The classes of {title} are not known.", "Name their data set: dataset=NAME.")
        classes = [f"class {number}" for number in range(1000)]
    if trained and record and record["num_classes"] != len(classes):
        raise UserError(
            f"{title} was trained on {record['num_classes']} classes, and {dataset.name} has {len(classes)}.",
            "Train it on them first: method=supervised, then run=FOLDER.",
        )
    network = build_model(model, len(classes), size, classes).eval()
    if trained and _blank_head(network):
        raise UserError(
            f"The weights of {title} are of other classes than the {len(classes)} of {dataset.name}.",
            "Name the data set that it was trained on, or train it on this one: method=supervised.",
        )
    name, args = resolve_architecture(model, size)
    mean, std = normalisation(model, dataset.mean, dataset.std)
    origin = str(model.checkpoint) if model.checkpoint else f"timm {model.name}" if record else ""
    meta = ModelMeta(
        name=name,
        args=args,
        classes=classes,
        size=plain_size(size),
        mean=list(mean),
        std=list(std),
        crop_pct=crop_pct,
        crop=crop,
        interpolation=interpolation,
        origin=origin,
        licence=str(record.get("license") or ""),
        task=config.task.name,
    )
    network.meta = meta  # type: ignore[assignment]  # torch types an attribute as a Tensor or a Module
    return network, meta


def view_of_record(
    record: Mapping[str, Any], dataset: DatasetConfig, typed: Collection[str]
) -> tuple[Size, float, str, str]:
    """Size, crop_pct, crop and interpolation of timm's evaluation of its weights; typed keys of ``dataset`` win.

    With a typed ``dataset.size`` that is the size of timm's tests, crop_pct is that of the tests.

    Args:
        record: of the weights (timm's ``pretrained_cfg``).
        typed: keys below ``dataset.`` on the command line.
    """
    size = dataset.size if "size" in typed else _input_size(record, dataset.size)
    test_size = _test_size(record)
    tested = "size" in typed and test_size is not None and same_size(size, test_size)
    of_record = float((record.get("test_crop_pct") if tested else None) or record["crop_pct"])
    crop_pct = dataset.crop_pct if "crop_pct" in typed else of_record
    crop = CROP_MODES.get(str(record.get("crop_mode")), "center")
    if crop == "squash_crop" and crop_pct >= 1:
        crop = "squash"  # the same, under its usual name
    return size, crop_pct, dataset.crop if "crop" in typed else crop, str(record["interpolation"])


def hint_of_tests(record: Mapping[str, Any], typed: Collection[str]) -> str:
    """The override for the size and crop of timm's tests, where its record has others than those of the training; ""
    where there are none, or one is typed. Arguments as :func:`view_of_record`."""
    size, crop_pct = _test_size(record), record.get("test_crop_pct")
    if {"size", "crop_pct"} & set(typed) or (size is None and not crop_pct):
        return ""
    words = [] if size is None else [f"dataset.size={size}".replace(" ", "")]
    if size is None:
        words.append(f"dataset.crop_pct={crop_pct:g}")
    at = f" (with crop_pct {crop_pct:g})" if size is not None and crop_pct else ""
    return f"that of the weights' training; timm's own tests are with {' '.join(words)}{at}"


def _test_size(record: Mapping[str, Any]) -> Size | None:
    known = record.get("test_input_size")
    return plain_size(known[-2:]) if known else None


def _record(name: str) -> dict[str, Any]:
    """timm's record of the weights: classes, size, crop, normalisation, licence."""
    record: dict[str, Any] = resolve_model_input_args(name)["pretrained_cfg"]
    return record


def _input_size(record: Mapping[str, Any], default: Size) -> Size:
    """Height and width that the weights were trained at; timm's records hold (channels, height, width)."""
    known = record.get("input_size")
    return plain_size(known[-2:]) if known else default


def _names(number: int) -> list[str]:
    """The classes of timm's ImageNet weights as the data set names them (WordNet ids); none for other weights."""
    subset = infer_imagenet_subset({"num_classes": number})
    return list(ImageNetInfo(subset).label_names()) if subset else []


def _blank_head(network: nn.Module) -> bool:
    """Whether a classifier is all zeros, as build_model leaves one that does not fit the weights."""
    find: Callable[[], object] | None = getattr(network, "get_classifier", None)
    head = find() if find is not None else None
    heads = head if isinstance(head, (tuple, list, nn.ModuleList)) else [head]
    weights = [one.weight for one in heads if isinstance(one, nn.Linear)]
    return any(not bool(torch.count_nonzero(weight)) for weight in weights)
