"""Values that have the right type and still cannot be meant: durations, names from a short list, ranges, companions.

All checks are light and run before anything is loaded; each names the key, where its value comes from, and the cure.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vitlab.compose.schema import DURATIONS
from vitlab.config import AugmentationConfig, Config, ModelConfig, RecipeConfig, to_steps
from vitlab.config.catalogue import GROUPS, MODE_KEYS, TRAINING_KEYS, mode_files, mode_meanings
from vitlab.config.size import hw
from vitlab.data.paths import data_roots, missing, shifted_root
from vitlab.errors import UserError, nearest
from vitlab.measure.robustness_names import BACKENDS, CORRUPTIONS, FAMILIES, SHIFTED
from vitlab.methods.base import Method, find_method, method_names
from vitlab.report.export_formats import FORMATS, ONNX_NEEDS
from vitlab.run.run import model_folder
from vitlab.training.schedule import KINDS

BALANCES = ("none", "weight", "sampler", "logit_adjust")
LOGGERS = ("local", "csv", "tensorboard", "wandb")
SAMPLERS = ("grid", "tpe", "random", "nsga2")
PRUNERS = ("median", "halving")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
STRATEGIES = ("auto", "ddp", "fsdp")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")

PACKAGES = {
    "tensorboard": ("tensorboard",),
    "optuna": ("optuna",),
    "wandb": ("wandb",),
    "onnx": ONNX_NEEDS,
    "onnx_int8": ONNX_NEEDS,
}
"""Packages that a choice needs."""

EXTRAS = ("tensorboard", "optuna")
"""Those of them that are extras of vitlab's, not always installed with it."""

Where = Callable[[str], str]
"""From a key to the words that say where its value stands: ``key`` itself, or file and line."""


def check(config: Config, where: Where, read: set[str]) -> None:
    """Refuse the first value that cannot be meant; a folder of data is asked for when ``read`` has the data set.

    Raises:
        UserError: naming the key and what it may be.
    """
    _one_of("mode", config.mode, mode_meanings(), where)
    _within("seed", config.seed, 0, 2**31 - 1, where)
    if not config.output:
        raise UserError(f"{where('output')}: the folder of the runs has no name.", "Give output=FOLDER.")
    _recipe("recipe", config.recipe, where)
    if config.teacher.recipe is not None:
        _recipe("teacher.recipe", config.teacher.recipe, where)
    _model("model", config.model, where)
    for key, part in parts_of(config.method, "method"):
        if isinstance(part, RecipeConfig):
            _recipe(key, part, where)
        else:
            _model(key, part, where)
    _dataset(config, where, "dataset" in read)
    _task(config, where)
    _teacher(config, where)
    _rest(config, where)


def parts_of(value: object, key: str) -> Iterator[tuple[str, RecipeConfig | ModelConfig]]:
    """Every recipe and every network inside ``value``, whatever it is called there, with its dotted key."""
    if isinstance(value, (RecipeConfig, ModelConfig)):
        yield key, value
    elif dataclasses.is_dataclass(value):
        for one in dataclasses.fields(value):
            yield from parts_of(getattr(value, one.name), f"{key}.{one.name}")
    elif isinstance(value, (list, dict)):
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from parts_of(one, f"{key}.{name}")


def check_read(config: Config, method: type[Method], chosen: dict[str, str]) -> None:
    """Refuse a group or key that the prompt named (``chosen``: group to the word) and that nothing reads: no stage of
    the method, or in a mode that follows no method, not the mode.

    Raises:
        UserError: naming the methods, or the modes, that do read it.
    """
    of_modes = {mode.name: mode.reads for mode in mode_files()}
    keys = frozenset[str]().union(*of_modes.values()) - set(GROUPS) - TRAINING_KEYS
    for group, word in chosen.items():
        if config.mode in of_modes or group in keys:
            if group not in of_modes.get(config.mode, ()):
                _refuse_unread(config.mode, group, word)
            continue
        if group in method.reads(config) | TRAINING_KEYS:
            continue
        name = config.method.name
        readers = [one for one in method_names() if any(group in stage.reads for stage in _every_stage(one))]
        reads = sorted(set().union(*(stage.reads for stage in method.stages(config))))
        cure = f"Leave it out, or choose a method that does: {', '.join(f'method={one}' for one in readers)}."
        told = f"; its stages read {', '.join(reads)}" if reads else ""
        raise UserError(
            f"{word}: no stage of method={name} reads {group}{told}.",
            cure if readers and name not in readers else "Leave it out.",
        )


