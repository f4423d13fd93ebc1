"""TinyViT's fast pretraining distillation (paper section 3.1): label every view once, train many students from that.

The story: a *teacher* is trained or loaded; it labels the augmented views of every image once and the *store* keeps
its top-K probabilities; the student is *pretrained* from the stored labels, without teacher and without ground truth
(Eq. 1 and 2), and may be *finetuned* on the labels. The same student trained on *labels* alone, with equally many
steps, is the comparison.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from vitlab.config import Config
from vitlab.methods.base import Context, Method, Stage, longer, recipe_length, stage
from vitlab.methods.tinyvit.options import (
    TinyViTOptions,
    check,
    distils,
    finetunes,
    learns,
    makes_store,
    makes_teacher,
    views_of,
)


class TinyViT(Method):
    """Fast pretraining distillation."""

    Options = TinyViTOptions
    options: TinyViTOptions

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse contradictions before anything runs."""
        check(config)

    @classmethod
    def length(cls, stage: Stage, config: Config) -> str:
        """Teacher and finetuning have recipes of their own, and a store is as long as what it holds."""
        recipe = config.recipe
        if stage.name == "store":
            views = config.method.epochs
            if config.method.store_views is not None:
                first, stop = config.method.store_views
                return f"views {first} to {stop - 1} of every image"
            return f"{views} views of every image" if views else "one view of every image for each epoch"
        if stage.name == "teacher":
            if not config.teacher.train or config.teacher.recipe is None:
                return "loaded"
            recipe = config.teacher.recipe
        elif stage.name == "finetune":
            recipe = config.method.finetune
        return recipe_length(recipe, config)

    @classmethod
    def advice(cls, config: Config) -> list[tuple[str, str]]:
        """A student cannot gain what its teacher does not know."""
        stronger = "a teacher that knows more than the labels: a large pretrained one, finetuned on these images"
        few = "few labels, where each of three seeds had a lower NLL (measured in conf/experiment/tinyvit_digits.yaml)"
        duration = longer(config.recipe.duration)
        found = [(f"training longer, {duration}", f"recipe.duration={duration}")]
        if makes_teacher(config) and not any(member.pretrained for member in config.teacher.members):
            found.insert(0, (stronger, "teacher=finetuned"))
        if config.dataset.labels_per_class is None:
            found.append((few, "dataset.labels_per_class=10"))
        return found

    @stage(reads=("dataset", "teacher", "task"), title="teacher", role="teacher", when=makes_teacher)
    def teacher(self, context: Context) -> dict[str, object]:
        """Train the teacher on the data set, or load it; either way it becomes an artifact."""
        from vitlab.training.train import train_teacher

        return train_teacher(context)

    @stage(
        needs=("teacher",),
        reads=("dataset", "recipe", "teacher"),
        makes="store",
        title="stored labels",
        when=makes_store,
    )
    def store(self, context: Context) -> dict[str, object]:
        """Label every view of every image once (section 3.1; record layout of the official store)."""
        from vitlab.training.label_views import label_views

        options = self.options
        into = Path(options.store_to) if options.store_to else None
        only = range(*options.store_views) if options.store_views else None
        teacher = context.artifact("teacher")
        return label_views(context, teacher, options.topk, options.prob_dtype, options.epochs, into, only)

    @stage(
        needs=("teacher", "store"),
        reads=("dataset", "model", "recipe", "task"),
        title="student, teacher's labels",
        when=lambda config: distils(config) and learns(config),
    )
    def pretrain(self, context: Context) -> dict[str, object]:
        """Train the student on the teacher's soft labels (Eq. 1), stored or computed at every step."""
        from vitlab.data.views import FreshViews, StoredViews
        from vitlab.training.label_views import STORE
        from vitlab.training.objectives import distillation
        from vitlab.training.train import train

        options, config = self.options, self.config
        objective = partial(distillation, clamp_minor=options.clamp_minor)
        if options.online:
            views = FreshViews(views_of(config))
            return train(context, config.model, config.recipe, objective, views, teacher=context.artifact("teacher"))
        given = options.store or options.store_to
        store = Path(given) if given else context.artifact("store") / STORE
        stored = StoredViews(store, exact=options.replay == "exact")
        return train(context, config.model, config.recipe, objective, stored)

    @stage(
        needs=("pretrain",),
        reads=("dataset", "model", "task"),
        title="student, finetuned on labels",
        when=finetunes,
    )
    def finetune(self, context: Context) -> dict[str, object]:
        """Go on from the pretrained student, or from a checkpoint, on the labels of the data set."""
        from vitlab.training.train import train_on_labels

        recipe = self.options.finetune
        assert recipe is not None
        start = context.artifact("pretrain") if self.options.distill else None
        return train_on_labels(context, self.config.model, recipe, start=start)

    @stage(
        reads=("dataset", "model", "recipe", "task"),
        title="same student, labels alone",
        role="baseline",
        when=lambda config: config.method.baseline and config.method.distill and learns(config),
    )
    def labels(self, context: Context) -> dict[str, object]:
        """The comparison: the same student, views and number of steps, without a teacher."""
        from vitlab.data.views import FreshViews
        from vitlab.training.train import train_on_labels

        return train_on_labels(context, self.config.model, self.config.recipe, FreshViews(views_of(self.config)))
