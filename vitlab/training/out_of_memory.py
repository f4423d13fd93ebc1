"""A batch that does not fit into memory: how much of it would, and what to type."""

from __future__ import annotations

import gc
import traceback

import lightning as L
import torch

from vitlab.config import Config, RecipeConfig
from vitlab.data.datamodule import VisionData
from vitlab.errors import UserError
from vitlab.stage import recipes_of
from vitlab.training.build import shortened
from vitlab.training.distributed import world_size
from vitlab.training.learner import Learner


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def one_value_per_channel(error: BaseException) -> bool:
    """Whether a BatchNorm was given one value per channel, of which there is no variance."""
    return isinstance(error, ValueError) and "more than 1 value per channel" in str(error)


def too_small(key: str, at_once: int) -> UserError:
    """The message for :func:`one_value_per_channel`. ``key``: of the recipe; ``at_once``: images on each device."""
    return UserError(
        f"{key}: {at_once} image(s) at once on each device leave BatchNorm one value per channel, without a variance.",
        f"Raise {key}.batch_size or lower {key}.accumulate, enlarge dataset.size, or freeze the statistics of a "
        f"pretrained network with {key}.freeze_batchnorm=true.",
    )


def free_traceback(error: BaseException) -> None:
    """Free what the frames of a step that ran out of memory hold: all that it had computed until then."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


def largest_that_fits(trainer: L.Trainer, learner: Learner, data: VisionData) -> int:
    """Images of which the student computes logits and gradients without running out of memory: the batch, halved and
    halved again; 0 where not even one fits. Weights, optimiser and teacher are where they were."""
    sampler = data.train_sampler
    image = torch.zeros(sampler.per_rank, 3, data.view.height, data.view.width)
    size = sampler.per_rank // 2
    while size and not _fits(trainer, learner, image[:size]):
        size //= 2
    return size


def _fits(trainer: L.Trainer, learner: Learner, image: torch.Tensor) -> bool:
    """Whether a forward and a backward pass over ``image`` do; nothing of a pass that does not is kept."""
    learner.zero_grad(set_to_none=True)
    gc.collect()
    if learner.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        with trainer.precision_plugin.train_step_context():
            loss = learner.logits(learner.student(image.to(learner.device))).float().sum()
        loss.backward()
    except (RuntimeError, ValueError) as error:
        if not out_of_memory(error) and not one_value_per_channel(error):
            raise
        return False
    return True


def too_large(config: Config, recipe: RecipeConfig, stage: str, fits: int | None) -> UserError:
    """The answer to the user: how many images fit at once, and the accumulation that keeps the batch as it is.

    Args:
        fits: None: not tried out.
    """
    recipes = recipes_of(config, {"recipe", "teacher"})
    key = next((name for name, one in recipes.items() if shortened(config, one) == recipe), "recipe")
    at_once = recipe.batch_size // (world_size() * recipe.accumulate)
    what = f"Stage {stage} ran out of memory with {at_once} images at once on each device"
    mixes = recipe.augmentation.mixup > 0 or recipe.augmentation.cutmix > 0
    for parts in range(recipe.accumulate + 1, recipe.batch_size + 1):
        each, rest = divmod(recipe.batch_size, world_size() * parts)
        if not rest and 0 < each <= (at_once // 2 if fits is None else fits) and not (mixes and each % 2):
            return UserError(
                f"{what}; {'fewer may fit' if fits is None else f'{fits} fit'}.",
                f"Give {key}.accumulate={parts}: the same run continues with {each} at once, in batches of "
                f"{recipe.batch_size} as before. (BatchNorm would see the {each}.)",
            )
    return UserError(f"{what}, and not even one fits.", "Take a smaller network, or smaller images: dataset.size.")
