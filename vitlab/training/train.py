"""The story that every training stage tells: data, network, learner, fit, artifact."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

from vitlab.config import Config, ModelConfig, RecipeConfig
from vitlab.data.datamodule import VisionData
from vitlab.distill.teachers import StoredTeacher
from vitlab.models.artifact import ModelMeta, load_model, read_meta, save_model
from vitlab.models.build import architecture, build_model, normalisation
from vitlab.stage import Context
from vitlab.tasks.base import find_task
from vitlab.training.build import Reinforced, full_steps, make_data, make_optimizer, shortened
from vitlab.training.callbacks.view_grid import ViewGrid
from vitlab.training.distributed import device_of, world_size
from vitlab.training.fit import fit
from vitlab.training.learner import Learner, TeacherFn
from vitlab.training.objectives import Objective
from vitlab.training.schedule import Schedule
from vitlab.training.sharding import all_processes, full_state_dict, shard, uses_sharding
from vitlab.training.teacher import load_teacher, make_teacher


def train(
    context: Context,
    model: ModelConfig,
    recipe: RecipeConfig,
    objective: Objective | None,
    *,
    teacher: Path | None = None,
    store: Path | None = None,
    views: int | None = None,
    exact: bool = False,
    start: Path | None = None,
    reinforcements: Reinforced | None = None,
) -> dict[str, object]:
    """Train ``model`` with ``recipe`` to minimise ``objective``, and leave a model artifact in ``context.folder``.

    Args:
        objective: None: the task's own, on the labels.
        teacher: artifact of a teacher that is asked for a target at every step.
        store: sealed :class:`~vitlab.distill.store.TargetStore`; its targets are read instead.
        views: different views of every image, see :func:`make_data`.
        exact: epoch e reads stored view e and no other, see :func:`make_data`.
        reinforcements: stored reinforcements whose views and targets are read instead.
        start: model artifact whose weights to start from; None: as ``model`` says.

    Returns:
        What the stage's marker records: steps, seconds, params.
    """
    config, asked, recipe = context.config, recipe, shortened(context.config, recipe)
    mean, std = normalisation(model, config.dataset.mean, config.dataset.std)
    data = make_data(config, recipe, mean, std, store=store, views=views, exact=exact, reinforcements=reinforcements)
    task = find_task(config.task)
    task.check_source(data.train_source, config.dataset.name)
    network = make_network(config, model, data, start)
    schedule = Schedule.from_recipe(recipe, data.steps_per_epoch)
    steps, images = schedule.total, len(data.train_source)
    if context.full_config is not None:
        steps, _, images = full_steps(context.full_config, asked)
    learner = Learner(
        network,
        objective or task.objective(recipe, data.train_source),
        schedule,
        partial(make_optimizer, recipe=recipe),
        teacher=_teacher(config, teacher, store is not None or reinforcements is not None, data),
        freeze_batchnorm=recipe.freeze_batchnorm,
        clip=recipe.clip,
        ema=recipe.ema,
        seed=config.seed,
        compile=config.hardware.compile,
        task=task,
        classes=data.num_classes,
    )
    seconds = fit(
        config,
        recipe,
        learner,
        data,
        stage=context.stage.name,
        folder=context.folder,
        recorder=context.recorder,
        validation=data.val_dataloader(),
        rehearse=steps if context.full_config is not None else None,
        callbacks=[ViewGrid(context.folder / "views.png", mean, std)] if context.is_main else [],
    )
    meta = describe_model(config, model, data, mean, std, start)
    state = full_state_dict(learner.result)
    if context.is_main:
        save_model(context.folder, learner.result, meta, state)
    params = sum(p.numel() for p in network.parameters())
    return {"seconds": round(seconds, 2), "params": params, "images": images, "steps": steps}


def train_teacher(context: Context) -> dict[str, object]:
    """Train the teacher on the labels of the data set, with its own recipe, or adopt the one that is given; either way
    it becomes an artifact."""
    spec = context.config.teacher
    if not spec.train:
        return load_teacher(context)
    assert spec.recipe is not None  # checked when the configuration was composed
    return train(context, spec.members[0], spec.recipe, None)


def make_network(config: Config, model: ModelConfig, data: VisionData, start: Path | None) -> nn.Module:
    """Build the network, initialised by the seed alone, or with the weights of the artifact ``start``."""
    torch.manual_seed(config.seed)
    head = find_task(config.task).head(data.classes)
    network = build_model(model, size=config.dataset.size, classes=data.classes, pretrained=start is None, **head)
    if start is not None:
        network.load_state_dict(load_model(start).state_dict())
    return synchronised(network) if config.trainer.sync_batchnorm and world_size() > 1 else network


def synchronised(network: nn.Module) -> nn.Module:
    """``network`` with BatchNorm whose statistics go over all processes; names and numbers stay (timm's layers too)."""
    converted: nn.Module = convert_sync_batchnorm(network)
    return converted


def describe_model(
    config: Config,
    model: ModelConfig,
    data: VisionData,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    start: Path | None,
) -> ModelMeta:
    """What ``model.json`` will say."""
    name, args = architecture(model, config.dataset.size)
    if start is not None:
        origin = read_meta(start).origin
    else:
        origin = model.checkpoint or (f"timm {model.name}" if model.pretrained else "")
    return ModelMeta(
        name=name,
        args=args,
        classes=list(data.classes),
        size=config.dataset.size,
        mean=list(mean),
        std=list(std),
        crop_pct=config.dataset.crop_pct,
        crop=config.dataset.crop,
        interpolation=config.recipe.augmentation.interpolation,
        origin=origin,
        method=config.method.name,
        task=config.task.name,
    )


def _teacher(config: Config, teacher: Path | None, stored: bool, data: VisionData) -> TeacherFn | None:
    if stored:
        return StoredTeacher()
    if teacher is None:
        return None
    online = make_teacher(config, teacher, data)
    if uses_sharding(config):
        for network in online.networks:
            shard(network, all_processes(config))
    return online.to(device_of(config))
