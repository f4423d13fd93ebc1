"""NViT: global, Hessian-aware, latency-aware pruning of a vision transformer (CVPR 2023).

The story: the *dense* network is trained or taken as given; its parts are timed on this device (*latency*); *prune*
trains on while every so many steps the groups of units with the least importance for their latency are removed, over
all blocks and kinds of units alike, until the target is met; *cut* takes them out and leaves a smaller network, which
is *finetuned* with the dense one as a teacher. The same structure trained from scratch is the comparison.
"""

from __future__ import annotations

from pathlib import Path

from vitlab.config import Config
from vitlab.methods.base import Context, Method, Stage, recipe_length, stage
from vitlab.methods.nvit.options import NViTOptions, check, has_cnn, has_weights, measures, prunes


class NViT(Method):
    """Global pruning."""

    Options = NViTOptions
    options: NViTOptions

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse contradictions before anything runs."""
        check(config)

    def check_data(self) -> None:
        """A network with parts that cannot be pruned is refused before anything is trained."""
        if prunes(self.config):
            from vitlab.methods.nvit.stages import check_network

            check_network(self.config)

    @classmethod
    def length(cls, stage: Stage, config: Config) -> str:
        """Dense network, finetuning and baseline have recipes of their own."""
        options: NViTOptions = config.method
        if stage.name == "teacher":
            recipe = config.teacher.recipe if config.teacher.train else None
            return recipe_length(recipe, config) if recipe is not None else "loaded"
        if stage.name == "dense" and has_weights(config):
            trained = recipe_length(options.dense, config) if options.dense is not None else ""
            return f"loaded; of other classes: {trained}" if trained else "loaded"
        recipes = {"dense": options.dense, "finetune": options.finetune, "scratch": options.scratch}
        if (recipe := recipes.get(stage.name)) is not None:
            return recipe_length(recipe, config)
        return (
            f"at most {recipe_length(config.recipe, config)}"
            if stage.name == "prune"
            else super().length(stage, config)
        )

    @stage(reads=("dataset", "teacher", "task"), title="CNN teacher", role="teacher", when=has_cnn)
    def teacher(self, context: Context) -> dict[str, object]:
        """Train the CNN on the data set, or load it (specification 8: a RegNetY-160)."""
        from vitlab.training.train import train_teacher

        return train_teacher(context)

    @stage(reads=("dataset", "model", "recipe", "task"), title="dense network", role="teacher", when=prunes)
    def dense(self, context: Context) -> dict[str, object]:
        """The network to be pruned, which is also the teacher of the divergence."""
        from vitlab.methods.nvit.stages import dense

        return dense(context, self.options)

    @stage(reads=("dataset", "model"), makes="latency table", title="latency table", when=measures, alone=True)
    def latency(self, context: Context) -> dict[str, object]:
        """Time attention and MLP over a grid of widths on this device (specification 6)."""
        from vitlab.methods.nvit.stages import latency

        return latency(context, self.options)

    @stage(
        needs=("teacher", "dense", "latency"),
        reads=("dataset", "model", "recipe", "teacher", "task"),
        makes="masks",
        title="masks of the pruned network",
        when=prunes,
    )
    def prune(self, context: Context) -> dict[str, object]:
        """Remove the least important groups while training, until the target is met (sections 3.2 and 3.3)."""
        from vitlab.methods.nvit.prune import prune
        from vitlab.methods.nvit.stages import TABLE

        table = context.artifact("latency") / TABLE if measures(self.config) else None
        return prune(context, self.options, context.artifact("dense"), self._cnn(context), table)

    @stage(needs=("dense", "prune"), reads=("task",), title="pruned network, not finetuned", when=prunes, alone=True)
    def cut(self, context: Context) -> dict[str, object]:
        """Cut the pruned units out of the weights (specification 9)."""
        from vitlab.methods.nvit.stages import cut

        return cut(context, self.options, context.artifact("dense"), context.artifact("prune"))

    @stage(
        needs=("teacher", "dense", "cut"),
        reads=("dataset", "model", "teacher", "task"),
        title="pruned network, finetuned",
        when=lambda config: prunes(config) and config.method.finetune is not None,
    )
    def finetune(self, context: Context) -> dict[str, object]:
        """Train the exported network with the dense one as its teacher (specification 9)."""
        from vitlab.methods.nvit.stages import finetune

        dense, exported = context.artifact("dense"), context.artifact("cut")
        return finetune(context, self.options, dense, self._cnn(context), exported)

    @stage(
        needs=("cut",),
        reads=("dataset", "model", "task"),
        title="pruned structure, from scratch",
        role="baseline",
        when=lambda config: prunes(config) and config.method.scratch is not None,
    )
    def scratch(self, context: Context) -> dict[str, object]:
        """The comparison: the same small network without the weights of the dense one."""
        from vitlab.methods.nvit.training import model_of
        from vitlab.training.train import train_on_labels

        assert self.options.scratch is not None
        return train_on_labels(context, model_of(context.artifact("cut")), self.options.scratch)

    @stage(
        needs=("teacher",),
        reads=("dataset", "model", "recipe", "teacher", "task"),
        title="redistributed network",
        when=lambda config: not prunes(config),
    )
    def revit(self, context: Context) -> dict[str, object]:
        """Train a network of ReViT's rule from scratch (specification 10)."""
        from vitlab.methods.nvit.stages import revit

        return revit(context, self.options, self._cnn(context))

    def _cnn(self, context: Context) -> Path | None:
        return context.artifact("teacher") if has_cnn(self.config) else None
