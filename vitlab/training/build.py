"""The parts of a training that its configuration describes: data, optimiser, length."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from vitlab.config import Config, RecipeConfig
from vitlab.data.build import open_splits
from vitlab.data.datamodule import VisionData
from vitlab.data.sampler import SlotPolicy
from vitlab.errors import UserError, nearest
from vitlab.models.build import parameter_groups
from vitlab.tasks.base import find_task
from vitlab.training.distributed import rank, world_size
from vitlab.training.schedule import Schedule


@dataclass(frozen=True)
class Reinforced:
    """Which reinforcements a training replays, and how they are chosen."""

    folders: tuple[Path, ...]
    in_turn: bool  # the samples of an image, each once before one comes again; else any at random
    plain_share: float  # views of the recipe's own augmentation with their label, instead of stored ones
    backend: str = "auto"  # pil, tensor, or auto: that of the store


def shortened(config: Config, recipe: RecipeConfig) -> RecipeConfig:
    """``recipe`` cut to ``debug.max_steps``, if that is set."""
    if config.debug.max_steps is None:
        return recipe
    return replace(recipe, duration=f"{config.debug.max_steps}st", warmup="10%", decay_at=[])


def make_data(
    config: Config,
    recipe: RecipeConfig,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    store: Path | None = None,
    views: int | None = None,
    exact: bool = False,
    reinforcements: Reinforced | None = None,
) -> VisionData:
    """The data as ``recipe`` wants to see them, normalised with ``mean`` and ``std``.

    Args:
        store: read stored targets, and the views that they belong to.
        views: so many different views of every image, shown in turn; None: as many as the store has, or without a
            store a new one every epoch.
        reinforcements: replay stored reinforcements instead of drawing views; ``recipe``'s augmentation must not mix.
        exact: epoch e reads stored view e; without it the views come round again where there are fewer than epochs.

    Raises:
        UserError: the global batch does not divide into equal micro-batches; ``exact``, and too few stored views.
    """
    parts = world_size() * recipe.accumulate
    if recipe.batch_size % parts:
        raise UserError(
            f"recipe.batch_size={recipe.batch_size} does not divide into {world_size()} device(s) × recipe.accumulate="
            f"{recipe.accumulate}.",
            f"Take a multiple of {parts}.",
        )
    slots: SlotPolicy = "cycle" if (views or store is not None) and not exact else "epoch"
    if reinforcements is not None:
        slots = "permuted" if reinforcements.in_turn else "uniform"
    data = VisionData(
        config.dataset,
        recipe.augmentation,
        batch_size=recipe.batch_size // parts,
        accumulate=recipe.accumulate,
        eval_batch_size=config.evaluation.batch_size,
        mean=mean,
        std=std,
        seed=config.seed,
        workers=config.hardware.workers,
        rank=rank(),
        world=world_size(),
        store=store,
        slots=slots,
        num_slots=views,
        reinforcements=reinforcements.folders if reinforcements is not None else None,
        plain_share=reinforcements.plain_share if reinforcements is not None else 0.0,
        replay_backend=reinforcements.backend if reinforcements is not None else "auto",
        max_images=config.debug.max_images,
        targets=find_task(config.task),
    )
    stored = data.train_sampler.num_slots
    if exact and stored is not None and (epochs := epochs_of(recipe, data)) > stored:
        raise UserError(
            f"method.replay=exact: a training of {epochs} epochs, and {stored} stored views of each image.",
            f"Store more, train for {stored}ep, or read them in turn: method.replay=cycle.",
        )
    return data


def make_optimizer(network: nn.Module, recipe: RecipeConfig) -> Optimizer:
    """timm's optimiser of that name over the groups of :func:`parameter_groups`.

    Raises:
        UserError: unknown optimiser or argument.
    """
    groups: Any = parameter_groups(network, recipe.weight_decay, recipe.layer_decay)
    args: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in recipe.optimizer_args.items()
    }
    try:
        return create_optimizer_v2(groups, opt=recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, **args)
    except (AssertionError, KeyError, ValueError) as error:
        from timm.optim import list_optimizers

        near = nearest(recipe.optimizer, map(str, list_optimizers()))
        hint = f"Did you mean {near}?" if near and near != recipe.optimizer else "timm's names: adamw, sgd, lamb, ..."
        raise UserError(f"recipe.optimizer={recipe.optimizer}: {error}.", hint) from None
    except TypeError as error:
        raise UserError(f"recipe.optimizer_args: {error}.", f"See the arguments of {recipe.optimizer}.") from None


def full_steps(config: Config, recipe: RecipeConfig) -> tuple[int, int, int]:
    """Optimiser steps and epochs begun of ``recipe`` on ``config``'s data, and its images; no image is read."""
    images = len(open_splits(config.dataset, config.seed, config.debug.max_images)["train"])
    per_epoch = images // recipe.batch_size
    total = Schedule.from_recipe(shortened(config, recipe), per_epoch).total
    return total, math.ceil(total / per_epoch), images


def epochs_of(recipe: RecipeConfig, data: VisionData) -> int:
    """Epochs that ``recipe`` begins on ``data``."""
    total = Schedule.from_recipe(recipe, data.steps_per_epoch).total
    return math.ceil(total / data.steps_per_epoch)
