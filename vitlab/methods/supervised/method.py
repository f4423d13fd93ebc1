"""Supervised training: any model, any data set, any recipe, labels alone."""

from __future__ import annotations

from dataclasses import dataclass

from vitlab.methods.base import Context, Method, stage


class Supervised(Method):
    """Train ``model`` on the labels of ``dataset`` with ``recipe``."""

    @dataclass
    class Options:
        name: str = "supervised"

    @stage(reads=("dataset", "model", "recipe", "task"), title="model, labels alone")
    def train(self, context: Context) -> dict[str, object]:
        """Cross-entropy against the (smoothed, mixed) labels."""
        from vitlab.training.train import train_on_labels

        return train_on_labels(context, self.config.model, self.config.recipe)
