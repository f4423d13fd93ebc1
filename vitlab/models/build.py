"""Any timm model as vitlab builds it: from scratch, with timm's weights, or from a file.

Independent of the training method. Names are timm's, arguments are those of ``timm.create_model``; vitlab adds the
input size where a network is built for one, loads checkpoints strictly, and reports mistakes in one paragraph. Members
that a network may define for that are listed in :mod:`vitlab.models`.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models import (
    get_deprecated_models,
    get_pretrained_cfg,
    is_model,
    list_models,
    list_pretrained,
    model_entrypoint,
    parse_model_name,
    resolve_model_input_args,
    split_model_name_tag,
)
from timm.models._features import FeatureGetterNet
from torch import nn

from vitlab.config.size import Size, hw, plain_size, size_text
from vitlab.errors import UserError, nearest
from vitlab.models.checkpoints import load_checkpoint, load_weights, new_parameters, zero_head
from vitlab.models.hub import from_hub, unreachable
from vitlab.models.imagenet22k import ABSENT, CLASSES, class_map, head_note, remap_head
from vitlab.models.param_groups import parameter_groups
from vitlab.models.tinyvit_weights import RESIZES
from vitlab.models.vit_structure import structure_file
from vitlab.run.model_file import META_FILE, read_meta
from vitlab.run.run import model_folder

if TYPE_CHECKING:
    from vitlab.config import ModelConfig

__all__ = ["LOADING", "build_backbone", "build_model", "normalisation", "parameter_groups", "resolve_architecture"]

log = logging.getLogger(__name__)


def build_model(
    cfg: ModelConfig,
    num_classes: int,
    size: Size | None,
    classes: Sequence[str] | None = None,
    pretrained: bool = True,
) -> nn.Module:
    """Build the network of ``cfg`` with ``num_classes`` logits for images of ``size`` pixels.

    Weights come from ``cfg.checkpoint`` if given, else from timm's hub if ``cfg.pretrained``, else from timm's
    initialisation. A head for other classes is set to zero and logged; one of ImageNet-22k is reduced to ``classes``
    where these are among its own.

    Args:
        cfg: timm name, arguments and where the weights come from.
        num_classes: length of the logits [B, num_classes]; 0: no classifier, the pooled features are the output.
        size: side of the input [B, 3, H, W], or (height, width); passed on as ``img_size`` where the network is built
            for one size. None: timm's own size for it.
        classes: names in the order of the logits. Given, the head of a vitlab model folder is kept only if its
            classes are the same; not given, only their number is compared.
        pretrained: False builds the network without the weights that ``cfg`` names (to count its cost, or to resume).

    Raises:
        UserError: unknown name or argument, a size the network refuses, weights that are missing or do not fit.
    """
    if classes is not None and len(classes) != num_classes:
        raise ValueError(f"{len(classes)} class names for {num_classes} logits")
    name, args = resolve_architecture(cfg, size)
    loading = _loading(cfg)
    from_hub = pretrained and cfg.pretrained and cfg.checkpoint is None
    donor = _donor(name, args) if from_hub else None
    from_hub = from_hub and donor is None
    known = _trained_with(cfg.name).get("num_classes") if from_hub else None
    rows = class_map(classes or ()) if pretrained and num_classes != CLASSES else None
    # A head of ImageNet-22k is built with all of its classes, loaded, and then reduced to those of the data set.
    cut = rows is not None and known == CLASSES
    model = _create(cfg.name if from_hub else name, args, CLASSES if cut else num_classes, pretrained=from_hub)
    if size is not None:
        _check_patches(model, cfg.name, size)
    if from_hub:
        if cut and rows is not None:
            remap_head(model, rows, loading["absent_class"])
            _note(model, f"timm {cfg.name}: {head_note(rows, classes or (), loading['absent_class'])}")
        elif known != num_classes and num_classes > 0:
            names = ", ".join(zero_head(model))
            text = f"{known} pretrained classes, {num_classes} here; the head starts from zero ({names})"
            _note(model, f"timm {cfg.name}: {text}", logging.WARNING)
    elif pretrained and cfg.checkpoint is not None:
        path = model_folder(Path(cfg.checkpoint).expanduser())
        report = load_checkpoint(
            model,
            path,
            keep_head=_same_classes(path, name, classes, bool(new_parameters(model))),
            rows=rows,
            absent=loading["absent_class"],
            resize=loading["table_resize"],
        )
        if rows is not None:
            report.head_note = head_note(rows, classes or (), loading["absent_class"])
        _note(model, str(report), logging.WARNING if report.head else logging.INFO, exact=report.is_exact)
    elif donor is not None:
        known = _trained_with(donor).get("num_classes")
        weights = _create(donor, {}, int(known or 0), pretrained=True).state_dict()
        report = load_weights(
            model,
            weights,
            f"timm {donor}",
            keep_head=known == num_classes,
            rows=rows,
            absent=loading["absent_class"],
            resize=loading["table_resize"],
        )
        if rows is not None:
            report.head_note = head_note(rows, classes or (), loading["absent_class"])
        _note(model, str(report), logging.WARNING if report.head else logging.INFO, exact=report.is_exact)
    return model


def _note(model: nn.Module, text: str, level: int = logging.INFO, exact: bool = False) -> None:
    """Log what was loaded and, unless the weights were taken as they are, keep it for :func:`load_report`."""
    log.log(level, "%s", text)
    model.load_report = "" if exact else text  # type: ignore[assignment]  # torch types an attribute as a Tensor or a Module


def load_report(model: nn.Module) -> str:
    """What :func:`build_model` changed in the weights that it loaded into ``model``, or left out; "" for nothing."""
    return str(getattr(model, "load_report", ""))


def build_backbone(cfg: ModelConfig, size: Size | None, indices: int | Sequence[int] | None = None) -> FeatureGetterNet:
    """The network of ``cfg`` with its weights as a source of feature maps, for dense tasks.

    Args:
        size: of the input that it is built for; images of another size need a network that accepts them (CNNs do, and
            timm's ViTs with ``model.args.dynamic_img_size=true``).
        indices: the stages or blocks whose output is returned, or how many from the end; None: all of them.

    Returns:
        timm's wrapper: [B, 3, H, W] to a list of feature maps [B, C, h, w], from the first stage to the last;
        ``feature_info.channels()`` and ``.reduction()`` describe them.

    Raises:
        UserError: as :func:`build_model`, or the network has no ``forward_intermediates``, which timm reads.
    """
    model = build_model(cfg, 0, size)
    if not callable(getattr(model, "forward_intermediates", None)):
        raise UserError(
            f"'{cfg.name}' gives no feature maps: {type(model).__name__} has no forward_intermediates.",
            "Choose another network as the backbone.",
        )
    levels = len(model.feature_info) if indices is None else indices  # type: ignore[arg-type]  # a list in timm's
    try:
        return FeatureGetterNet(model, levels if isinstance(levels, int) else tuple(levels))
    except AssertionError as error:
        raise UserError(f"'{cfg.name}' has {len(model.feature_info)} feature maps, not {indices}.") from error  # type: ignore[arg-type]


def resolve_architecture(cfg: ModelConfig, size: Size | None) -> tuple[str, dict[str, Any]]:
    """The timm name and the arguments that build the network of ``cfg`` at ``size``, without its weights. Timm's own
    names need no network access; a ``hf-hub:`` or ``local-dir:`` name is resolved to the architecture it describes.

    Raises:
        UserError: unknown name or pretrained tag.
    """
    _check_name(cfg.name)
    try:
        requested = {} if size is None else {"img_size": hw(size)}
        args = {key: value for key, value in cfg.args.items() if key not in LOADING}
        with _reading(cfg.name):
            resolved = resolve_model_input_args(cfg.name, requested, **args)
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(f"The description of model '{cfg.name}' could not be read: {error}", _HUB_CURE) from error
    except ValueError as error:
        raise UserError(
            f"model.args and the data set disagree about the size of '{cfg.name}': {error}",
            "Leave img_size out of model.args; dataset.size is passed on.",
        ) from error
    source, _ = parse_model_name(cfg.name)
    name = resolved.pop("model_name") if source else cfg.name
    args = {key: value for key, value in resolved.items() if key not in ("model_name", "pretrained_cfg")}
    args.pop("pretrained_model_args", None)
    if isinstance(args.get("structure"), str):  # the content, so that a model folder does without the file
        args["structure"] = structure_file(args["structure"])
    if isinstance(args.get("img_size"), tuple):
        args["img_size"] = plain_size(args["img_size"])
    return name, args


def normalisation(
    cfg: ModelConfig, dataset_mean: Sequence[float], dataset_std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation, in [0, 1], of the images that the network of ``cfg`` expects.

    The first that applies: ``cfg.mean`` and ``cfg.std``; those in the vitlab folder that ``cfg.checkpoint`` names;
    timm's for pretrained weights; the data set's.

    Raises:
        UserError: only one of ``cfg.mean`` and ``cfg.std`` is given, or not three values, or a std is not positive.
    """
    if (cfg.mean is None) != (cfg.std is None):
        given, absent = ("mean", "std") if cfg.std is None else ("std", "mean")
        raise UserError(f"Model '{cfg.name}' has a {given} but no {absent}.", "Give both, or neither.")
    if cfg.mean is not None and cfg.std is not None:
        if len(cfg.mean) != 3 or len(cfg.std) != 3 or min(cfg.std) <= 0:
            raise UserError(
                f"mean {cfg.mean} and std {cfg.std} of model '{cfg.name}' do not describe an RGB image.",
                "Give three values each, in [0, 1], std above 0.",
            )
        return tuple(cfg.mean), tuple(cfg.std)
    if cfg.checkpoint is not None:
        folder = model_folder(Path(cfg.checkpoint).expanduser())
        if (folder / META_FILE).is_file():
            meta = read_meta(folder)
            return tuple(meta.mean), tuple(meta.std)
    elif cfg.pretrained:
        name, args = resolve_architecture(cfg, None)
        known = _trained_with(_donor(name, args) or cfg.name)
        return tuple(known["mean"]), tuple(known["std"])
    return tuple(dataset_mean), tuple(dataset_std)


def pretrained_source(name: str) -> str:
    """Origin of timm's weights for ``name`` (hub id or address): equal for two names of the same weights.

    Raises:
        UserError: unknown name.
    """
    _check_name(name)
    source, _ = parse_model_name(name)
    if source:
        return name
    modern = get_deprecated_models().get(name) or name
    known = get_pretrained_cfg(modern)
    found = None if known is None else known.hf_hub_id or known.url or known.file
    return str(found or modern)


LOADING = {"absent_class": ABSENT, "table_resize": RESIZES}
"""Keys of ``model.args`` for the loading of weights, with their values, the default first; not passed on to timm.
``absent_class``: weights of a class that an ImageNet-22k head lacks, the mean of the others or zero. ``table_resize``:
how TinyViT's bias tables are resized to another window, as in the official code or as in timm (antialiased)."""


def _loading(cfg: ModelConfig) -> dict[str, str]:
    found = {key: cfg.args.get(key, allowed[0]) for key, allowed in LOADING.items()}
    for key, value in found.items():
        if value not in LOADING[key]:
            raise UserError(f"model.args.{key}={value} is not one of {', '.join(LOADING[key])}.")
    return found


def _donor(name: str, args: dict[str, Any]) -> str | None:
    """timm's name of the weights that ``model.pretrained`` loads into the backbone of a wrapper; None: its own
    weights."""
    base = split_model_name_tag(name)[0]
    if not is_model(base) or model_entrypoint(base).__module__.startswith("timm."):
        return None
    with torch.device("meta"):  # built for its attributes only
        model = _create(name, args, 0, pretrained=False)
    found = getattr(model, "pretrained_backbone", None)
    return None if found is None else str(found)


_HUB_CURE = (
    "Without a network, give model.checkpoint=<file>, or set HF_HOME to a cache that has the weights; "
    "model.pretrained=false trains from scratch."
)


def _trained_with(name: str) -> dict[str, Any]:
    """timm's record of the weights of ``name``: classes, normalisation, input size, licence, ..."""
    with _reading(name):
        record: dict[str, Any] = resolve_model_input_args(name)["pretrained_cfg"]
    return record


def _reading(name: str) -> AbstractContextManager[None]:
    """Around what reads the description of ``name``, which lies on the hub for ``hf-hub:`` names."""
    return from_hub() if name.startswith("hf") and ":" in name else nullcontext()


def _check_name(name: str) -> None:
    try:
        source, identifier = parse_model_name(name)
    except ValueError as error:
        raise UserError(f"'{name}' is not a model's name: {error}") from error
    if source:
        return
    base, tag = split_model_name_tag(identifier)
    if not is_model(base):
        near, longer = nearest(base, list_models()), list_models(f"{base}*")[:5]
        hint = f"Did you mean '{near}'?" if near else "mode=list group=model shows some."
        if longer:
            hint = f"Names that start so: {', '.join(longer)}."
        raise UserError(f"timm has no model '{base}' (key model.name).", hint)
    if tag and identifier not in (tags := list_pretrained(f"{base}.*")):
        raise UserError(
            f"timm has no weights '{tag}' for '{base}' (key model.name).",
            f"There are: {', '.join(known.partition('.')[2] for known in tags) or 'none'}.",
        )


def _create(name: str, args: dict[str, Any], num_classes: int, pretrained: bool) -> nn.Module:
    try:
        with from_hub() if pretrained else nullcontext():
            return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **args)
    except TypeError as error:
        unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise _misfit(name, args, error) from error
        owner, key = unknown.groups()
        if key == "img_size":
            raise UserError(f"'{name}' takes no image size.", "Leave img_size out of model.args.") from error
        near = nearest(key, _arguments(name, owner))
        raise UserError(
            f"'{name}' has no argument '{key}' (key model.args.{key}).",
            f"Did you mean model.args.{near}?" if near else f"See timm's documentation of {owner}.",
        ) from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise _misfit(name, args, error) from error
        missing = unreachable()
        why = f"they are not in the cache, and {missing}." if missing else str(error)
        raise UserError(f"timm's weights for '{name}' could not be loaded: {why}", _HUB_CURE) from error
    except Exception as error:  # of any kind, from timm's many constructors
        raise _misfit(name, args, error) from error


