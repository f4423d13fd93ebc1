"""Which model is meant by the words at the prompt, and on which data.

``run=`` names runs and their models (:mod:`vitlab.modes.find_runs`). Without it, ``model=`` (with
``model.pretrained`` or ``model.checkpoint``) means a model that no run made.

Folders are found, and mistakes reported, before torch is imported; networks and images are opened on first use.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.config import AugmentationConfig, Config, DatasetConfig
from vitlab.config.composed import Composed
from vitlab.config.size import same_size, size_text
from vitlab.data.folder import ALL
from vitlab.errors import UserError, list_names, nearest
from vitlab.files import read_json, stable_dict
from vitlab.methods.base import Stage
from vitlab.modes.find_runs import (
    config_of,
    find_runs,
    known_runs,
    matches_several,
    models_of,
    result_of,
    typed_keys,
)
from vitlab.run.identity import read_record, tree_in
from vitlab.run.run import Run, model_folder
from vitlab.tasks.base import Task, find_task

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vitlab.data.datamodule import VisionData
    from vitlab.models.artifact import ModelMeta


@dataclass
class SelectedModel:
    """One model that a mode is about.

    Attributes:
        name: short, unique among the subjects of a command: a stage's name, or that of the model.
        title: how reports and tables call it.
        role: "teacher", "student", "baseline", or "model" for one that no run made.
        folder: where a mode writes about it: the run's folder, or ``outputs/<mode>/<model>-<dataset>-<hash>``.
        artifact: its model folder; None for a network of timm's or from a foreign checkpoint.
        config: of the run, with hardware, data and measuring of the command line; or that of the command line.
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

    @cached_property
    def task(self) -> Task:
        """What the network predicts: as its artifact states, else as the command line does."""
        if self.artifact is not None:
            return find_task(self.meta.task)
        return find_task(self.config.task)

    def network(self) -> nn.Module:
        """The network on the CPU, in eval mode; a new one with each call.

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
                "Choose one: dataset=NAME (mode=list group=dataset).",
            )
        if (
            self.artifact is not None
            and "size" in self.typed
            and not same_size(self.config.dataset.size, self.meta.size)
        ):
            raise UserError(
                f"dataset.size={self.config.dataset.size}: {self.title} was made for {size_text(self.meta.size)} px.",
                "Leave dataset.size out.",
            )
        data = open_data(self.config, self.meta, self.task, self.typed)
        if not self._is_measured_whole(data):
            return data
        dataset = replace(self.config.dataset, val_fraction=ALL)
        return open_data(replace(self.config, dataset=dataset), self.meta, self.task, self.typed)

    def _is_measured_whole(self, data: VisionData) -> bool:
        """Whether a folder without splits is measured in full: it was given to be measured, and is not the one that the
        model was trained on, of which only the held-out part is."""
        dataset = self.config.dataset
        chosen = "val_fraction" in self.typed or dataset.folds or dataset.split_file
        if dataset.name != "folder" or chosen or not getattr(data.sources["test"], "held_out", False):
            return False
        if self.run is not None:
            return not self.has_own_images(data)
        parent = self.artifact.resolve().parent if self.artifact is not None else None
        if parent is None or not (parent / "run.json").exists():
            return True
        stored = tree_in(read_record(parent))["dataset"]
        assert isinstance(stored, dict)
        return not _same_place(stored, dataset)

    def has_own_images(self, data: VisionData) -> bool:
        """Whether the images of a run's model are those of the run's own result, wherever they lie now.

        Runs of earlier versions did not record the content of the measured images: the names and labels of their
        training images stand for it. Before the first evaluation the run's own place is the only evidence.
        """
        assert self.run is not None
        done = self.run.read_done("evaluation") if self.run.is_done("evaluation") else {}
        if "content" in done:
            from vitlab.data.content import content

            return bool(done["content"] == content(data.sources["test"]))
        stored = self.run.tree["dataset"]
        assert isinstance(stored, dict)
        described = self.run.folder / "evaluation" / "dataset.json"
        if not done or not described.is_file():
            return _same_place(stored, self.config.dataset)
        info = read_json(described, dict)
        if info["test"] != data.sizes["test"]:
            return False
        return _same_place(stored, self.config.dataset) or bool(info["fingerprint"] == data.fingerprint)

    @cached_property
    def is_own(self) -> bool:
        """:meth:`has_own_images` of the measured images."""
        return self.has_own_images(self.data)

    @cached_property
    def content(self) -> str:
        """Of the images that are measured: SHA-256 of names, labels and sizes of files."""
        from vitlab.data.content import content

        return content(self.data.sources["test"])

    @property
    def device(self) -> torch.device:
        """Where the prompt's hardware= wants it."""
        from vitlab.training.distributed import device_of

        return device_of(self.config)

    @cached_property
    def _bare(self) -> tuple[nn.Module, ModelMeta]:
        from vitlab.modes.pretrained_model import build

        return build(self.config, self.title, self.on_data, self.trained, self.typed)


