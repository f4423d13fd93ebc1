"""Supervised training: any model, any data set, any recipe, labels alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from vitlab.methods.base import Context, Method, stage


class Supervised(Method):
    """Train ``model`` on the labels of ``dataset`` with ``recipe``."""

    @dataclass
    class Options:
        name: str = "supervised"

    @stage(reads=("dataset", "model", "recipe", "task"), title="model, labels alone")
    def train(self, context: Context) -> dict[str, object]:
        """Cross-entropy against the (smoothed, mixed) labels."""
        from vitlab.training.objectives import label_cross_entropy
        from vitlab.training.train import train

        recipe = self.config.recipe
        objective = partial(label_cross_entropy, smoothing=recipe.label_smoothing)
        return train(context, self.config.model, recipe, objective)
