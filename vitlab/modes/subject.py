"""Which model is meant by the words at the prompt, and on which data.

``run=`` names a run (its folder, or its name below ``output=``), one of its models (``RUN/STAGE``), a glob, or a list
of these. Without it, ``model=`` (with ``model.pretrained`` or ``model.checkpoint``) means a model that no run made.

Folders are found, and mistakes answered, before torch is imported; networks and images come when they are asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.compose import Composed
from vitlab.config import AugmentationConfig, Config
from vitlab.errors import UserError, nearest
from vitlab.files import read_json
from vitlab.methods.base import Stage, find_method
from vitlab.prompt import listed
from vitlab.run import Run

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vitlab.data.module import VisionData
    from vitlab.models.artifact import ModelMeta

SHARED = ("mode", "output", "run", "input", "hardware", "trainer", "evaluation", "export", "benchmark", "predict")
"""Of a run's configuration, what today's prompt decides."""


@dataclass
class Subject:
    """One model that a mode is about.

    Attributes:
        name: short, unique among the subjects of a command: a stage's name, or that of the model.
        title: how reports and tables call it.
        role: "teacher", "student", "baseline", or "model" for one that no run made.
        folder: where a mode writes about it: the run's folder, or ``outputs/<mode>/<model>-<dataset>-<hash>``.
        artifact: its model folder; None for a network of timm's or from a foreign checkpoint.
        config: of the run, with what the prompt says of hardware, data and measuring; or that of the prompt.
        run, stage: what made it, if a run did.
        on_data: whether a data set is meant: that of the run, or one that was typed.
        trained: refuse a network without trained weights.
    """

    name: str
    title: str
    role: str
    folder: Path
    artifact: Path | None
    config: Config
    run: Run | None = None
    stage: Stage | None = None
    on_data: bool = True
    trained: bool = True
    typed: frozenset[str] = field(default_factory=frozenset)  # keys of dataset. that were typed

    @cached_property
    def meta(self) -> ModelMeta:
        """What the network sees and what its logits mean."""
        if self.artifact is not None:
            from vitlab.models.artifact import read_meta

            return read_meta(self.artifact)
        return self._bare[1]

    def network(self) -> nn.Module:
        """The network on the CPU, in eval mode; a new one each time it is asked for.

        Raises:
            UserError: weights are missing, damaged or do not fit; untrained where ``trained`` is demanded.
        """
        if self.artifact is not None:
            from vitlab.models.artifact import load_model

            return load_model(self.artifact)
        from copy import deepcopy

        return deepcopy(self._bare[0])

    @cached_property
    def data(self) -> VisionData:
        """The data set as this network wants to see it.

        Raises:
            UserError: the data are missing, no data set was typed, or its size is not the network's.
        """
        if not self.on_data:
            raise UserError(
                f"mode={self.config.mode} needs images with labels, and {self.title} belongs to no data set.",
                "Say on which: dataset=NAME (mode=list group=dataset).",
            )
        if self.artifact is not None and "size" in self.typed and self.config.dataset.size != self.meta.size:
            raise UserError(
                f"dataset.size={self.config.dataset.size}: {self.title} was made for {self.meta.size} px.",
                "Leave dataset.size out.",
            )
        return open_data(self.config, self.meta, self.typed)

    @property
    def device(self) -> torch.device:
        """Where the prompt's hardware= wants it."""
        from vitlab.training.devices import device_of

        return device_of(self.config)

    @cached_property
    def _bare(self) -> tuple[nn.Module, ModelMeta]:
        from vitlab.modes.bare import build

        return build(self.config, self.title, self.on_data, self.trained, self.typed)


