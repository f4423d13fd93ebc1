"""What would stop a run in an hour stops it now: batches, networks and optimisers of every stage to come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from timm.models import resolve_model_input_args
from torch import nn

from vitlab.config import Config, ModelConfig, RecipeConfig
from vitlab.config.precision import HALF, no_half_on_cpu
from vitlab.config.size import Size, hw, plain_size, same_size, size_text
from vitlab.data.build import open_splits
from vitlab.errors import UserError, keys_below
from vitlab.models.build import build_model, knows_classes
from vitlab.models.imagenet22k import ABSENT, CLASSES, class_map, head_note
from vitlab.run.model_file import META_FILE, read_meta
from vitlab.run.run import model_folder
from vitlab.stage import models_of, recipes_of
from vitlab.tasks.base import find_task
from vitlab.training.build import make_optimizer
from vitlab.training.distributed import device_of, rank, world_size
from vitlab.training.out_of_memory import one_value_per_channel, too_small
from vitlab.training.progress import print_line
from vitlab.training.teacher import check_member, refuse_aliases, sizes_of


def preflight(config: Config, reads: set[str]) -> None:
    """Refuse a batch that the data cannot fill or of which a BatchNorm sees one value per channel, a network that timm
    cannot build or that does not classify a blank image, an optimiser that timm does not have.

    Networks are built without memory (on torch's meta device), a tenth of a second each.

    Args:
        reads: config groups that the stages to come read.

    Raises:
        UserError: naming the key.
    """
    recipes = recipes_of(config, reads)
    if not recipes:  # nothing is trained: a design needs no data
        return
    if config.trainer.precision in HALF and device_of(config).type == "cpu":  # accelerator=auto, and no GPU
        raise no_half_on_cpu(f"trainer.precision={config.trainer.precision}")
    if "teacher" in reads and config.recipe.balance != "none":
        raise UserError(
            f"recipe.balance={config.recipe.balance}: method={config.method.name} trains on a teacher's outputs for a "
            "fixed number of views of each image, and class frequencies have no place in that.",
            "Leave it out; a training on labels within the method has its own: teacher.recipe.balance, for instance.",
        )
    train = open_splits(config.dataset, config.seed, config.debug.max_images)["train"]
    find_task(config.task).check_source(train, config.dataset.name)
    with torch.device("meta"):
        students = [_network(config, model, train.classes) for model in models_of(config, reads)]
        teachers = _teachers(config, train.classes) if "teacher" in reads else []
        for key, recipe in recipes.items():
            for network in teachers if key == "teacher.recipe" else students:
                make_optimizer(network, recipe)
                _refuse_one_value(network, key, recipe, config)
    for model in models_of(config, reads) if rank() == 0 else []:
        if note := _starting_point(config, model, train.classes):
            print_line(note)
    for key, recipe in recipes.items():
        _take_a_step(key, recipe, device_of(config))
        if recipe.batch_size > len(train):
            raise UserError(
                f"{key}.batch_size={recipe.batch_size} is more than the {len(train)} training images of "
                f"{config.dataset.name}.",
                f"Take at most {len(train)}, and lower {key}.lr likewise.",
            )


def _take_a_step(key: str, recipe: RecipeConfig, device: torch.device) -> None:
    """One step of the optimiser on a tiny layer, for arguments that are refused only there (``capturable`` on a CPU).

    Raises:
        UserError: naming the arguments.
    """
    layer = nn.Linear(2, 2, device=device)
    optimizer = make_optimizer(layer, replace(recipe, layer_decay=1.0, head_lr=1.0))
    layer(torch.ones(2, 2, device=device)).sum().backward()
    try:
        optimizer.step()
    except Exception as error:  # of any kind, from timm's many optimisers
        raise UserError(
            f"{key}.optimizer={recipe.optimizer} with {key}.optimizer_args={recipe.optimizer_args} cannot take a step "
            f"on {device.type}: {(str(error) or type(error).__name__).splitlines()[0]}",
            f"See the arguments of {recipe.optimizer}, or choose another.",
        ) from error


def _starting_point(config: Config, model: ModelConfig, classes: list[str]) -> str:
    """What will become of the pretrained head, and of tables of positions, as far as the weights' description tells; ""
    where both fit, or nothing is known before the weights are read."""
    if model.checkpoint is not None:
        folder = model_folder(Path(model.checkpoint).expanduser())
        if not (folder / META_FILE).is_file():
            return ""
        meta = read_meta(folder)
        known, trained_at, fits = len(meta.classes), meta.size, meta.classes == list(classes)
    elif model.pretrained:
        record = resolve_model_input_args(model.name)["pretrained_cfg"] or {}
        if not record.get("num_classes") or not record.get("input_size"):  # a wrapper, whose weights are another's
            return ""
        known, trained_at = int(record["num_classes"]), plain_size(record["input_size"][-2:])
        fits = known == len(classes)
    else:
        return ""
    parts = []
    rows = class_map(classes) if known == CLASSES != len(classes) else None
    if rows is not None:
        parts.append(head_note(rows, classes, model.args.get("absent_class", ABSENT[0])))
    elif not fits:
        parts.append(f"a head for {len(classes):,} classes instead of the {known:,} of the weights starts from zero")
    if not same_size(trained_at, config.dataset.size):
        parts.append(f"trained at {size_text(trained_at)} px, here {size_text(config.dataset.size)} px")
    return f"weights  {model.checkpoint or model.name}: {'; '.join(parts)}" if parts else ""


def _teachers(config: Config, classes: list[str]) -> list[nn.Module]:
    """The members of the teacher without memory: the one that is trained, or those that are loaded."""
    members, sizes = config.teacher.members, sizes_of(config)
    if not config.teacher.train:
        refuse_aliases(members)
    found = []
    for number, member in enumerate(members):
        with keys_below(f"teacher.members.{number}"):
            found.append(_network(config, member, classes, None if config.teacher.train else sizes[number]))
        if not config.teacher.train:
            check_member(config, number, found[-1], classes)
    return found


def _network(config: Config, model: ModelConfig, classes: list[str], size: Size | None = None) -> nn.Module:
    """The network without memory, once it has classified a blank image.

    Args:
        size: of its input; None: ``dataset.size``.

    Raises:
        UserError: it is no classifier of RGB images of this size with these arguments, or the folder of its weights is
            of another network.
    """
    head, size = find_task(config.task).head(classes), size or config.dataset.size
    try:
        network = build_model(model, size=size, pretrained=False, **head)
        _classify(network, model, size, head["num_classes"])
    except _Unrunnable:  # perhaps only here: an operator without an implementation for the meta device
        with torch.device("cpu"):
            real = build_model(model, size=size, pretrained=False, **head)
            try:
                _classify(real, model, size, head["num_classes"])
            except _Unrunnable as error:
                raise UserError(
                    f"'{model.name}' with model.args={model.args} does not take an RGB image of "
                    f"{size_text(size)} px: {str(error).splitlines()[0]}",
                    "Check model.args against timm's defaults.",
                ) from error
    if model.checkpoint is not None:
        knows_classes(model, network, classes)  # raises where the folder is of another network
    return network


class _Unrunnable(Exception):
    """A forward pass that raised, with what it raised as text."""


@torch.no_grad()
def _classify(network: nn.Module, model: ModelConfig, size: Size, classes: int) -> None:
    height, width = hw(size)
    network.eval()
    try:
        output = network(torch.zeros(1, 3, height, width))
    except Exception as error:  # of any kind, from timm's many networks
        raise _Unrunnable(f"{type(error).__name__}: {error}") from error
    finally:
        network.train()
    if not isinstance(output, torch.Tensor) or tuple(output.shape) != (1, classes):
        given = list(output.shape) if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
        raise UserError(
            f"'{model.name}' with model.args={model.args} is no classifier here: it gives {given} for one image, not "
            f"{[1, classes]}.",
            "Leave num_classes, global_pool and features_only to vitlab.",
        )


@torch.no_grad()
def _refuse_one_value(network: nn.Module, key: str, recipe: RecipeConfig, config: Config) -> None:
    """Refuse a batch of which each device sees so little that a BatchNorm has one value per channel."""
    at_once = recipe.batch_size // (world_size() * recipe.accumulate)
    if at_once != 1 or recipe.freeze_batchnorm or (config.trainer.sync_batchnorm and world_size() > 1):
        return
    try:
        network.train()(torch.zeros(1, 3, *hw(config.dataset.size)))
    except ValueError as error:
        if one_value_per_channel(error):
            raise too_small(key, at_once) from error
    except (RuntimeError, NotImplementedError):
        return  # an operator without an implementation for the meta device; the training answers