def _refuse_unread(mode: str, group: str, word: str) -> None:
    of_modes = {one.name: one.reads for one in mode_files()}
    readers = [one for one, read in of_modes.items() if group in read]
    asks = f"the modes that do are {', '.join(readers)}" if readers else "it belongs to a training"
    own = of_modes.get(mode, frozenset()) - MODE_KEYS
    takes = f" mode={mode} reads {', '.join(sorted(own))}." if own else ""
    raise UserError(f"{word}: mode={mode} does not read {group}; {asks}.", f"Leave it out, or choose another.{takes}")


def _every_stage(name: str) -> list:  # type: ignore[type-arg]
    return [one.__stage__ for one in vars(find_method(name)).values() if hasattr(one, "__stage__")]


# ------------------------------------------------------------------------------------------------------------- parts


def _recipe(key: str, recipe: RecipeConfig, where: Where) -> None:
    for name in sorted(DURATIONS):
        value = getattr(recipe, name)
        for one in value if isinstance(value, list) else [value]:
            try:
                steps = to_steps(one, 1, None if name == "duration" else 100)
            except ValueError as error:
                number = re.match(r"\s*(\d+)\s*([a-z%]?)", str(one))
                cure = ""
                if number and number[2] in ("", "e", "s"):
                    units = {"e": ("ep",), "s": ("st",)}.get(number[2], ("ep", "st"))
                    cure = f"Did you mean {' or '.join(f'{number[1]}{unit}' for unit in units)}?"
                raise UserError(f"{where(f'{key}.{name}')}: {error}.", cure) from None
            if steps == 0 and name == "duration" and float(str(one).strip()[:-2]) == 0:
                raise UserError(f"{where(f'{key}.{name}')}: a training of length {one}.", "Give at least 1st.")
    _within(f"{key}.lr", recipe.lr, 0, math.inf, where, open_low=True)
    for name in ("validate_every", "checkpoint_every"):
        if to_steps(getattr(recipe, name), 1, 100) == 0 and float(getattr(recipe, name).strip(" epst%")) == 0:
            raise UserError(f"{where(f'{key}.{name}')}: never is no interval.", "Give at least 1st.")
    length, warmup = recipe.duration.strip(), recipe.warmup.strip()
    whole = "100%" if warmup.endswith("%") else length
    if warmup[-1] == whole[-1] and to_steps(warmup, 10**6, 100) >= to_steps(whole, 10**6, 100):
        raise UserError(
            f"{where(f'{key}.warmup')}: a warm-up of {warmup} fills the training of {length}.",
            f"Shorten it, or lengthen {key}.duration.",
        )
    for name in ("warmup_lr", "min_lr"):
        if getattr(recipe, name) > recipe.lr:
            raise UserError(
                f"{where(f'{key}.{name}')}: {getattr(recipe, name):g} is above {key}.lr, which is {recipe.lr:g}.",
                "Lower it, or raise the other.",
            )
    _one_of(f"{key}.schedule", recipe.schedule, KINDS, where)
    _at_least(f"{key}.batch_size", recipe.batch_size, 1, where)
    _at_least(f"{key}.accumulate", recipe.accumulate, 1, where)
    if recipe.batch_size % recipe.accumulate:
        raise UserError(
            f"{where(f'{key}.accumulate')}: a batch of {recipe.batch_size} does not divide into {recipe.accumulate} "
            "equal micro-batches.",
            f"Choose {key}.batch_size as a multiple of {key}.accumulate.",
        )
    for name in ("weight_decay", "warmup_lr", "min_lr"):
        _within(f"{key}.{name}", getattr(recipe, name), 0, math.inf, where)
    _within(f"{key}.layer_decay", recipe.layer_decay, 0, 1, where, open_low=True)
    _within(f"{key}.head_lr", recipe.head_lr, 0, math.inf, where, open_low=True)
    _one_of(f"{key}.balance", recipe.balance, BALANCES, where)
    _within(f"{key}.label_smoothing", recipe.label_smoothing, 0, 1, where, open_high=True)
    if recipe.ema is not None:
        _within(f"{key}.ema", recipe.ema, 0, 1, where, open_low=True, open_high=True)
    if recipe.clip is not None:
        _within(f"{key}.clip", recipe.clip, 0, math.inf, where, open_low=True)
    _augmentation(f"{key}.augmentation", recipe.augmentation, where)