def _misfit(name: str, args: dict[str, Any], error: Exception) -> Exception:
    """The error where timm accepts the arguments by name but cannot build with them; without arguments, timm's own."""
    if not args:
        return error
    return UserError(
        f"timm cannot build '{name}' with the arguments {args}: {type(error).__name__}: {error}.",
        "Check model.args and dataset.size against each other and against timm's defaults.",
    )


def _check_patches(model: nn.Module, name: str, size: Size) -> None:
    """Refuse a size that patches do not tile: the patch embedding would drop the last rows and columns."""
    embed = getattr(model, "patch_embed", None)
    if isinstance(embed, PatchEmbed) and not embed.dynamic_img_pad:
        pairs = list(zip(hw(size), embed.patch_size, strict=True))
        if any(side % patch for side, patch in pairs):
            near = plain_size([max(patch, round(side / patch) * patch) for side, patch in pairs])
            raise UserError(
                f"'{name}' cuts images into patches of {size_text(embed.patch_size)} px, which do not tile "
                f"{size_text(size)} px.",
                f"Set dataset.size={str(near).replace(' ', '')}, or model.args.dynamic_img_pad=true.",
            )


def _arguments(name: str, owner: str) -> list[str]:
    """Argument names of the network class ``owner`` in the module of timm's entry point for ``name``."""
    module = sys.modules[model_entrypoint(split_model_name_tag(name)[0]).__module__]
    cls = getattr(module, owner, None)
    return list(inspect.signature(cls).parameters) if inspect.isclass(cls) else []


