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
from vitlab.config.ranges import choice, integer, number, share
from vitlab.config.size import hw
from vitlab.errors import UserError

VARIANTS = ("rrc", "mixing", "randaug", "randaug_mixing", "center")


@dataclass
class ViewOptions:
    """What is drawn for a stored view (vitlab.distill.reinforce_draw.Reinforcement); its filter is that of the recipe,
    ``recipe.augmentation.interpolation``."""

    variant: str = choice(*VARIANTS)  # rrc | mixing | randaug | randaug_mixing | center (nothing random, one sample)
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
    partner: str = choice("dataset", "batch", default="dataset")  # mixed views: any image, or (published) of a batch
    partner_batch: int = integer(4)  # partner=batch: images that are loaded together
    crop_pct: float = MISSING  # center: side of the middle square to the short side


@dataclass
class ReinforceOptions:
    """Keys under ``method.``"""

    name: str = "reinforce"
    samples: int = integer()  # NS: stored views of each image
    topk: int = integer()  # K: stored probabilities of each view; all of them where there are fewer classes
    prob_dtype: str = choice("f4", "f2", "bf16")  # how they are stored: f4 (as released), f2 or bf16
    group: int = integer()  # views that the teacher labels at once; decides the last bits, so it belongs to the result
    precision: str = choice("fp32", "tf32", "bf16", "fp16")  # of the teacher while it labels: fp32, tf32, bf16 or fp16
    backend: str = choice("auto", "pil", "tensor", default="auto")  # of RandAugment; auto: pil, at replay the store's
    recheck: int = integer(0, low=0)  # mode=verify: number of views labelled again and compared
    store: Any = None  # train from these reinforcements, a folder or a list of released ones; no teacher is made
    convert_to: str | None = None  # mode=convert, merge, subset: folder to write to
    p: float = share()  # stored views in training, as a share; the others are the recipe's, with the label as target
    sampling: str = choice("uniform", "cycle")  # uniform: a random one; cycle: each in turn, shuffled
    densify: str = choice("smooth", "zeros")  # of the K probabilities: smooth (the rest spread evenly) or zeros
    densify_compat: str = choice("vitlab", "official")  # official: softmax of probabilities where their sum is > 1
    erm: bool = MISSING  # also train the same student on labels alone, with equally many steps
    kd: bool = MISSING  # also train it with the teacher run at every step, with equally many steps
    kd_recipe: RecipeConfig | None = None  # recipe of kd; null: that of the other students
    lambda_kd: float = number(low=0, high=1e6)  # kd: weight of the divergence, both sides at teacher.temperature
    lambda_cls: float = number(low=0, high=1e6)  # kd: weight of the cross-entropy with the label
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
    for position, one in enumerate(members):
        if one in members[:position]:
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