def open_data(config: Config, meta: ModelMeta, typed: frozenset[str] = frozenset()) -> VisionData:
    """The data of ``config`` as ``meta`` wants to see them; a typed ``dataset.crop_pct`` or ``dataset.crop`` wins."""
    from vitlab.data.module import VisionData
    from vitlab.training.devices import rank, world

    crop_pct = config.dataset.crop_pct if "crop_pct" in typed else meta.crop_pct
    crop = config.dataset.crop if "crop" in typed else meta.crop
    return VisionData(
        replace(config.dataset, size=meta.size, crop_pct=crop_pct, crop=crop),
        AugmentationConfig(interpolation=meta.interpolation),
        batch_size=1,  # nothing is trained
        eval_batch_size=config.evaluation.batch_size,
        mean=meta.mean,
        std=meta.std,
        seed=config.seed,
        workers=config.hardware.workers,
        rank=rank(),
        world=world(),
        max_images=config.debug.max_images,
    )


# -------------------------------------------------------------------------------------------------------- from words


def find_subjects(composed: Composed, *, trained: bool = True) -> list[Subject]:
    """Every model that the prompt means: all of one run, the results of several, or the one of ``model=``.

    Args:
        trained: refuse a model without trained weights.

    Raises:
        UserError: nothing is named, no such run, a run without a model yet, or run= and model= together.
    """
    runs = find_runs(composed)
    if not runs:
        return [_bare_subject(composed, trained)]
    found = []
    for run, only in runs:
        config = config_of(run, composed)
        stages = models_of(run, config)
        wanted = [stage for stage in stages if only in (None, stage.name)]
        if not wanted:
            raise _no_stage(run, only, stages)
        if len(runs) > 1:
            wanted = [result_of(wanted)]
        prefix = f"{run.name}/" if len(runs) > 1 else ""
        found += [_of_run(run, stage, config, typed_keys(composed, "dataset"), prefix) for stage in wanted]
    return found


def find_subject(composed: Composed, *, trained: bool = True) -> Subject:
    """The one model that the prompt means: the result of ``run=``, the model ``run=RUN/STAGE``, or that of ``model=``.

    Raises:
        UserError: as :func:`find_subjects`, or several runs are named.
    """
    runs = find_runs(composed)
    if not runs:
        return _bare_subject(composed, trained)
    if len(runs) > 1:
        raise UserError(
            f"mode={composed.config.mode} is about one model, and run= names {len(runs)} runs.",
            f"Give one of them: run={runs[0][0].folder}.",
        )
    run, only = runs[0]
    config = config_of(run, composed)
    stages = models_of(run, config)
    if only is None and stages:
        return _of_run(run, result_of(stages), config, typed_keys(composed, "dataset"))
    stage = next((one for one in stages if one.name == only), None)
    if stage is None:
        raise _no_stage(run, only, stages)
    return _of_run(run, stage, config, typed_keys(composed, "dataset"))


def find_runs(composed: Composed) -> list[tuple[Run, str | None]]:
    """The runs that ``run=`` names, each with the stage that was named in it; none when there is no ``run=``.

    Raises:
        UserError: a word that names no run, with the nearest that there are; or ``model=`` beside it.
    """
    value = composed.config.run
    if value is None:
        return []
    if "model" in composed.chosen:
        raise UserError(
            "run= and model= both say which model is meant.",
            "Leave one of them out; another model to measure beside a run's goes into benchmark.models=[NAME].",
        )
    words = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    if not words or not all(words):
        raise UserError("run= names nothing.", _known_runs(composed, ""))
    found: list[tuple[Run, str | None]] = []
    for word in words:
        found += [one for one in _resolve(word, composed) if (one[0].folder, one[1]) not in _seen(found)]
    return found


def command_of(composed: Composed) -> str:
    """What was typed, as one types it."""
    return shlex.join(["python", "-m", "vitlab", *composed.overrides])


@contextlib.contextmanager
def writing(run: Run | None, composed: Composed) -> Iterator[None]:
    """Own the run's folder while a mode writes into it; nothing to own where there is no run.

    Raises:
        UserError: another process works there.
    """
    if run is None:
        yield
        return
    run.lock(command_of(composed))
    try:
        yield
    finally:
        run.release()


