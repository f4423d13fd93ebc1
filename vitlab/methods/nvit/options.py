"""Keys under ``method.`` for NViT; their values are in ``conf/method/nvit.yaml``. No torch: the command line reads it.

The names are those of the paper and of the released code where it has one; ``compat=official`` sets the arithmetic of
the released code in every key of :data:`OFFICIAL` that is left open (null).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from vitlab.config import Config, RecipeConfig
from vitlab.config.ranges import number
from vitlab.errors import UserError, nearest

MISSING: Any = "???"


@dataclass
class TargetOptions:
    """What the network may cost, as a share of the dense network's; exactly one of the first three."""

    latency: float | None = number(None, 0, 1, open_low=True)  # by the latency table of this device
    macs: float | None = number(None, 0, 1, open_low=True)  # multiply-adds of one image
    params: float | None = number(None, 0, 1, open_low=True)  # parameters
    events: int | None = number(None, 1, 10**6)  # most pruning events; null: until the target is met


@dataclass
class LatencyOptions:
    """How the latency table is measured, or where it is read."""

    table: str = "measure"  # measure, or a file: latency.json of a run, or the released code's JSON
    batch: int = number(MISSING, 1, 10**6)  # images at a time
    precision: str = "32"  # of weights and images: 32 | bf16 | fp16
    points: int = number(MISSING, 2, 1000)  # measured values of each width
    mlp_points: int = number(MISSING, 2, 1000)  # of the MLP's hidden width
    rounds: int = number(MISSING, 1, 10**4)  # each point is timed once a round; its time is the median
    held_out: int = number(MISSING, 0, 10**4)  # random structures that predictions are compared with
    scope: str = "network"  # network | blocks (without patch embedding and classifier, as the released table)


@dataclass
class GroupOptions:
    """Units that are removed together, by kind."""

    embedding: int = number(MISSING, 1, 10**6)  # embedding channels
    head: int = number(MISSING, 1, 10**6)  # heads of a block
    qk: int = number(MISSING, 1, 10**6)  # query-key channels of all heads of a block
    v: int = number(MISSING, 1, 10**6)  # value channels of all heads of a block
    mlp: int = number(MISSING, 1, 10**6)  # neurons of a block's MLP


@dataclass
class ScoreOptions:
    """The importance of a unit (specification 5)."""

    scope: str = MISSING  # official (one side of each pair of weights) | full (all weights that are zeroed)
    norm: str = MISSING  # official (sums divided by 12, 12, 2, 2, 1 by kind) | none
    weights: str | None = None  # null: pre (weights that the gradient is of) | post (after the update)
    momentum: float = number(MISSING, 0, 1, open_high=True)  # of the average over events
    correct_bias: bool | None = None  # null: true, every event has the weight that its age gives it
    reset_after_first: bool | None = None  # null: false; true: set the average to zero after the first event


@dataclass
class PruneOptions:
    """When and what is pruned (specification 6 and 7)."""

    criterion: str = "taylor"  # taylor | magnitude | random (the last two for comparison)
    interval: int = number(MISSING, 1, 10**9)  # optimiser steps between two events
    units_per_event: int = number(MISSING, 1, 10**9)  # p: p / divisor groups are pruned by an event
    divisor: int = number(MISSING, 1, 10**9)  # G, the released code's "group size"
    least: int = number(1, 1, 10**6)  # groups that every axis keeps
    eta: float = number(MISSING, 0, 1e12)  # weight of a unit's cost beside its importance; 0: importance alone
    eta_scale: str | None = None  # null: relative (to importance and cost of the network) | absolute
    schedule: str | None = None  # null: exact (p / G live groups an event) | official
    norm_stats: str | None = None  # null: live (LayerNorm over live channels: pruned = exported) | full
    groups: GroupOptions = field(default_factory=GroupOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)


@dataclass
class CnnOptions:
    """A CNN's share in the loss; the CNN is teacher=."""

    type: str = "hard"  # hard (its class) | soft (its probabilities) | none
    alpha: float = number(0.5, 0, 1)  # its share beside the labels
    tau: float = number(1.0, 0, 1e6, open_low=True)  # temperature of soft


@dataclass
class LossOptions:
    """Losses of pruning and finetuning (specification 8 and 9)."""

    kl_weight: float = number(MISSING, 0, 1e12)  # of the KL divergence from the dense network, a mean over the batch
    kl_tau: float = number(MISSING, 0, 1e6, open_low=True)  # its temperature while pruning
    finetune_kl_tau: float = number(MISSING, 0, 1e6, open_low=True)  # and in finetuning
    ce_weight: float = number(1.0, 0, 1e12)  # of labels and CNN
    cnn: CnnOptions = field(default_factory=CnnOptions)


