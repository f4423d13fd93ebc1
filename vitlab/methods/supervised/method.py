"""Supervised training: any model, any data set, any recipe, any task."""

from __future__ import annotations

from dataclasses import dataclass

from vitlab.methods.base import Context, Method, stage


class Supervised(Method):
    """Train ``model`` on the labels of ``dataset`` with ``recipe``."""

    @dataclass
    class Options:
        name: str = "supervised"

    @stage(reads=("dataset", "model", "recipe", "task"), title="model")
    def train(self, context: Context) -> dict[str, object]:
        """The task's objective on the (smoothed, mixed) labels."""
        from vitlab.training.train import train_on_labels

        return train_on_labels(context, self.config.model, self.config.recipe)
