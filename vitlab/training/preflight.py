"""What would stop a run in an hour stops it now: batches, networks and optimisers of every stage to come."""

from __future__ import annotations

import torch
from torch import nn

from vitlab.config import Config, ModelConfig
from vitlab.config.precision import HALF, no_half_on_cpu
from vitlab.data.build import open_splits
from vitlab.errors import UserError
from vitlab.models.build import build_model
from vitlab.stage import models_of, recipes_of
from vitlab.tasks.base import find_task
from vitlab.training.build import make_optimizer
from vitlab.training.distributed import device_of


def preflight(config: Config, reads: set[str]) -> None:
    """Refuse a batch that the data cannot fill, a network that timm cannot build, an optimiser that it does not have.

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
        for key, recipe in recipes.items():
            of_teacher = key == "teacher.recipe"
            learners = [_network(config, config.teacher.members[0], train.classes)] if of_teacher else students
            for network in learners:
                make_optimizer(network, recipe)
    for key, recipe in recipes.items():
        if recipe.batch_size > len(train):
            raise UserError(
                f"{key}.batch_size={recipe.batch_size} is more than the {len(train)} training images of "
                f"{config.dataset.name}.",
                f"Take at most {len(train)}, and lower {key}.lr likewise.",
            )


def _network(config: Config, model: ModelConfig, classes: list[str]) -> nn.Module:
    return build_model(model, size=config.dataset.size, pretrained=False, **find_task(config.task).head(classes))
