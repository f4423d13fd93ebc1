"""Parameter groups for the optimiser: weight decay and learning-rate scale of each parameter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import TypedDict

from timm.models import group_parameters
from timm.models.tiny_vit import TinyVit
from torch import nn

from vitlab.errors import UserError

TABLES = ("attention_bias", "relative_position_bias_table", "pos_embed", "rel_pos")
"""Parts of the last name of learned position and attention-bias tables, which are never decayed."""


class ParameterGroup(TypedDict):
    """One group of ``torch.optim``; ``lr_scale`` multiplies the scheduled learning rate, once."""

    name: str
    params: list[nn.Parameter]
    weight_decay: float
    lr_scale: float


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    layer_decay: float = 1.0,
    head_lr: float = 1.0,
    decay_norms: bool = False,
) -> list[ParameterGroup]:
    """Split the trainable parameters by layer level and by weight decay.

    Not decayed: tensors with at most one dimension, biases, position and attention-bias tables, and what the network
    itself excludes (``no_weight_decay``); with ``decay_norms`` all are decayed. Level ``i`` of ``n`` learns at
    ``layer_decay ** (n - 1 - i)`` of the schedule, the head at 1. Groups are ordered by level, undecayed before
    decayed; with ``head_lr`` the classifier's parameters are groups of their own, last, whose learning rate is
    multiplied by ``head_lr``.

    Raises:
        UserError: layer decay for a network that does not declare its layers, or ``head_lr`` for one that does not
            declare its classifier.
        ValueError: ``layer_decay`` is not in (0, 1].
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], not {layer_decay}")
    levels = layer_levels(model) if layer_decay < 1 else {}
    top = max(levels.values(), default=0)  # without layer decay all parameters are of this one level
    undecayed = set() if decay_norms else undecayed_names(model)
    head = head_names(model) if head_lr != 1 else set()
    members: dict[tuple[bool, int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[name in head, levels.get(name, top), name not in undecayed].append(parameter)
    return [
        {
            "name": f"{'head' if in_head else f'level {level}'}, {'decayed' if decayed else 'not decayed'}",
            "params": members[in_head, level, decayed],
            "weight_decay": weight_decay if decayed else 0.0,
            "lr_scale": layer_decay ** (top - level) * (head_lr if in_head else 1.0),
        }
        for in_head, level, decayed in sorted(members)
    ]


def head_names(model: nn.Module) -> set[str]:
    """Names of the classifier's parameters: of the modules that timm's configuration of the network calls its
    ``classifier`` (two in a distilled DeiT), else of what ``get_classifier()`` returns.

    Raises:
        UserError: the network has neither, or no classifier.
    """
    stated = (getattr(model, "default_cfg", None) or {}).get("classifier") or ()
    prefixes = (stated,) if isinstance(stated, str) else tuple(stated)
    names = {name for name, _ in model.named_parameters() if any(name.startswith(f"{one}.") for one in prefixes)}
    classifier = getattr(model, "get_classifier", None)
    if not names and callable(classifier):
        found = classifier()
        modules = found if isinstance(found, (tuple, list)) else (found,)
        own = {id(parameter) for module in modules for parameter in module.parameters()}
        names = {name for name, parameter in model.named_parameters() if id(parameter) in own}
    if not names:
        raise UserError(
            f"recipe.head_lr needs a network that names its classifier; {type(model).__name__} does not.",
            "Set recipe.head_lr=1.",
        )
    return names


def undecayed_names(model: nn.Module) -> set[str]:
    """Names of the parameters without weight decay."""
    patterns = _declared_by(model, "no_weight_decay")
    keywords = _declared_by(model, "no_weight_decay_keywords")
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1
        or name.endswith(".bias")
        or any(table in name.rpartition(".")[2] for table in TABLES)
        or any(fnmatch(name, pattern) for pattern in patterns)
        or any(keyword in name for keyword in keywords)
    }


def _declared_by(model: nn.Module, method: str) -> set[str]:
    function = getattr(model, method, None)
    found: Iterable[str] = function() if callable(function) else ()
    return set(found)


def layer_levels(model: nn.Module) -> dict[str, int]:
    """Level of each parameter, 0 at the input.

    TinyViT follows its authors (tinyvit.md, section 6.2): one level a block over all stages; the stem with block 0,
    a downsampler with the last block before it, norm and head with the last block. Any other network follows its own
    ``layer_levels()``, else timm's ``group_matcher``.
    """
    if callable(own := getattr(model, "layer_levels", None)):
        levels: dict[str, int] = own()
        return levels
    if isinstance(model, TinyVit):  # timm's class cannot carry the method
        return _tiny_vit_levels(model)
    matcher = getattr(model, "group_matcher", None)
    if not callable(matcher):
        raise UserError(
            f"Layer-wise learning rates need a network that names its layers; {type(model).__name__} does not.",
            "Set recipe.layer_decay=1.",
        )
    found: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    return found


def _tiny_vit_levels(model: TinyVit) -> dict[str, int]:
    before = [sum(model.depths[:stage]) for stage in range(len(model.depths))]  # blocks before each stage
    levels = {}
    for name, _ in model.named_parameters():
        part = name.split(".")
        if part[0] == "patch_embed":
            levels[name] = 0
        elif part[0] == "stages" and part[2] == "downsample":
            levels[name] = before[int(part[1])] - 1
        elif part[0] == "stages":
            levels[name] = before[int(part[1])] + int(part[3])
        else:
            levels[name] = sum(model.depths) - 1
    return levels
