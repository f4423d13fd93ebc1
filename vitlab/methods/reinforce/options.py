"""Keys under ``method.`` for Dataset Reinforcement; their values are in ``conf/method/reinforce.yaml``.

:func:`check` refuses contradictions among them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from vitlab.config import Config, ModelConfig, RecipeConfig
from vitlab.config.size import hw
from vitlab.errors import UserError

CHOICES = {
    "prob_dtype": ("f4", "f2", "bf16"),
    "precision": ("fp32", "tf32", "bf16", "fp16"),
    "backend": ("auto", "pil", "tensor"),
    "sampling": ("uniform", "cycle"),
    "densify": ("smooth", "zeros"),
    "densify_compat": ("vitlab", "official"),
}


@dataclass
class ViewOptions:
    """What is drawn for a stored view (vitlab.distill.reinforce_draw.Reinforcement); its filter is that of the recipe,
    ``recipe.augmentation.interpolation``."""

    variant: str = MISSING  # rrc | mixing | randaug | randaug_mixing | center (nothing random, one sample)
    crop_scale: list[float] | None = MISSING  # random resized crop: area range; null: the whole image
    crop_ratio: list[float] = MISSING  # of the crop: width to height
    pad: int | None = None  # instead: pad by this many pixels (of 224), then a random crop (CIFAR)
    flip: float = MISSING  # probability of a horizontal flip
    ops: int = MISSING  # RandAugment: number of ops of torchvision's set
    magnitude: int = MISSING  # RandAugment: 0 to 30
    erase: float = MISSING  # probability of a black box
    erase_scale: list[float] = MISSING  # its share of the area
    erase_ratio: list[float] = MISSING  # its height to width
    mixup: float = MISSING  # probability; the weight is Beta(1, 1) / 2, of the image itself
    cutmix: float = MISSING  # probability, drawn independently of mixup's
    partner: str = "dataset"  # of a mixed view: any image of the dataset, or (as published) of a batch of neighbours
    partner_batch: int = 4  # partner=batch: images that are loaded together
    crop_pct: float = MISSING  # center: side of the middle square to the short side


@dataclass
class ReinforceOptions:
    """Keys under ``method.``"""

    name: str = "reinforce"
    samples: int = MISSING  # NS: stored views of each image
    topk: int = MISSING  # K: stored probabilities of each view; all of them where there are fewer classes
    prob_dtype: str = MISSING  # how they are stored: f4 (as released), f2 or bf16
    group: int = MISSING  # views that the teacher labels at once; decides the last bits, so it belongs to the result
    precision: str = MISSING  # of the teacher while it labels: fp32, tf32, bf16 or fp16
    backend: str = "auto"  # RandAugment on pil images or tensor; auto: pil, and at replay as the store was made
    recheck: int = 0  # mode=verify: number of views labelled again and compared
    store: Any = None  # train from these reinforcements, a folder or a list of released ones; no teacher is made
    convert_to: str | None = None  # mode=convert, merge, subset: folder to write to
    p: float = MISSING  # share of stored views in training; the others are the recipe's, with the label as target
    sampling: str = MISSING  # uniform: a random sample each time; cycle: each in turn, in a random order of each image
    densify: str = MISSING  # the K probabilities over all classes: smooth (the rest spread evenly) or zeros
    densify_compat: str = MISSING  # vitlab, or official (softmax over probabilities where their sum exceeds one)
    erm: bool = MISSING  # also train the same student on labels alone, with equally many steps
    kd: bool = MISSING  # also train it with the teacher run at every step, with equally many steps
    kd_recipe: RecipeConfig | None = None  # recipe of kd; null: that of the other students
    lambda_kd: float = MISSING  # kd: weight of the divergence from the teacher, both sides at teacher.temperature
    lambda_cls: float = MISSING  # kd: weight of the cross-entropy with the label
    views: ViewOptions = field(default_factory=ViewOptions)


def reinforces(config: Config) -> bool:
    return config.method.store is None


def makes_teacher(config: Config) -> bool:
    return reinforces(config) or bool(config.method.kd)


def stores(options: ReinforceOptions) -> tuple[Path, ...]:
    """The folders that ``method.store`` names."""
    given = options.store if isinstance(options.store, list) else [options.store]
    return tuple(Path(str(one)) for one in given if one is not None)


def holds_reinforcements(folder: Path) -> bool:
    """Whether the names of its files are those of our store or a released set; nothing is read."""
    return any((folder / name).is_file() for name in ("store.json", "config.pth.tar")) or any(
        folder.glob("*/config.pth.tar")
    )


def where_they_are(folder: Path) -> str:
    """The cure for a folder without reinforcements."""
    if folder.is_file():
        return f"Pack the archive first: mode=convert method.store={folder} method.convert_to=FOLDER."
    if (folder / "reinforce" / "targets").is_dir():
        return f"That is a run; give its reinforced data: method.store={folder / 'reinforce' / 'targets'}."
    return "Give the folder that holds store.json, or config.pth.tar where they are as released; or several: [A,B]."


def warn_of_filter(config: Config, interpolation: str, *folders: Path) -> None:
    """Warn where stored views were resized with another filter than the recipe's, which labels alone, the teacher at
    every step and the test images use: a difference between them is then not that of the method alone."""
    own = config.recipe.augmentation.interpolation
    if interpolation != own:
        logging.getLogger(__name__).warning(
            "warning  the stored views in %s were resized with the filter %s, and are replayed so; everything else has "
            "recipe.augmentation.interpolation=%s. For a comparison of the method alone, give "
            "recipe.augmentation.interpolation=%s.",
            ", ".join(map(str, folders)),
            interpolation,
            own,
            interpolation,
        )


def refuse_twins(members: list[ModelConfig]) -> None:
    """Refuse an ensemble that names a network twice; aliases are found by the teacher's stage, from the weights.

    Raises:
        UserError: naming them.
    """
    for number, one in enumerate(members):
        if one in members[:number]:
            raise UserError(f"teacher.members names {one.name} twice: that is no ensemble.", "Name each network once.")


def check(config: Config) -> None:
    """Refuse contradictions before anything runs.

    Raises:
        UserError: naming the key.
    """
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
            raise UserError(f"method.{key}={value} is unknown.", f"Give {' or '.join(allowed)}.")
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
            f"method.views.variant=center has nothing random, and method.samples={options.samples} would store "
            "equal views.",
            "Give method.samples=1.",
        )
    height, width = hw(config.dataset.size)
    if reinforces(config) and options.views.variant == "center" and height != width:
        raise UserError(
            f"method.views.variant=center is the square in the middle of an image, and dataset.size is {height} × "
            f"{width} px.",
            "Give dataset.size=SIDE, or another variant.",
        )
    if makes_teacher(config) and not config.teacher.members:
        raise UserError(
            "Reinforcing needs a teacher, and teacher=none has no members.", "Choose one: mode=list group=teacher."
        )
