"""Dataset Reinforcement: store augmented views and what strong teachers say of them once, train anything from it.

The story: a *teacher* (better: several) is trained or loaded; it *reinforces* every image with NS stored views, their
explicit parameters and the K largest of its probabilities (sections 3 to 5 of the paper); a student is *trained* to
minimise KL(teacher || student) on replayed views, without teacher and without labels (section 7). The same student on
labels alone (*erm*) and with the teacher asked at every step (*kd*) are the comparisons, with equally many steps.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from vitlab.config import Config, ModelConfig
from vitlab.errors import UserError
from vitlab.methods.base import Context, Method, Stage, recipe_length, stage
from vitlab.methods.reinforce.options import ReinforceOptions

CHOICES = {
    "prob_dtype": ("f4", "f2", "bf16"),
    "precision": ("fp32", "tf32", "bf16", "fp16"),
    "backend": ("auto", "pil", "tensor"),
    "sampling": ("uniform", "cycle"),
    "densify": ("smooth", "zeros"),
    "densify_compat": ("vitlab", "official"),
}


def reinforces(config: Config) -> bool:
    return config.method.store is None


def makes_teacher(config: Config) -> bool:
    return reinforces(config) or bool(config.method.kd)


def stores(options: ReinforceOptions) -> tuple[Path, ...]:
    """The folders that ``method.store`` names."""
    given = options.store if isinstance(options.store, list) else [options.store]
    return tuple(Path(str(one)) for one in given if one is not None)


def holds_reinforcements(folder: Path) -> bool:
    """Whether it looks like a store of ours or a released set; nothing is read."""
    return any((folder / name).is_file() for name in ("store.json", "config.pth.tar")) or any(
        folder.glob("*/config.pth.tar")
    )


def where_they_are(folder: Path) -> str:
    """What to give instead of a folder that holds none."""
    if folder.is_file():
        return f"Pack the archive first: mode=convert method.store={folder} method.convert_to=FOLDER."
    if (folder / "reinforce" / "targets").is_dir():
        return f"That is a run; give its reinforced data: method.store={folder / 'reinforce' / 'targets'}."
    return "Give the folder that holds store.json, or config.pth.tar where they are as released; or several: [A,B]."


def refuse_twins(members: list[ModelConfig]) -> None:
    """Refuse an ensemble that names a network twice; what two names stand for, the teacher's stage finds out.

    Raises:
        UserError: naming them.
    """
    for number, one in enumerate(members):
        if one in members[:number]:
            raise UserError(f"teacher.members names {one.name} twice: that is no ensemble.", "Name each network once.")


class Reinforce(Method):
    """Dataset Reinforcement."""

    Options = ReinforceOptions
    options: ReinforceOptions

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse contradictions before anything runs."""
        from vitlab.distill.reinforce_draw import Reinforcement  # numpy, no torch

        options: ReinforceOptions = config.method
        if config.task.targets != "class":
            raise UserError(
                "Dataset Reinforcement stores the teacher's class probabilities, which sum to one; it has no form "
                f"of it for task={config.task.name}.",
                "Give method=supervised.",
            )
        for key, allowed in CHOICES.items():
            if (value := getattr(options, key)) not in allowed:
                raise UserError(f"method.{key}={value} is unknown.", f"Take {' or '.join(allowed)}.")
        for key in ("samples", "topk", "group"):
            if (number := getattr(options, key)) < 1:
                raise UserError(f"method.{key}={number} is out of range:", "expected 1 or more.")
        if not 0 <= options.p <= 1:
            raise UserError(f"method.p={options.p} is out of range:", "expected a share in [0, 1].")
        if min(options.lambda_kd, options.lambda_cls) < 0:
            raise UserError("method.lambda_kd and method.lambda_cls are weights:", "expected 0 or more.")
        if options.p < 1 and (options.densify, options.densify_compat) == ("zeros", "official"):
            raise UserError(
                "method.densify=zeros as the official code does it flattens the label of a plain view, too.",
                "Give method.p=1, or method.densify_compat=vitlab.",
            )
        Reinforcement(**vars(options.views))
        if makes_teacher(config):
            refuse_twins(config.teacher.members)
        for folder in stores(options):
            if not holds_reinforcements(folder):
                raise UserError(f"method.store={folder} holds no reinforcements.", where_they_are(folder))
        if reinforces(config) and options.views.variant == "center" and options.samples != 1:
            raise UserError(
                f"method.views.variant=center has nothing random, and method.samples={options.samples} asks for so "
                "many equal views.",
                "Give method.samples=1.",
            )
        if makes_teacher(config) and not config.teacher.members:
            raise UserError(
                "Reinforcing needs a teacher, and teacher=none has no members.", "Choose one: mode=list group=teacher."
            )

    def check_data(self) -> None:
        """Stored reinforcements of other images are refused before anything is trained."""
        folders = stores(self.options)
        if not folders:
            return
        from vitlab.data.build import open_splits
        from vitlab.data.sources import fingerprint
        from vitlab.distill.formats import open_reinforcements

        config = self.config
        images = open_splits(config.dataset, config.seed, config.debug.max_images)["train"]
        open_reinforcements(folders, len(images), len(images.classes), {"data_fingerprint": fingerprint(images)})

    @classmethod
    def length(cls, stage: Stage, config: Config) -> str:
        """The teacher has a recipe of its own, and reinforced data are as long as what they hold."""
        if stage.name == "reinforce":
            return f"{config.method.samples} views of every image"
        if stage.name != "teacher":
            return recipe_length(config.recipe, config)
        if not config.teacher.train or config.teacher.recipe is None:
            return "loaded"
        return recipe_length(config.teacher.recipe, config)

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
        from vitlab.training.objectives import label_cross_entropy
        from vitlab.training.train import train

        recipe = self.config.recipe
        objective = partial(label_cross_entropy, smoothing=recipe.label_smoothing)
        return train(context, self.config.model, recipe, objective)

    @stage(
        needs=("teacher",),
        reads=("dataset", "model", "recipe", "teacher", "task"),
        title="same student, teacher at every step",
        role="baseline",
        when=lambda config: config.method.kd,
    )
    def kd(self, context: Context) -> dict[str, object]:
        """The comparison that costs a teacher in every step, with the recipe's own augmentation."""
        from vitlab.methods.reinforce.objectives import distilled
        from vitlab.training.train import train

        options, config = self.options, self.config
        objective = partial(
            distilled,
            temperature=config.teacher.temperature,
            lambda_kd=options.lambda_kd,
            lambda_cls=options.lambda_cls,
            smoothing=config.recipe.label_smoothing,
        )
        return train(context, config.model, config.recipe, objective, teacher=context.artifact("teacher"))

    @stage(needs=("reinforce",), reads=("dataset", "model", "recipe", "task"), title="student, reinforced data")
    def train(self, context: Context) -> dict[str, object]:
        """Minimise KL(stored teacher || student) on replayed views: section 7."""
        from vitlab.methods.reinforce.objectives import reinforced
        from vitlab.training.build import Reinforced
        from vitlab.training.label_views import STORE
        from vitlab.training.train import train

        options, recipe = self.options, self.config.recipe
        folders = stores(options) or (context.artifact("reinforce") / STORE,)
        # The views beside the stored ones are not mixed: stored ones carry all the mixing there is.
        alone = replace(recipe, augmentation=replace(recipe.augmentation, mixup=0.0, cutmix=0.0))
        return train(
            context,
            self.config.model,
            alone,
            partial(reinforced, densify=options.densify, compat=options.densify_compat),
            reinforcements=Reinforced(folders, options.sampling == "cycle", 1 - options.p, options.backend),
        )
