"""Keys under ``method.`` for Dataset Reinforcement; their values stand in ``conf/method/reinforce.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class ViewOptions:
    """What is drawn for a stored view (vitlab.distill.reinforce_draw.Reinforcement)."""

    variant: str = MISSING  # rrc | mixing | randaug | randaug_mixing | center (nothing random, one sample)
    crop_scale: list[float] | None = MISSING  # random resized crop: area range; null: the whole image
    crop_ratio: list[float] = MISSING  # of the crop: width to height
    pad: int | None = None  # a random crop of the image with so many pixels (of 224) around it, instead (CIFAR)
    flip: float = MISSING  # probability of a horizontal flip
    ops: int = MISSING  # of RandAugment, torchvision's set
    magnitude: int = MISSING  # of RandAugment, 0 to 30
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
    recheck: int = 0  # mode=verify: views that are labelled anew and compared
    store: Any = None  # train from these reinforcements, a folder or a list of released ones; no teacher is made
    convert_to: str | None = None  # mode=convert, merge, subset: folder to write to
    p: float = MISSING  # share of stored views in training; the others are the recipe's, with the label as target
    sampling: str = MISSING  # uniform: a random sample each time; cycle: each in turn, in an order of the image's own
    densify: str = MISSING  # the K probabilities over all classes: smooth (the rest spread evenly) or zeros
    densify_compat: str = MISSING  # vitlab, or official (softmax over probabilities where their sum exceeds one)
    erm: bool = MISSING  # also train the same student on labels alone, with equally many steps
    kd: bool = MISSING  # also train it with the teacher asked at every step, with equally many steps
    lambda_kd: float = MISSING  # kd: weight of the divergence from the teacher, both sides at teacher.temperature
    lambda_cls: float = MISSING  # kd: weight of the cross-entropy with the label
    views: ViewOptions = field(default_factory=ViewOptions)