def _augmentation(key: str, augmentation: AugmentationConfig, where: Where) -> None:
    """What can be drawn is for :class:`Augmentation` to say; it is built, and its answer names this recipe's key."""
    from vitlab.distill.draw import Augmentation  # numpy, no torch; a mistyped key is answered without it

    usual = "recipe.augmentation"
    try:
        Augmentation(size=1, **dataclasses.asdict(augmentation))
    except UserError as error:
        found = re.match(rf"{usual}\.\w+", error.what)
        mine = found[0].replace(usual, key) if found else key
        place = where(mine)
        file = place.removesuffix(mine) if place.endswith(mine) else ""
        raise UserError(file + error.what.replace(usual, key), error.cure.replace(usual, key)) from None


def _model(key: str, model: ModelConfig, where: Where) -> None:
    if model.checkpoint is not None and not Path(model.checkpoint).expanduser().exists():
        raise UserError(
            f"{where(f'{key}.checkpoint')}: there is no file or folder {model.checkpoint}.",
            "Give the path of a .pth or .safetensors file, of a vitlab model folder, or of a run.",
        )
    if model.checkpoint is not None:
        model_folder(Path(model.checkpoint).expanduser())
    for name in ("mean", "std"):
        value = getattr(model, name)
        if value is not None:
            _length(f"{key}.{name}", value, 3, where)


def _dataset(config: Config, where: Where, read: bool) -> None:
    dataset = config.dataset
    _size("dataset.size", dataset.size, where)
    _length("dataset.mean", dataset.mean, 3, where)
    _length("dataset.std", dataset.std, 3, where)
    for value in dataset.std:
        _within("dataset.std", value, 0, math.inf, where, open_low=True)
    if dataset.labels_per_class is not None:
        _at_least("dataset.labels_per_class", dataset.labels_per_class, 1, where)
    from vitlab.distill.draw import CROPS

    _one_of("dataset.crop", dataset.crop, CROPS, where)
    _within("dataset.crop_pct", dataset.crop_pct, 0, 1, where, open_low=True)
    _within("dataset.val_fraction", dataset.val_fraction, 0, 1, where, open_high=True)
    _at_least("dataset.length", dataset.length, 1, where)
    _at_least("dataset.num_classes", dataset.num_classes, 2, where)
    _split(config, where)
    if dataset.embedded or not read or (dataset.csv is not None and dataset.root is None):  # then beside the CSV
        return
    roots = data_roots(dataset)
    if not dataset.download and not any(one.is_dir() for one in roots):
        from vitlab.data.sets import find_set  # imports numpy

        raise missing(dataset, "a folder", downloadable=getattr(find_set(dataset.name), "DOWNLOADABLE", False))