@dataclass
class NViTOptions:
    """Keys under ``method.``"""

    name: str = "nvit"
    compat: str = "vitlab"  # vitlab | official: arithmetic of the released code wherever a key is null
    dense: RecipeConfig | None = None  # train the dense network on the labels first, if it has no weights
    target: TargetOptions = field(default_factory=TargetOptions)
    latency: LatencyOptions = field(default_factory=LatencyOptions)
    prune: PruneOptions = field(default_factory=PruneOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    repeats: int = number(1, 1, 100)  # different views of each image in a batch, in pruning and finetuning
    form: str = "compact"  # of the exported network: compact | timm (stock attention, padded with zeros)
    finetune: RecipeConfig | None = None  # train the exported network; null: do not
    finetune_mode: str = "eval"  # eval (no drop path, as the released runs) | train
    sparsity: str | None = None  # 2:4: prune half of the weights of every linear layer before finetuning
    revit: int | None = number(None, 1, 10**6)  # train ReViT's rule for this embedding from scratch; no pruning
    scratch: RecipeConfig | None = None  # also train the exported structure from scratch on the labels
    convert_to: str | None = None  # mode=convert: folder for the model of the official checkpoint input=


OFFICIAL: dict[str, tuple[Any, Any]] = {
    "norm_stats": ("live", "full"),
    "schedule": ("exact", "official"),
    "eta_scale": ("relative", "absolute"),
    "score.weights": ("pre", "post"),
    "score.correct_bias": (True, False),
    "score.reset_after_first": (False, True),
}
"""Keys under ``method.prune.`` that ``compat`` decides where they are null: our value, the released code's."""

CHOICES = {
    "compat": ("vitlab", "official"),
    "latency.scope": ("network", "blocks"),
    "latency.precision": ("32", "bf16", "fp16"),
    "prune.criterion": ("taylor", "magnitude", "random"),
    "prune.eta_scale": ("relative", "absolute"),
    "prune.schedule": ("exact", "official"),
    "prune.norm_stats": ("live", "full"),
    "prune.score.scope": ("official", "full"),
    "prune.score.norm": ("official", "none"),
    "prune.score.weights": ("pre", "post"),
    "loss.cnn.type": ("hard", "soft", "none"),
    "form": ("compact", "timm"),
    "finetune_mode": ("eval", "train"),
    "sparsity": ("2:4",),
}


def resolved(options: NViTOptions) -> PruneOptions:
    """``method.prune`` with the open keys filled in by ``method.compat``."""
    official = options.compat == "official"
    prune = replace(options.prune, score=replace(options.prune.score))
    for key, values in OFFICIAL.items():
        owner: Any = prune.score if key.startswith("score.") else prune
        name = key.removeprefix("score.")
        if getattr(owner, name) is None:
            setattr(owner, name, values[official])
    return prune


def has_weights(config: Config) -> bool:
    """Whether the dense network has weights to start from."""
    return bool(config.model.checkpoint or config.model.pretrained)


def has_cnn(config: Config) -> bool:
    """Whether a CNN is a teacher of the losses."""
    return bool(config.teacher.members) and config.method.loss.cnn.type != "none"


def prunes(config: Config) -> bool:
    """Whether a network is pruned; else one of ReViT's rule is trained."""
    return config.method.revit is None


def measures(config: Config) -> bool:
    """Whether the cost is a latency."""
    return prunes(config) and config.method.target.latency is not None


def target_of(options: NViTOptions) -> tuple[str, float]:
    """Which cost is to fall, and to which share.

    Raises:
        UserError: none of them, or several.
    """
    given = {name: getattr(options.target, name) for name in ("latency", "macs", "params")}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        what = " and ".join(f"method.target.{name}" for name in given) or "no method.target"
        cure = "Give one: method.target.latency=0.5, or .macs, or .params; method.target.latency=null takes one away."
        raise UserError(f"NViT prunes towards one target, and there is {what}.", cure)
    return next(iter(given.items()))


def check(config: Config) -> None:
    """Refuse contradictions before anything runs.

    Raises:
        UserError: naming the key.
    """
    options: NViTOptions = config.method
    for key, allowed in CHOICES.items():
        value: Any = options
        for part in key.split("."):
            value = getattr(value, part)
        if value is not None and value not in allowed:
            near = nearest(value, allowed)
            hint = f"Did you mean {near}? " if near else ""
            raise UserError(f"There is no method.{key}={value}.", f"{hint}There are: {', '.join(allowed)}.")
    if config.task.targets != "class" and (options.loss.kl_weight or has_cnn(config)):
        raise UserError(
            f"NViT distils class probabilities, which task={config.task.name} has none of.",
            "Give method.loss.kl_weight=0 and teacher=none: the labels alone.",
        )
    if not prunes(config):
        return
    name, share = target_of(options)
    if share >= 1:
        raise UserError(f"method.target.{name}={share:g} is the dense network itself.", "Give a share below 1.")
    if not has_weights(config) and options.dense is None:
        raise UserError(
            f"NViT prunes a trained network, and '{config.model.name}' has no weights.",
            "Give model.checkpoint=FILE, FOLDER or RUN, or model.pretrained=true, or train it first: "
            "recipe@method.dense=NAME.",
        )
    if config.recipe.ema is not None:
        raise UserError(
            f"recipe.ema={config.recipe.ema:g}: an average of weights would keep those of pruned units.",
            "Leave it out; method.finetune.ema averages the exported network.",
        )
    prune = resolved(options)
    if prune.units_per_event < prune.divisor and prune.schedule == "exact":
        raise UserError(
            f"method.prune.units_per_event={prune.units_per_event} is below method.prune.divisor={prune.divisor}: an "
            "event would prune no group.",
            f"Give at least {prune.divisor}.",
        )
    if options.sparsity is not None and options.finetune is None:
        raise UserError(
            "method.sparsity=2:4 is part of finetuning, and method.finetune names no recipe.", "Choose one."
        )
    if options.sparsity is not None and options.finetune is not None and options.finetune.ema is not None:
        raise UserError(
            "method.finetune.ema averages weights before and after the 2:4 masks.", "Give method.finetune.ema=null."
        )
