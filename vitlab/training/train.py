"""Training is three calls that a stage may come between: prepare, run, save.

``prepare`` builds data, network and learner; ``Training.run`` is the one place that calls ``Trainer.fit``;
``Training.save`` leaves a model artifact. :func:`train` makes the three calls for a stage that changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from vitlab.config import Config, ModelConfig, RecipeConfig
from vitlab.data.datamodule import VisionData
from vitlab.data.sampler import EpochSampler
from vitlab.data.views import FreshViews, Views
from vitlab.distill.teachers import StoredTeacher
from vitlab.models.artifact import ModelMeta, save_model
from vitlab.models.build import load_report, normalisation
from vitlab.stage import Context
from vitlab.tasks.base import find_task
from vitlab.training.build import describe_model, full_steps, make_data, make_network, make_optimizer, shortened
from vitlab.training.callbacks.record_and_checkpoint import RecordAndCheckpoint
from vitlab.training.callbacks.view_grid import ViewGrid
from vitlab.training.checkpoint import CHECKPOINT, read_done, refuse_other_network
from vitlab.training.class_balance import balanced
from vitlab.training.distributed import device_of, world_size
from vitlab.training.learner import Learner, TeacherFn
from vitlab.training.objectives import Objective, StepObjective
from vitlab.training.out_of_memory import (
    free_traceback,
    largest_that_fits,
    one_value_per_channel,
    out_of_memory,
    too_large,
    too_small,
)
from vitlab.training.overfit import Overfit
from vitlab.training.profile import StepProfiler
from vitlab.training.progress import Progress
from vitlab.training.schedule import Schedule, describe_length, duration_steps, slow_average
from vitlab.training.sharding import all_processes, full_state_dict, shard, uses_sharding
from vitlab.training.teacher import load_teacher, make_teacher
from vitlab.training.trainer import Stopwatch, make_trainer


@dataclass
class Training:
    """A training that is prepared: a stage may change the learner before :meth:`run`, and the result before
    :meth:`save`.

    Attributes:
        context: of the stage.
        recipe: cut to ``debug.max_steps``.
        network: the student, as it was built; ``learner.result`` is what is kept.
        data: views and labels.
        learner: objective, optimiser, teachers; see its attributes for what may be changed.
        meta: the description for ``model.json``.
        expected_steps: of the training; in a rehearsal, which takes at most three, those of the real thing.
        expected_images: training images, likewise.
        seconds: of training, after :meth:`run`, earlier sessions included; in a rehearsal an estimate.
    """

    context: Context
    recipe: RecipeConfig
    network: nn.Module
    data: VisionData
    learner: Learner
    meta: ModelMeta
    expected_steps: int
    expected_images: int
    seconds: float = 0.0

    def run(self, callbacks: Sequence[Callback] = ()) -> None:
        """Train to the end of the schedule, or until a callback sets ``learner.finished``; from the checkpoint in the
        stage's folder if there is one.

        Lightning sees each session as one epoch of the batches that remain. The order of the samples, the learning rate
        and the random numbers follow from the learner's own counters, so nothing of Lightning's loops is restored, and
        the loader's workers and their prefetching live across the epochs of the data.

        Args:
            callbacks: of the stage, called before the one that records and writes checkpoints, so that what they change
                after a step is in the checkpoint of that step. Their ``state_dict`` is kept there, under their
                ``state_key``. A rehearsal (mode=check) runs them too.

        Raises:
            Interrupted: a signal asked to stop; the checkpoint is written.
            UserError: a loss is not finite; the batch does not fit into memory; the checkpoint is damaged.
        """
        context, config, recipe, learner = self.context, self.context.config, self.recipe, self.learner
        stage, recorder, dry_run = context.stage.name, context.recorder, context.dry_run
        checkpoint = context.folder / CHECKPOINT
        done = read_done(checkpoint)
        if checkpoint.exists():
            refuse_other_network(checkpoint, learner)
        if recorder is not None:
            recorder.rewind(stage, done.step if checkpoint.exists() else -1)  # rows of steps that will be taken again
        per_epoch, total = self.data.steps_per_epoch, learner.schedule.total
        total = min(total, 3) if dry_run else total
        with Progress(stage, total, done=done.step, quiet=dry_run or recorder is None) as progress:
            if not done.step and not dry_run:
                progress.note(f"{stage}: {self.length_text()}")
            if (note := slow_average(recipe, total)) and not done.step:
                progress.note(f"{stage}: {note}")
            keeper = RecordAndCheckpoint(
                stage=stage,
                folder=context.folder,
                recorder=recorder,
                validation=None if dry_run else self.data.val_dataloader(),
                total=total,
                record_every=config.logger.every,
                validate_every=duration_steps("recipe.validate_every", recipe.validate_every, per_epoch, total),
                checkpoint_every=duration_steps("recipe.checkpoint_every", recipe.checkpoint_every, per_epoch, total),
                accumulate=recipe.accumulate,
                progress=progress,
            )
            learner.accumulate = recipe.accumulate
            if done.finished or done.step >= total:
                # Killed between the last step and the artifact: one step more would be another model.
                self.seconds = restore(checkpoint, learner, [*callbacks, keeper])
                return
            loader = self.data.train_loader(start=done.step * recipe.accumulate, stop=total * recipe.accumulate)
            watch, profiler = Stopwatch(), None
            if not dry_run:
                callbacks = [*self._observers(), *callbacks]
            if config.debug.profile is not None and recorder is not None and not dry_run:
                left = (total - done.step) * recipe.accumulate
                folder = context.folder / "profile"
                profiler = StepProfiler(stage, folder, left, config.debug.profile, device_of(config))
            # In Lightning's calling order: the stage's callbacks change the learner, then the keeper writes it down.
            trainer = make_trainer(config, recipe.accumulate, [watch, *callbacks, keeper], profiler)
            resume = str(checkpoint) if checkpoint.exists() else None
            try:
                trainer.fit(learner, loader, ckpt_path=resume, weights_only=True)
            except (RuntimeError, ValueError) as error:
                if one_value_per_channel(error):
                    raise too_small("recipe", recipe.batch_size // (world_size() * recipe.accumulate)) from error
                if not out_of_memory(error):
                    raise
                free_traceback(error)
                fits = None if uses_sharding(config) else largest_that_fits(trainer, learner, self.data)
                raise too_large(config, recipe, stage, fits) from error
            expected = self.expected_steps * recipe.accumulate
            self.seconds = watch.estimate(expected) if dry_run else keeper.elapsed()

    def length_text(self) -> str:
        """Steps in all, the images that an epoch leaves out, and the size of the network."""
        sampler = self.data.train_sampler
        plain = type(sampler) is EpochSampler and sampler.repeats == 1  # others do not show every image once
        images = len(self.data.train_source) if plain else 0
        steps = describe_length(self.learner.schedule.total, self.data.steps_per_epoch, self.recipe.batch_size, images)
        return f"{steps}; {sum(p.numel() for p in self.network.parameters()):,} parameters"

    def save(self, meta: ModelMeta | None = None, network: nn.Module | None = None) -> dict[str, object]:
        """Write the model artifact into the stage's folder; every rank calls this, rank 0 writes.

        Args:
            meta: the description for ``model.json``; None: :attr:`meta`.
            network: what is kept; None: ``learner.result``.

        Returns:
            What the stage's marker records: seconds, params, images, steps.
        """
        kept = network if network is not None else self.learner.result
        state = full_state_dict(kept)
        if self.context.is_main:
            save_model(self.context.folder, kept, meta or self.meta, state)
        params = sum(p.numel() for p in kept.parameters())
        steps = self.learner.step if self.learner.finished else self.expected_steps
        notes = [one for one in (load_report(self.network), slow_average(self.recipe, steps)) if one]
        return {
            "seconds": round(self.seconds, 2),
            "params": params,
            "images": self.expected_images,
            "steps": steps,
            **({"notes": notes} if notes else {}),
        }

    def _observers(self) -> list[Callback]:
        """Callbacks that change nothing."""
        context, debug, observers = self.context, self.context.config.debug, list[Callback]()
        if context.is_main:
            observers.append(ViewGrid(context.folder / "views.png", self.data.mean, self.data.std))
        if debug.overfit is not None:
            classes, task = self.data.num_classes, self.learner.task
            observers.append(Overfit(context.stage.name, context.folder, debug.overfit, classes, task))
        return observers


def prepare(
    context: Context,
    model: ModelConfig,
    recipe: RecipeConfig,
    views: Views = FreshViews(),  # noqa: B008  # frozen
    *,
    objective: Objective | StepObjective | None = None,
    teacher: Path | None = None,
    teachers: Mapping[str, Path] | None = None,
    start: Path | None = None,
    network: Callable[[VisionData], nn.Module] | None = None,
) -> Training:
    """Build what a training needs; nothing is trained.

    Args:
        model: the network, and the normalisation of its images.
        recipe: optimiser, schedule, augmentation, length.
        views: where training views come from; stored ones bring the teacher's targets.
        objective: what is minimised; None: the task's own, on the labels.
        teacher: artifact of a teacher that labels every batch.
        teachers: artifacts of further frozen teachers by name, whose targets a
            :class:`~vitlab.training.objectives.StepObjective` reads.
        start: model artifact whose weights to start from; None: as ``model`` says.
        network: builds the network of the stage's own from the data, instead of ``model`` and ``start``; then
            :meth:`Training.save` needs the ``meta`` that describes it.
    """
    config, full_recipe, recipe = context.config, recipe, shortened(context.config, recipe)
    mean, std = normalisation(model, config.dataset.mean, config.dataset.std)
    data = make_data(config, recipe, mean, std, views)
    student = make_network(config, model, data, start, network)
    task = find_task(config.task)
    task.check_source(data.train_source, config.dataset.name)
    objective = objective or task.objective(recipe, data.train_source)
    schedule = Schedule.from_recipe(recipe, data.steps_per_epoch)
    steps, images = schedule.total, len(data.train_source)
    if context.full_config is not None:
        steps, _, images = full_steps(context.full_config, full_recipe)
    stored = StoredTeacher() if views.has_targets else None
    learner = Learner(
        student,
        balanced(objective, recipe.balance, data.train_source),
        schedule,
        partial(make_optimizer, recipe=recipe),
        teacher=_frozen(config, teacher, data) if teacher is not None else stored,
        teachers={name: _frozen(config, folder, data) for name, folder in (teachers or {}).items()},
        freeze_batchnorm=recipe.freeze_batchnorm,
        clip=recipe.clip,
        ema=recipe.ema,
        ema_warmup=recipe.ema_warmup,
        seed=config.seed,
        compile=config.hardware.compile,
        task=task,
        classes=data.num_classes,
    )
    meta = describe_model(config, model, data, mean, std, start)
    return Training(context, recipe, student, data, learner, meta, steps, images)


def train(
    context: Context,
    model: ModelConfig,
    recipe: RecipeConfig,
    objective: Objective | StepObjective | None = None,
    views: Views = FreshViews(),  # noqa: B008  # frozen
    *,
    teacher: Path | None = None,
    start: Path | None = None,
) -> dict[str, object]:
    """Train ``model`` with ``recipe`` to minimise ``objective``, and leave a model artifact in ``context.folder``.

    The arguments are those of :func:`prepare`. Returns what the stage's marker records.
    """
    training = prepare(context, model, recipe, views, objective=objective, teacher=teacher, start=start)
    training.run()
    return training.save()


def train_on_labels(
    context: Context,
    model: ModelConfig,
    recipe: RecipeConfig,
    views: Views = FreshViews(),  # noqa: B008  # frozen
    *,
    start: Path | None = None,
) -> dict[str, object]:
    """Train without a teacher, see :func:`train`: the task's objective on the labels."""
    return train(context, model, recipe, views=views, start=start)


def train_teacher(context: Context) -> dict[str, object]:
    """Train the teacher on the labels of the data set, with its own recipe, or load the one that is given; either way
    it becomes an artifact."""
    spec = context.config.teacher
    if not spec.train:
        return load_teacher(context)
    assert spec.recipe is not None  # checked when the configuration was composed
    return train_on_labels(context, spec.members[0], spec.recipe)


def restore(checkpoint: Path, learner: Learner, callbacks: Sequence[Callback]) -> float:
    """Put the weights and the callbacks' states of a training that is over back; its seconds."""
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location="cpu")
    learner.on_load_checkpoint(state)
    learner.load_state_dict(state["state_dict"])
    for callback in callbacks:
        if callback.state_key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.state_key])
    return float(state["callbacks"][RecordAndCheckpoint.KEY]["seconds"])


def _frozen(config: Config, artifact: Path, data: VisionData) -> TeacherFn:
    """The teacher of ``artifact`` on this process's device, shared over the processes where the student is."""
    online = make_teacher(config, artifact, data)
    if uses_sharding(config):
        for network in online.networks:
            shard(network, all_processes(config))
    return online.to(device_of(config))