def _split(config: Config, where: Where) -> None:
    """Keys that say which image belongs to which split."""
    dataset = config.dataset
    if dataset.folds is not None:
        _at_least("dataset.folds", dataset.folds, 2, where)
        if dataset.split_file is not None:
            raise UserError(f"{where('dataset.split_file')}: dataset.folds splits the images too.", "Leave one out.")
        if dataset.fold is None:
            every = ",".join(map(str, range(dataset.folds)))
            raise UserError(
                f"{where('dataset.folds')}: which fold is tested?",
                f"Give dataset.fold=0, or all of them with -m dataset.fold={every}.",
            )
        if not 0 <= dataset.fold < dataset.folds:
            raise UserError(
                f"{where('dataset.fold')}: there is no fold {dataset.fold} of {dataset.folds}.",
                f"dataset.fold is a whole number from 0 to {dataset.folds - 1}.",
            )
    elif dataset.fold is not None:
        raise UserError(f"{where('dataset.fold')}: a fold of how many?", "Give dataset.folds=5, or leave it out.")
    if dataset.split_file is not None and not Path(dataset.split_file).expanduser().is_file():
        raise UserError(
            f"{where('dataset.split_file')}: there is no file {dataset.split_file}.",
            "Give a CSV with the columns path,split, such as the splits.csv of a run.",
        )
    if dataset.classes is not None and dataset.classes != "listed" and not isinstance(dataset.classes, list):
        raise UserError(
            f"{where('dataset.classes')}: '{dataset.classes}' is no order of classes.",
            "Give all of them as a list, [cat,dog], or listed for the order of a CSV.",
        )


def _size(key: str, value: object, where: Where) -> None:
    try:
        hw(value)  # type: ignore[arg-type]  # that is the question
    except (TypeError, ValueError):
        raise UserError(
            f"{where(key)}: {value} is no size.", f"{key} is the side of a square in pixels, or [height,width]."
        ) from None


TARGETS = {"class": "one label", "labels": "several labels"}
"""What an image is labelled with, in words."""


def _task(config: Config, where: Where) -> None:
    task, dataset = config.task, config.dataset
    _one_of("task.targets", task.targets, TARGETS, where)
    if dataset.targets is not None:
        _one_of("dataset.targets", dataset.targets, TARGETS, where)
        if dataset.targets != task.targets:
            other = {"labels": "task=multilabel", "class": "task=classification"}[dataset.targets]
            raise UserError(
                f"{where('task.name')}: task={task.name} needs images with {TARGETS[task.targets]} each, and those of "
                f"dataset={dataset.name} have {TARGETS[dataset.targets]}.",
                f"Give {other}, or other data (mode=list group=dataset).",
            )
    weights = task.pos_weight if isinstance(task.pos_weight, list) else [task.pos_weight]
    for value in weights:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value not in (None, "balanced") and not (number and math.isfinite(value) and value > 0):
            raise UserError(
                f"{where('task.pos_weight')}: {task.pos_weight} cannot be.",
                "task.pos_weight is a number above 0, a list of one for each label, balanced, or null.",
            )
    if task.pos_weight is not None and task.targets != "labels":
        raise UserError(
            f"{where('task.pos_weight')}: task={task.name} has no binary cross-entropy to weigh.", "Leave it out."
        )
    if task.targets == "labels" and config.recipe.balance != "none":
        raise UserError(
            f"{where('recipe.balance')}: recipe.balance={config.recipe.balance} is for one label an image.",
            "Give task.pos_weight=balanced instead.",
        )
    if task.targets == "labels" and (config.evaluation.corruptions or config.evaluation.shifted):
        raise UserError(
            f"evaluation.corruptions and evaluation.shifted measure classes, and task={task.name} predicts labels.",
            "Give evaluation=default.",
        )


