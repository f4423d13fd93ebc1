"""The learning rate as a pure function of the optimiser step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitlab.config import RecipeConfig, to_steps
from vitlab.errors import UserError

COMPATS = ("vitlab", "official")

KINDS = ("cosine", "cosine_after", "linear", "step", "constant")


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then decay; the value depends on the step alone, so a resumed run needs no state.

    With ``warmup`` = Tw and ``total`` = T, step t < Tw gives ``warmup_lr + t (lr - warmup_lr) / Tw``. From Tw on,
    the *cosine* is ``min_lr + (lr - min_lr)(1 + cos(pi t / T)) / 2``: it counts from 0, not from Tw, so there is a
    small drop at t = Tw (TinyViT, official code). *linear* falls straight to ``min_lr`` at T, counted likewise;
    *step* multiplies by ``decay_rate`` at each of ``decay_at``; *constant* stays. From T on: the value at T.

    *cosine_after* is Dataset Reinforcement's (arXiv 2303.08983): ``lr (t + 1) / Tw`` below Tw, whatever ``warmup_lr``,
    and then ``min_lr + (lr - min_lr)(1 + cos(pi (t - Tw + 1) / (T - Tw))) / 2``, which ends with the last step.

    With a ``lag`` of 1 the rate of step t is that of step t - 1 above, and the first two steps share one: TinyViT's
    official code sets the rate of step t after that step, for the next. Here the first step of the schedule is the
    first of the optimiser, so that by default a run is one step ahead of the official one.
    """

    kind: str
    lr: float
    total: int
    warmup: int = 0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    decay_at: tuple[int, ...] = ()
    decay_rate: float = 0.1
    lag: int = 0

    @classmethod
    def from_recipe(cls, recipe: RecipeConfig, steps_per_epoch: int) -> Schedule:
        """Turn the durations of a recipe into steps.

        Raises:
            UserError: if a duration is malformed or less than a step, or the warm-up is longer than the training.
        """
        if recipe.schedule not in KINDS:
            raise UserError(f"recipe.schedule={recipe.schedule} is not a schedule.", f"Take {' or '.join(KINDS)}.")
        total = duration_steps("recipe.duration", recipe.duration, steps_per_epoch)
        if total < 1:
            raise UserError(
                f"recipe.duration={recipe.duration} is less than a step: an epoch has {steps_per_epoch}.",
                "Give at least 1st.",
            )
        warmup = duration_steps("recipe.warmup", recipe.warmup, steps_per_epoch, total)
        if warmup > total:
            raise UserError(
                f"recipe.warmup={recipe.warmup} is {warmup} steps, the whole training (recipe.duration="
                f"{recipe.duration}) {total}.",
                "Shorten the warm-up, or give it as a share, such as 10%.",
            )
        decay_at = tuple(duration_steps("recipe.decay_at", d, steps_per_epoch, total) for d in recipe.decay_at)
        return cls(
            recipe.schedule,
            recipe.lr,
            total,
            warmup,
            recipe.warmup_lr,
            recipe.min_lr,
            tuple(sorted(decay_at)),
            recipe.decay_rate,
            lag=int(recipe.schedule_compat == "official"),
        )

    def __call__(self, step: int) -> float:
        """Learning rate of the optimiser step with index ``step`` (0 for the first)."""
        step = max(step - self.lag, 0)
        if self.kind == "cosine_after":
            if step < self.warmup:
                return self.lr * (step + 1) / self.warmup
            share = (min(step, self.total - 1) - self.warmup + 1) / max(self.total - self.warmup, 1)
            return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * share))
        if step < self.warmup:
            return self.warmup_lr + step * (self.lr - self.warmup_lr) / self.warmup
        step = min(step, self.total)
        match self.kind:
            case "cosine":
                return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * step / self.total))
            case "linear":
                return self.min_lr + (self.lr - self.min_lr) * (1 - step / self.total)
            case "step":
                return self.lr * self.decay_rate ** sum(step >= at for at in self.decay_at)
            case _:
                return self.lr


def describe_length(steps: int, per_epoch: int, batch_size: int, images: int) -> str:
    """A training in steps, and the images that no batch of an epoch holds."""
    text = f"{steps:,} step{'' if steps == 1 else 's'} in all, {per_epoch:,} an epoch"
    left = images - per_epoch * batch_size
    if left <= 0:
        return text
    return f"{text}; each epoch leaves out {left:,} of {images:,} images, which do not fill a batch of {batch_size}"


SLOW = 0.05
"""Share of the weights after the first step in the last average from which on a training is called too short for it."""


def slow_average(recipe: RecipeConfig, steps: int) -> str:
    """A remark where the weight average of ``steps`` steps is still made of the first weights; empty otherwise.

    The average is the student's weights after the first step; of these ``ema ** (steps - 1)`` are left at the end.
    """
    if recipe.ema is None or recipe.ema_warmup or steps < 2:
        return ""
    share = recipe.ema ** (steps - 1)
    if share <= SLOW:
        return ""
    return (
        f"recipe.ema={recipe.ema:g} is too slow for {steps:,} steps: {100 * share:.0f} % of the kept weights are those "
        f"after the first step. Give recipe.ema_warmup=true, or recipe.ema={0.01 ** (1 / (steps - 1)):.2g} (1 %)."
    )


def duration_steps(key: str, duration: str, steps_per_epoch: int, total: int | None = None) -> int:
    """:func:`vitlab.config.to_steps` with the key's name in the answer to a mistake."""
    try:
        return to_steps(duration, steps_per_epoch, total)
    except ValueError as error:
        raise UserError(f"{key}: {error}.") from None
