"""Dataset Reinforcement: store augmented views and strong teachers' outputs for them once, train anything from it.

The story: a *teacher* (better: several) is trained or loaded; it *reinforces* every image with NS stored views, their
explicit parameters and the K largest of its probabilities (sections 3 to 5 of the paper); a student is *trained* to
minimise KL(teacher || student) on replayed views, without teacher and without labels (section 7). The same student on
labels alone (*erm*) and with the teacher at every step (*kd*) are the comparisons, with equally many steps.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from vitlab.config import Config
from vitlab.methods.base import Context, Method, Stage, longer, recipe_length, stage
from vitlab.methods.reinforce.options import (
    ReinforceOptions,
    check,
    makes_teacher,
    reinforces,
    stores,
    warn_of_filter,
)


class Reinforce(Method):
    """Dataset Reinforcement."""

    Options = ReinforceOptions
    options: ReinforceOptions

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse contradictions before anything runs."""
        check(config)

    def check_data(self) -> None:
        """Stored reinforcements of other images are refused before anything is trained."""
        folders = stores(self.options)
        if not folders:
            return
        from vitlab.data.build import open_splits
        from vitlab.data.sources import fingerprint
        from vitlab.distill.formats import open_reinforcements
        from vitlab.training.distributed import rank

        config = self.config
        images = open_splits(config.dataset, config.seed, config.debug.max_images)["train"]
        same = {"data_fingerprint": fingerprint(images)}
        stored = open_reinforcements(folders, len(images), len(images.classes), same)
        if rank() == 0:
            warn_of_filter(config, stored.interpolation, *folders)

    @classmethod
    def length(cls, stage: Stage, config: Config) -> str:
        """The teacher has a recipe of its own, and reinforced data are as long as what they hold."""
        if stage.name == "reinforce":
            return f"{config.method.samples} views of every image"
        if stage.name == "kd" and config.method.kd_recipe is not None:
            return recipe_length(config.method.kd_recipe, config)
        if stage.name != "teacher":
            return recipe_length(config.recipe, config)
        if not config.teacher.train or config.teacher.recipe is None:
            return "loaded"
        return recipe_length(config.teacher.recipe, config)

    @classmethod
    def advice(cls, config: Config) -> list[tuple[str, str]]:
        """Longer trainings gain more (the paper), from a teacher that knows more, on more different views."""
        duration = longer(config.recipe.duration)
        found = [(f"training longer, {duration}, as the paper's gains grow with it", f"recipe.duration={duration}")]
        if reinforces(config):
            stronger = "a teacher that knows more than the labels: a large pretrained one, finetuned on these images"
            if not any(member.pretrained for member in config.teacher.members):
                found.insert(0, (stronger, "teacher=finetuned_resnext"))
            samples = 4 * int(config.method.samples)
            found.append((f"{samples} stored views of every image", f"method.samples={samples}"))
        return found

    @stage(reads=("dataset", "teacher", "task"), title="teacher", role="teacher", when=makes_teacher)
    def teacher(self, context: Context) -> dict[str, object]:
        """Train the teacher on the data set (section 8: data sets that no strong teacher knows), or load it."""
        from vitlab.training.train import train_teacher

        return train_teacher(context)

    @stage(
        needs=("teacher",),
        reads=("dataset", "recipe", "teacher"),
        makes="store",
        title="reinforced data",
        when=reinforces,
    )
    def reinforce(self, context: Context) -> dict[str, object]:
        """Draw NS views of every image, have the teacher label them, keep the parameters and the K best (section 5)."""
        from vitlab.methods.reinforce.generate import reinforce_images

        return reinforce_images(context, context.artifact("teacher"), self.options)

    @stage(
        reads=("dataset", "model", "recipe", "task"),
        title="same student, labels alone",
        role="baseline",
        when=lambda config: config.method.erm,
    )
    def erm(self, context: Context) -> dict[str, object]:
        """The comparison: empirical risk minimisation with the recipe's own augmentation."""
        from vitlab.training.train import train_on_labels

        return train_on_labels(context, self.config.model, self.config.recipe)

    @stage(
        needs=("teacher",),
        reads=("dataset", "model", "recipe", "teacher", "task"),
        title="same student, teacher at every step",
        role="baseline",
        when=lambda config: config.method.kd,
    )
    def kd(self, context: Context) -> dict[str, object]:
        """The comparison that costs a teacher in every step, with the recipe's own augmentation, or ``kd_recipe``."""
        from vitlab.methods.reinforce.objectives import distilled
        from vitlab.training.train import train

        options, config = self.options, self.config
        recipe = options.kd_recipe or config.recipe
        objective = partial(
            distilled,
            temperature=config.teacher.temperature,
            lambda_kd=options.lambda_kd,
            lambda_cls=options.lambda_cls,
            smoothing=recipe.label_smoothing,
        )
        return train(context, config.model, recipe, objective, teacher=context.artifact("teacher"))

    @stage(needs=("reinforce",), reads=("dataset", "model", "recipe", "task"), title="student, reinforced data")
    def train(self, context: Context) -> dict[str, object]:
        """Minimise KL(stored teacher || student) on replayed views: section 7."""
        from vitlab.data.views import ReinforcedViews
        from vitlab.methods.reinforce.generate import filter_of
        from vitlab.methods.reinforce.objectives import reinforced
        from vitlab.training.label_views import STORE
        from vitlab.training.train import train

        options, recipe = self.options, self.config.recipe
        folders = stores(options) or (context.artifact("reinforce") / STORE,)
        if context.is_main and not options.store:  # of a given store check_data has said it
            warn_of_filter(self.config, filter_of(folders[0], recipe.augmentation.interpolation), *folders)
        views = ReinforcedViews(folders, options.sampling == "cycle", 1 - options.p, options.backend)
        # The views beside the stored ones are not mixed: stored ones carry all the mixing there is.
        unmixed = replace(recipe, augmentation=replace(recipe.augmentation, mixup=0.0, cutmix=0.0))
        objective = partial(reinforced, densify=options.densify, compat=options.densify_compat)
        return train(context, self.config.model, unmixed, objective, views)