def _teacher(config: Config, where: Where) -> None:
    teacher = config.teacher
    for index, member in enumerate(teacher.members):
        _model(f"teacher.members.{index}", member, where)
    if teacher.weights is not None:
        _length("teacher.weights", teacher.weights, len(teacher.members), where)
    for index, size in enumerate(teacher.sizes or []):
        _size(f"teacher.sizes.{index}", size, where)
    _within("teacher.temperature", teacher.temperature, 0, math.inf, where, open_low=True)
    if teacher.train and len(teacher.members) != 1:
        raise UserError(
            f"{where('teacher.train')}: one teacher can be trained, and this one has {len(teacher.members)} members.",
            "Give teacher.train=false, or choose a teacher of one member.",
        )
    if teacher.train and teacher.recipe is None:
        raise UserError(
            f"{where('teacher.train')}: a teacher that is trained needs a recipe.",
            "Choose one: +recipe@teacher.recipe=finetune (mode=list group=recipe), or give teacher.train=false.",
        )


def _rest(config: Config, where: Where) -> None:
    _one_of("trainer.accelerator", config.trainer.accelerator, ACCELERATORS, where)
    devices = config.trainer.devices
    several = isinstance(devices, list) and devices and all(isinstance(one, int) for one in devices)
    if not (several or devices == "auto" or (isinstance(devices, int) and devices >= 1)):
        raise UserError(
            f"{where('trainer.devices')}: '{devices}' cannot be.",
            "trainer.devices is a number of devices, a list of their numbers such as [0,1], or auto.",
        )
    _one_of("trainer.precision", config.trainer.precision, PRECISIONS, where)
    _one_of("trainer.strategy", config.trainer.strategy, STRATEGIES, where)
    _at_least("trainer.num_nodes", config.trainer.num_nodes, 1, where)
    if config.hardware.workers is not None:
        _at_least("hardware.workers", config.hardware.workers, 0, where)
    if config.hardware.threads is not None:
        _at_least("hardware.threads", config.hardware.threads, 1, where)
    _one_of("slurm.executor", config.slurm.executor, ("slurm", "local"), where)
    for name in ("minutes", "cpus", "warning"):
        _at_least(f"slurm.{name}", getattr(config.slurm, name), 1, where)
    _at_least("slurm.requeues", config.slurm.requeues, 0, where)
    if config.trainer.sync_batchnorm and config.trainer.accelerator in ("cpu", "mps"):
        raise UserError(
            f"{where('trainer.sync_batchnorm')}: torch synchronises BatchNorm's statistics on GPUs only.",
            "Leave it out, or choose a network without batch statistics.",
        )
    _at_least("sweep.jobs", config.sweep.jobs, 1, where)
    if config.sweep.name is not None and not re.fullmatch(r"\w[\w.+-]*", config.sweep.name):
        raise UserError(f"{where('sweep.name')}: this cannot name a folder.", "Use letters, digits, '-', '_' and '.'.")
    _sweep(config, where)
    _one_of("logger.name", config.logger.name, LOGGERS, where)
    _at_least("logger.every", config.logger.every, 1, where)
    _at_least("logger.predictions", config.logger.predictions, 0, where)
    _at_least("logger.upload_mb", config.logger.upload_mb, 0, where)
    _at_least("evaluation.batch_size", config.evaluation.batch_size, 1, where)
    _at_least("evaluation.bins", config.evaluation.bins, 1, where)
    _at_least("evaluation.resamples", config.evaluation.resamples, 0, where)
    _at_least("evaluation.latency_repeats", config.evaluation.latency_repeats, 1, where)
    for size in config.evaluation.latency_batches:
        _at_least("evaluation.latency_batches", size, 1, where)
    for one in config.evaluation.corruptions:
        _one_of("evaluation.corruptions", one, ("all", *FAMILIES, *CORRUPTIONS), where)
    for level in config.evaluation.severities:
        _within("evaluation.severities", level, 1, 5, where)
    if not config.evaluation.severities:
        raise UserError(f"{where('evaluation.severities')}: no severity is given.", "Give some of 1 to 5: [1,3,5].")
    for one in config.evaluation.shifted:
        _one_of("evaluation.shifted", one, ("all", *SHIFTED), where)
    if config.evaluation.shifted:
        shifted_root(config.evaluation.shifted_root)
    if config.evaluation.robust_images is not None:
        _at_least("evaluation.robust_images", config.evaluation.robust_images, 1, where)
    for one in config.benchmark.backends:
        _one_of("benchmark.backends", one, BACKENDS, where)
    for one in config.export.formats:
        _one_of("export.formats", one, FORMATS, where)
    if config.export.push is not None and "hub" not in config.export.formats:
        raise UserError(
            f"{where('export.push')}: what is pushed is the hub layout, and export.formats has none.",
            "Give export.formats=[hub] too.",
        )
    _one_of("predict.format", config.predict.format, ("table", "jsonl", "csv"), where)
    _at_least("predict.topk", config.predict.topk, 1, where)
    _at_least("explain.images", config.explain.images, 1, where)
    if config.debug.overfit is not None:
        _within("debug.overfit", config.debug.overfit, 0, math.inf, where, open_low=True)
    for name in ("max_steps", "max_images", "max_slots", "profile"):
        value = getattr(config.debug, name)
        if value is not None:
            _at_least(f"debug.{name}", value, 1, where)
    needed = [(config.logger.name, "logger"), *((one, "export.formats") for one in config.export.formats)]
    if config.sweep.sampler != "grid":
        needed.append(("optuna", "sweep"))
    for choice, key in needed:
        for package in PACKAGES.get(choice, ()):
            if importlib.util.find_spec(package) is None:
                extra = f'pip install "vitlab[{choice}]"' if choice in EXTRAS else f"pip install {package}"
                raise UserError(
                    f"{where(key)}: {choice} needs the package {package}, which is not installed.",
                    f"Install it ({extra}), or choose without it.",
                )


