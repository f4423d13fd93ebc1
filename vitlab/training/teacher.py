"""From ``teacher=`` and the teacher stage's folder to a callable that labels batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from vitlab.config import Config, ModelConfig
from vitlab.config.size import Size
from vitlab.data.datamodule import VisionData
from vitlab.distill.teachers import Ensemble, OnlineTeacher
from vitlab.errors import UserError, keys_below
from vitlab.files import read_json, write_json
from vitlab.models.artifact import load_model, read_meta
from vitlab.models.build import build_model, knows_classes, normalisation, pretrained_source
from vitlab.stage import Context
from vitlab.training.build import make_data

TEACHER_FILE = "teacher.json"

Channels = tuple[float, ...]


def load_teacher(context: Context) -> dict[str, object]:
    """Make a teacher that needs no training an artifact: its description, with the hash of its weights.

    The weights stay where they came from (hub cache, checkpoint); with the hash, a changed teacher is an error.
    """
    config = context.config
    data = make_data(config, config.recipe, *normalisation_of(config, None))
    described = make_teacher(config, None, data).describe()
    if context.is_main:
        write_json(context.folder / TEACHER_FILE, described)
    return {"teacher": described, "seconds": 0.0}


def normalisation_of(config: Config, artifact: Path | None) -> tuple[Channels, Channels]:
    """Mean and std of the views that the teacher (the first of several) was trained with."""
    if artifact is not None and (artifact / "model.json").exists():
        meta = read_meta(artifact)
        return tuple(meta.mean), tuple(meta.std)
    return normalisation(config.teacher.members[0], config.dataset.mean, config.dataset.std)


def make_teacher(config: Config, artifact: Path | None, data: VisionData) -> OnlineTeacher | Ensemble:
    """The teacher for batches of ``data``, each member renormalising them for itself.

    Args:
        artifact: folder of the teacher stage; None before it is made.

    Raises:
        UserError: a member knows other classes than the data; its weights are not those that were adopted.
    """
    spec = config.teacher
    if artifact is not None and (artifact / "model.json").exists():
        return _online(
            config, data, read_meta(artifact).name, load_model(artifact), *normalisation_of(config, artifact)
        )
    sizes = sizes_of(config)
    refuse_aliases(spec.members)
    members = [
        _online(
            config,
            data,
            member.name,
            _network(config, number, data.classes, size),
            *normalisation(member, config.dataset.mean, config.dataset.std),
            size=size,
        )
        for number, (member, size) in enumerate(zip(spec.members, sizes, strict=True))
    ]
    teacher = members[0] if len(members) == 1 else Ensemble(members, spec.weights)
    if artifact is not None and (then := read_json(artifact / TEACHER_FILE)) != (now := teacher.describe()):
        raise UserError(
            f"The teacher's weights have changed since {artifact} was made ({then} then, {now} now).",
            "Put the old weights back, or start with fresh=true.",
        )
    return teacher


def sizes_of(config: Config) -> list[Size]:
    """The input size of each member.

    Raises:
        UserError: not one for each.
    """
    spec = config.teacher
    sizes = spec.sizes or [config.dataset.size] * len(spec.members)
    if len(sizes) != len(spec.members):
        raise UserError(
            f"teacher.sizes={sizes} does not fit {len(spec.members)} teacher.members.", "Give one size for each."
        )
    return sizes


def _online(
    config: Config,
    data: VisionData,
    name: str,
    network: nn.Module,
    mean: Channels,
    std: Channels,
    size: Size | None = None,
) -> OnlineTeacher:
    return OnlineTeacher(
        network,
        name=name,
        mean=mean,
        std=std,
        size=size or config.dataset.size,
        batch_mean=data.mean,
        batch_std=data.std,
        temperature=config.teacher.temperature,
    )


def refuse_aliases(members: Sequence[ModelConfig]) -> None:
    """Refuse an ensemble that would load one network twice under two names, before any weights are fetched.

    timm answers four old names of the published ensemble with one and the same network and a warning.

    Raises:
        UserError: naming them.
    """
    found: dict[str, str] = {}
    for one in members:
        if not one.pretrained or one.checkpoint is not None:
            continue
        weights = pretrained_source(one.name)
        if weights in found:
            raise UserError(
                f"teacher.members '{found[weights]}' and '{one.name}' stand for the same weights ({weights}).",
                "Name each network once, with its tag: mode=list group=teacher shows an ensemble.",
            )
        found[weights] = one.name


def check_member(config: Config, number: int, network: nn.Module, classes: list[str]) -> None:
    """Refuse a member of the teacher whose weights are none, or of other classes, as far as is known before they are
    read.

    Args:
        network: of this member, also without memory.

    Raises:
        UserError: naming the member, and the keys that would help.
    """
    spec = config.teacher.members[number]
    key = f"teacher.members.{number}"
    if not (spec.pretrained or spec.checkpoint):
        raise UserError(
            f"Teacher {spec.name} is a network without weights: what it says is noise.",
            f"Give teacher=RUN, {key}.checkpoint=FILE or {key}.pretrained=true, or train it first (teacher.train=true "
            "with a teacher.recipe).",
        )
    if knows_classes(spec, network, classes) is False:
        raise _other_classes(config, spec, len(classes))


def _other_classes(config: Config, spec: ModelConfig, count: int) -> UserError:
    weights = f" ({spec.checkpoint})" if spec.checkpoint else ""
    return UserError(
        f"Teacher {spec.name}{weights} was trained for other classes, or another order of them, than the {count} of "
        f"{config.dataset.name}.",
        "Train it on this data set first (teacher=finetuned, or teacher.train=true with a teacher.recipe), or give "
        "the folder or checkpoint of one that was: teacher=RUN.",
    )


def _network(config: Config, number: int, classes: list[str], size: Size) -> nn.Module:
    """A member whose head knows the classes.

    Raises:
        UserError: as :func:`check_member`, or the weights turn out to be of other classes.
    """
    spec = config.teacher.members[number]
    with keys_below(f"teacher.members.{number}"):
        network = build_model(spec, len(classes), size, classes)
    check_member(config, number, network, classes)
    heads = [p for p in network.parameters() if p.ndim == 2 and p.shape[0] == len(classes)]
    if heads and not bool(heads[-1].any()):
        raise _other_classes(config, spec, len(classes))
    return network