def knows_classes(cfg: ModelConfig, model: nn.Module, classes: Sequence[str]) -> bool | None:
    """Whether the weights that ``cfg`` names have a head for ``classes``, in this order; None where only reading them
    would show it. Nothing is fetched.

    Args:
        model: the network of ``cfg``, also without memory.

    Raises:
        UserError: ``cfg.checkpoint`` is the folder of another network.
    """
    name, args = resolve_architecture(cfg, None)
    of_22k = class_map(classes) is not None
    if cfg.checkpoint is not None:
        path = model_folder(Path(cfg.checkpoint).expanduser())
        if not (path / META_FILE).is_file():
            return None
        same = _same_classes(path, name, classes, bool(new_parameters(model)))
        return same or (of_22k and len(read_meta(path).classes) == CLASSES)
    if not cfg.pretrained:
        return None
    known = _trained_with(_donor(name, args) or cfg.name).get("num_classes")
    return known == len(classes) or (of_22k and known == CLASSES)


def _same_classes(path: Path, name: str, classes: Sequence[str] | None, adds: bool) -> bool:
    """Whether the head of a checkpoint may be kept: of a vitlab folder, if its classes are the same; of other files,
    which do not name their classes, always. ``adds``: the network adds to another one, and the folder may be of that
    one."""
    if not (path / META_FILE).is_file():
        return True
    meta = read_meta(path)
    if split_model_name_tag(meta.name)[0] != split_model_name_tag(name)[0] and not adds:
        raise UserError(
            f"The model folder '{path}' holds a {meta.name}, not a {name}.",
            f"Give model.name={meta.name} (args {meta.args}), or another checkpoint.",
        )
    return classes is None or list(classes) == meta.classes