def _same_place(stored: Mapping[str, object], dataset: DatasetConfig) -> bool:
    return (dataset.root, dataset.csv) == (stored.get("root"), stored.get("csv"))


def open_data(config: Config, meta: ModelMeta, task: Task, typed: frozenset[str] = frozenset()) -> VisionData:
    """The data of ``config`` as ``meta`` wants to see them; a typed ``dataset.crop_pct`` or ``dataset.crop`` wins."""
    from vitlab.data.datamodule import VisionData
    from vitlab.data.loader import LoaderOptions
    from vitlab.training.distributed import rank, world_size

    crop_pct = config.dataset.crop_pct if "crop_pct" in typed else meta.crop_pct
    crop = config.dataset.crop if "crop" in typed else meta.crop
    return VisionData(
        replace(config.dataset, size=meta.size, crop_pct=crop_pct, crop=crop),
        AugmentationConfig(interpolation=meta.interpolation),
        LoaderOptions(
            eval_batch_size=config.evaluation.batch_size,
            workers=config.hardware.workers,
            rank=rank(),
            world=world_size(),
        ),
        mean=meta.mean,
        std=meta.std,
        views=None,  # nothing is trained
        seed=config.seed,
        max_images=config.debug.max_images,
        targets=task,
    )


# -------------------------------------------------------------------------------------------------------- from words


def find_subjects(composed: Composed, *, trained: bool = True) -> list[SelectedModel]:
    """Every model that the prompt means: all of one run, the results of several, or the one of ``model=``.

    Args:
        trained: refuse a model without trained weights.

    Raises:
        UserError: nothing is named, no such run, a run without a model yet, or run= and model= together.
    """
    runs = find_runs(composed)
    if not runs:
        return [_bare_subject(composed, trained)]
    found: list[SelectedModel] = []
    several = matches_several(composed)
    for run, only in runs:
        config = config_of(run, composed)
        stages = models_of(run, config)
        wanted = [stage for stage in stages if only in (None, stage.name)]
        if not wanted and several and (found or (run, only) != runs[-1]):
            print(f"skipped  {run.folder}: it has no finished model yet", file=sys.stderr)
            continue
        if not wanted:
            raise _no_stage(run, only, stages)
        if len(runs) > 1:
            wanted = [result_of(wanted)]
        prefix = f"{run.name}/" if len(runs) > 1 else ""
        found += [_of_run(run, stage, config, typed_keys(composed, "dataset"), prefix) for stage in wanted]
    return found


def find_subject(composed: Composed, *, trained: bool = True) -> SelectedModel:
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


def select_models(run: Run, config: Config, stages: Sequence[Stage]) -> list[SelectedModel]:
    """The models that these stages of a run left."""
    return [_of_run(run, stage, config, frozenset()) for stage in stages]


# ------------------------------------------------------------------------------------------------------------- parts


def _of_run(run: Run, stage: Stage, config: Config, typed: frozenset[str], prefix: str = "") -> SelectedModel:
    return SelectedModel(
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


def _bare_subject(composed: Composed, trained: bool) -> SelectedModel:
    config = composed.config
    checkpoint = model_folder(Path(config.model.checkpoint).expanduser()) if config.model.checkpoint else None
    if not {"model", "experiment"} & composed.chosen:
        raise UserError(f"mode={config.mode} needs a model.", f"{known_runs(composed, '')} Or give model=NAME.")
    if trained and checkpoint is None and not config.model.pretrained:
        raise UserError(
            f"{config.model.name} would have random weights.",
            "Give model.pretrained=true, model.checkpoint=FILE, or run=FOLDER.",
        )
    artifact = checkpoint if checkpoint is not None and (checkpoint / "model.json").is_file() else None
    named = any(word.startswith("model.name=") for word in composed.overrides)
    title = composed.network
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
        "model": stable_dict(config.model),
        "dataset": stable_dict(config.dataset) if on_data else None,
        "debug": config.debug.max_images,
        "seed": config.seed,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    parts = [_file_name(title), config.dataset.name if on_data else "", digest]
    folder = Path(config.output) / config.mode / "-".join(filter(None, parts))
    return SelectedModel(title, title, "model", folder, artifact, config, on_data=on_data, trained=trained, typed=typed)


def _no_stage(run: Run, only: str | None, stages: Sequence[Stage]) -> UserError:
    if not stages:
        return UserError(
            f"{run.folder} has no finished model yet.", "Let its training finish: the same command goes on."
        )
    near = nearest(str(only), [stage.name for stage in stages])
    hint = f"Did you mean {run.folder / near}? " if near else ""
    return UserError(
        f"{run.folder} has no finished model '{only}'.",
        f"{hint}There are: {list_names(stage.name for stage in stages)}.",
    )


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "_.+-" else "-" for c in text)
