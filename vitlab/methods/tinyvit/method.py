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
from vitlab.errors import UserError
from vitlab.methods.base import Context, Method, Stage, recipe_length, stage
from vitlab.methods.tinyvit.options import TinyViTOptions


def distils(config: Config) -> bool:
    return bool(config.method.distill)


def learns(config: Config) -> bool:
    """Whether a student is trained; a run that stores its share of a store for others leaves that to them."""
    return config.method.store_views is None


def makes_teacher(config: Config) -> bool:
    return distils(config) and config.method.store is None


def makes_store(config: Config) -> bool:
    return makes_teacher(config) and not config.method.online


def finetunes(config: Config) -> bool:
    """With neither a teacher nor a recipe to finetune with, it is the recipe that is missing: ``check`` says so."""
    return learns(config) and (config.method.finetune is not None or not distils(config))


def views_of(config: Config) -> int | None:
    """Different views of every image where none are stored: as many as a store would hold; None: one for each epoch."""
    wanted, most = config.method.epochs, config.debug.max_slots
    return min(wanted, most) if wanted and most else wanted or most


class TinyViT(Method):
    """Fast pretraining distillation."""

    Options = TinyViTOptions
    options: TinyViTOptions

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse contradictions before anything runs."""
        options: TinyViTOptions = config.method
        if distils(config) and config.task.targets != "class":
            raise UserError(
                f"TinyViT stores the teacher's class probabilities, which sum to one; the paper has no form of it for "
                f"task={config.task.name}.",
                "Give method=supervised, or method.distill=false with a recipe to finetune with.",
            )
        if options.online and options.store is not None:
            raise UserError(
                "method.online=true asks the teacher at every step, method.store names stored labels.",
                "Leave one of the two out.",
            )
        if options.store_views is not None:
            if len(options.store_views) != 2 or not 0 <= options.store_views[0] < options.store_views[1]:
                raise UserError(f"method.store_views={options.store_views} is not [START, STOP], counted from 0.")
            if options.store_to is None or not makes_store(config):
                raise UserError(
                    "method.store_views stores a part of the views for others to train from.",
                    "Give method.store_to=FOLDER, the same in every run that fills it, and a teacher.",
                )
        if options.replay not in ("cycle", "exact"):
            raise UserError(f"method.replay={options.replay} is not cycle or exact.")
        if not distils(config):
            if options.finetune is None:
                raise UserError(
                    "method.distill=false only finetunes, and method.finetune names no recipe.",
                    "Choose one: recipe@method.finetune=tinyvit_finetune.",
                )
            if config.model.checkpoint is None and not config.model.pretrained:
                raise UserError(
                    "method.distill=false finetunes a network that was trained before.",
                    "Give model.checkpoint=FILE or FOLDER, or model.pretrained=true.",
                )
        if makes_teacher(config) and not config.teacher.members:
            raise UserError(
                "TinyViT needs a teacher, and teacher=none has no members.", "Choose one: mode=list group=teacher."
            )

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
        """Train the student on the teacher's soft labels (Eq. 1), stored or asked for at every step."""
        from vitlab.training.label_views import STORE
        from vitlab.training.objectives import distillation
        from vitlab.training.train import train

        options, config = self.options, self.config
        exact = options.replay == "exact"
        objective = partial(distillation, clamp_minor=options.clamp_minor)
        if options.online:
            teacher = context.artifact("teacher")
            return train(context, config.model, config.recipe, objective, teacher=teacher, views=views_of(config))
        given = options.store or options.store_to
        store = Path(given) if given else context.artifact("store") / STORE
        return train(context, config.model, config.recipe, objective, store=store, exact=exact)

    @stage(
        needs=("pretrain",),
        reads=("dataset", "model", "task"),
        title="student, finetuned on labels",
        when=finetunes,
    )
    def finetune(self, context: Context) -> dict[str, object]:
        """Go on from the pretrained student, or from a checkpoint, on the labels of the data set."""
        from vitlab.training.objectives import label_cross_entropy
        from vitlab.training.train import train

        recipe = self.options.finetune
        assert recipe is not None
        start = context.artifact("pretrain") if self.options.distill else None
        objective = partial(label_cross_entropy, smoothing=recipe.label_smoothing)
        return train(context, self.config.model, recipe, objective, start=start)

    @stage(
        reads=("dataset", "model", "recipe", "task"),
        title="same student, labels alone",
        role="baseline",
        when=lambda config: config.method.baseline and config.method.distill and learns(config),
    )
    def labels(self, context: Context) -> dict[str, object]:
        """The comparison: the same student, views and number of steps, without a teacher."""
        from vitlab.training.objectives import label_cross_entropy
        from vitlab.training.train import train

        recipe = self.config.recipe
        objective = partial(label_cross_entropy, smoothing=recipe.label_smoothing)
        return train(context, self.config.model, recipe, objective, views=views_of(self.config))