def _sweep(config: Config, where: Where) -> None:
    sweep = config.sweep
    _one_of("sweep.sampler", sweep.sampler, SAMPLERS, where)
    _at_least("sweep.trials", sweep.trials, 1, where)
    _at_least("sweep.startup", sweep.startup, 0, where)
    objectives = [*sweep.maximize, *sweep.minimize]
    for one in objectives:
        if objectives.count(one) > 1:
            raise UserError(f"{where('sweep.minimize')}: {one} is given twice.", "Leave it out once.")
    if sweep.prune is not None:
        _one_of("sweep.prune", sweep.prune, PRUNERS, where)
        if len(objectives) > 1:
            raise UserError(
                f"{where('sweep.prune')}: a trial of several metrics is not bad before all of them are known.",
                "Give sweep.prune=null, or one metric.",
            )


# ------------------------------------------------------------------------------------------------------------- rules


def _one_of(key: str, value: str, allowed: Iterable[str], where: Where) -> None:
    if value not in allowed:
        near = next((one for one in allowed if value and one.startswith(value)), None) or nearest(value, allowed)
        cure = f"Did you mean {near}? " if near else ""
        raise UserError(f"{where(key)}: '{value}' is none of {', '.join(allowed)}.", cure)


def _at_least(key: str, value: int, least: int, where: Where) -> None:
    if value < least:
        raise UserError(f"{where(key)}: {value} is too small.", f"{key} is a whole number from {least} on.")


def _within(
    key: str, value: float, low: float, high: float, where: Where, open_low: bool = False, open_high: bool = False
) -> None:
    if not math.isfinite(value):
        raise UserError(f"{where(key)}: {value} is no finite number.", "Give one that is.")
    inside = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
    if not inside:
        least = f"larger than {low}" if open_low else f"at least {low}"
        most = "" if high == math.inf else f" and less than {high}" if open_high else f" and at most {high}"
        raise UserError(f"{where(key)}: {value} is out of range.", f"{key} is a number {least}{most}.")


def _length(key: str, value: list[float], length: int, where: Where) -> None:
    if len(value) != length:
        raise UserError(f"{where(key)}: {value} does not fit.", f"{key} takes {length} numbers.")
