"""The parts of a training that its configuration describes: data, network, optimiser, length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from vitlab.config import Config, ModelConfig, RecipeConfig
from vitlab.config.size import plain_size
from vitlab.data.build import open_splits
from vitlab.data.datamodule import VisionData
from vitlab.data.loader import LoaderOptions
from vitlab.data.views import FreshViews, StoredViews, Views
from vitlab.errors import UserError, nearest
from vitlab.models.artifact import ModelMeta, load_model, read_meta
from vitlab.models.build import build_model, parameter_groups, resolve_architecture
from vitlab.tasks.base import find_task
from vitlab.training.distributed import rank, world_size
from vitlab.training.schedule import Schedule


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
    views: Views = FreshViews(),  # noqa: B008  # frozen
) -> VisionData:
    """The data as ``recipe`` wants to see them, normalised with ``mean`` and ``std``.

    Raises:
        UserError: the global batch does not divide into equal micro-batches; ``views`` of something else, or too few.
    """
    parts = world_size() * recipe.accumulate
    if recipe.batch_size % parts:
        raise UserError(
            f"recipe.batch_size={recipe.batch_size} does not divide into {world_size()} device(s) × recipe.accumulate="
            f"{recipe.accumulate}.",
            f"Take a multiple of {parts}.",
        )
    data = VisionData(
        config.dataset,
        recipe.augmentation,
        LoaderOptions(
            recipe.batch_size // parts,
            eval_batch_size=config.evaluation.batch_size,
            accumulate=recipe.accumulate,
            workers=config.hardware.workers,
            rank=rank(),
            world=world_size(),
        ),
        mean=mean,
        std=std,
        views=views,
        seed=config.seed,
        max_images=config.debug.max_images,
        balanced=recipe.balance == "sampler",
        targets=find_task(config.task),
    )
    if isinstance(views, StoredViews) and views.exact:
        views.check_epochs(epochs_of(recipe, data), data.train_sampler.num_slots)
    return data


def make_network(
    config: Config,
    model: ModelConfig,
    data: VisionData,
    start: Path | None,
    build: Callable[[VisionData], nn.Module] | None = None,
) -> nn.Module:
    """Build the network, initialised by the seed alone, or with the weights of the artifact ``start``.

    Args:
        build: makes a network of the stage's own instead.
    """
    torch.manual_seed(config.seed)
    if build is not None:
        network = build(data)
    else:
        head = find_task(config.task).head(data.classes)
        network = build_model(model, size=config.dataset.size, classes=data.classes, pretrained=start is None, **head)
        if start is not None:
            network.load_state_dict(load_model(start).state_dict())
    return synchronised(network) if config.trainer.sync_batchnorm and world_size() > 1 else network


def synchronised(network: nn.Module) -> nn.Module:
    """``network`` with BatchNorm whose statistics go over all processes; names and numbers stay (timm's layers too)."""
    converted: nn.Module = convert_sync_batchnorm(network)
    return converted


def make_optimizer(network: nn.Module, recipe: RecipeConfig) -> Optimizer:
    """timm's optimiser of that name over the groups of :func:`parameter_groups`.

    Raises:
        UserError: unknown optimiser or argument.
    """
    rates = recipe.layer_decay, recipe.head_lr
    groups: Any = parameter_groups(network, recipe.weight_decay, *rates, recipe.decay_norms)
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
    except Exception as error:  # of any kind, from arguments of a wrong form
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


def describe_model(
    config: Config,
    model: ModelConfig,
    data: VisionData,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    start: Path | None,
) -> ModelMeta:
    """The description for ``model.json``."""
    name, args = resolve_architecture(model, config.dataset.size)
    if start is not None:
        origin = read_meta(start).origin
    else:
        origin = model.checkpoint or (f"timm {model.name}" if model.pretrained else "")
    return ModelMeta(
        name=name,
        args=args,
        classes=list(data.classes),
        size=plain_size(config.dataset.size),
        mean=list(mean),
        std=list(std),
        crop_pct=config.dataset.crop_pct,
        crop=config.dataset.crop,
        interpolation=config.recipe.augmentation.interpolation,
        origin=origin,
        method=config.method.name,
        task=config.task.name,
    )