def models_of(run: Run, config: Config) -> list[Stage]:
    """The stages of a run that are done and left a model, in order."""
    stages = find_method(config.method.name).stages(config)
    return [stage for stage in stages if run.is_done(stage.name) and (run.folder / stage.name / "model.json").exists()]


def result_of(stages: Sequence[Stage]) -> Stage:
    """What a run is about: its last student, else its last model."""
    return ([stage for stage in stages if stage.role == "student"] or list(stages))[-1]


def subjects_of(run: Run, config: Config, stages: Sequence[Stage]) -> list[Subject]:
    """The models that these stages of a run left."""
    return [_of_run(run, stage, config, frozenset()) for stage in stages]


def config_of(run: Run, composed: Composed) -> Config:
    """The run's own configuration, with what the prompt may say anew: hardware, measuring, and typed keys of the data
    set (``dataset.root`` of data that have moved; ``dataset=NAME`` for others).

    Raises:
        UserError: the stored configuration is not one that this vitlab reads.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    asked = composed.config
    name = str(_dict(run.tree["method"])["name"])
    try:
        schema = OmegaConf.structured(Config(method=find_method(name).Options))
        config = OmegaConf.to_object(OmegaConf.merge(schema, run.tree))
    except OmegaConfBaseException as error:
        raise UserError(
            f"The configuration of {run.folder} does not fit this vitlab: {str(error).splitlines()[0]}.",
            "Use the version that made the run (environment.jsonl says which).",
        ) from error
    assert isinstance(config, Config)
    config = replace(config, **{key: getattr(asked, key) for key in (*SHARED, "explain")})
    for group in ("dataset", "debug"):
        if any(word.startswith(f"{group}=") for word in composed.overrides):
            config = replace(config, **{group: getattr(asked, group)})
        else:
            values = {key: getattr(getattr(asked, group), key) for key in typed_keys(composed, group)}
            config = replace(config, **{group: replace(getattr(config, group), **values)})
    return config


def typed_keys(composed: Composed, group: str) -> frozenset[str]:
    """Keys directly below ``group`` that the prompt gives a value."""
    keys = [word.lstrip("+").partition("=")[0] for word in composed.overrides]
    return frozenset(key.removeprefix(f"{group}.").partition(".")[0] for key in keys if key.startswith(f"{group}."))


# ------------------------------------------------------------------------------------------------------------- parts


def _of_run(run: Run, stage: Stage, config: Config, typed: frozenset[str], prefix: str = "") -> Subject:
    return Subject(
        name=prefix + stage.name,
        title=f"{run.name}: {stage.title}" if prefix else stage.title,
        role=stage.role,
        folder=run.folder,
        artifact=run.folder / stage.name,
        config=config,
        run=run,
        stage=stage,
        typed=typed,
    )


def _bare_subject(composed: Composed, trained: bool) -> Subject:
    config = composed.config
    checkpoint = Path(config.model.checkpoint).expanduser() if config.model.checkpoint else None
    if not {"model", "experiment"} & composed.chosen:
        raise UserError(f"mode={config.mode} needs a model.", f"{_known_runs(composed, '')} Or give model=NAME.")
    if trained and checkpoint is None and not config.model.pretrained:
        raise UserError(
            f"{config.model.name} would have random weights.",
            "Give model.pretrained=true, model.checkpoint=FILE, or run=FOLDER.",
        )
    artifact = checkpoint if checkpoint is not None and (checkpoint / "model.json").is_file() else None
    words = {word.partition("=")[0] for word in composed.overrides}
    named = "model.name" in words
    if named and "model" not in words and not any(word.lstrip("+").startswith("model.args") for word in words):
        config = replace(config, model=replace(config.model, args={}))  # they belong to the usual model
    title = config.model.name if named else str(composed.choices["model"])
    if artifact is not None:
        title = artifact.resolve().name
        stored = str(read_json(artifact / "model.json").get("name"))
        if named and stored.partition(".")[0] != config.model.name.partition(".")[0]:
            raise UserError(
                f"model.name={config.model.name}: the model in {artifact} is a {stored}.", "Leave model.name out."
            )
    on_data = bool({"dataset", "experiment"} & composed.chosen)
    typed = typed_keys(composed, "dataset")
    about = {
        "model": dataclasses.asdict(config.model),
        "dataset": dataclasses.asdict(config.dataset) if on_data else None,
        "debug": config.debug.max_images,
        "seed": config.seed,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    parts = [_file_name(title), config.dataset.name if on_data else "", digest]
    folder = Path(config.output) / config.mode / "-".join(filter(None, parts))
    return Subject(title, title, "model", folder, artifact, config, on_data=on_data, trained=trained, typed=typed)


def _resolve(word: str, composed: Composed) -> list[tuple[Run, str | None]]:
    """The runs of one word; a glob may match what is no run, a plain word may not."""
    output = Path(composed.config.output)
    text = str(Path(word).expanduser())
    patterns = [text, *(str(output / below) for below in (text, f"*/{text}") if not Path(text).is_absolute())]
    if glob.has_magic(word):
        for pattern in patterns:
            paths = [path for path in map(Path, sorted(glob.glob(pattern))) if _holds_run(path)]
            matched = [one for path in paths if (one := _run_at(path)) is not None]
            if matched:
                return matched
        raise UserError(f"run={word} matches no run.", _known_runs(composed, word))
    for pattern in patterns:
        for path in sorted(glob.glob(pattern) if "*" in pattern else [pattern]):
            if (one := _run_at(Path(path))) is not None:
                return [one]
    if (Path(text) / "model.json").is_file():
        raise UserError(f"run={word} is a model folder outside any run.", f"Give model.checkpoint={word}.")
    if Path(text).is_dir() and (inside := sorted(path.parent for path in Path(text).glob("**/run.json"))):
        raise UserError(f"run={word} is a folder of {len(inside)} run(s).", f"Give one: run={inside[-1]}.")
    raise UserError(f"run={word} names no run.", _known_runs(composed, word))


def _run_at(path: Path) -> tuple[Run, str | None] | None:
    if (path / "run.json").is_file():
        return Run.at(path), None
    if path.parent != path and (path.parent / "run.json").is_file():
        return Run.at(path.parent), path.name
    return None


def _holds_run(path: Path) -> bool:
    """Whether a glob may mean this: a run, or a model of one."""
    return path.is_dir() and any((path / name).is_file() for name in ("run.json", "model.json"))


def _known_runs(composed: Composed, word: str) -> str:
    """The nearest run, or the latest ones, for a message."""
    output = Path(composed.config.output)
    found = [marker.parent for marker in output.glob("*/*/run.json")]
    if not found:
        return f"There is no run in {output}/ yet; give run=FOLDER."
    near = nearest(Path(word).name, [folder.name for folder in found])
    if near:
        return f"Did you mean run={next(folder for folder in found if folder.name == near)}?"
    latest = sorted(found, key=lambda folder: (folder / "run.json").stat().st_mtime, reverse=True)
    return f"The latest runs: {listed((f'run={folder}' for folder in latest), 3)}."


def _no_stage(run: Run, only: str | None, stages: Sequence[Stage]) -> UserError:
    if not stages:
        return UserError(
            f"{run.folder} has no finished model yet.", "Let its training finish: the same command goes on."
        )
    near = nearest(str(only), [stage.name for stage in stages])
    hint = f"Did you mean {run.folder / near}? " if near else ""
    return UserError(
        f"{run.folder} has no finished model '{only}'.", f"{hint}There are: {listed(stage.name for stage in stages)}."
    )


def _seen(found: Sequence[tuple[Run, str | None]]) -> set[tuple[Path, str | None]]:
    return {(run.folder, stage) for run, stage in found}


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "_.+-" else "-" for c in text)


def _dict(value: object) -> dict[str, object]:
    assert isinstance(value, dict)
    return value
