"""Checks of values of the right type: durations, choices, ranges, keys that depend on each other.

They need no torch and run before anything is loaded; a message has the key, the place of its value and the cure.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from vitlab.compose.rules import Where, check_values, has_length, one_of
from vitlab.compose.schema import DURATIONS
from vitlab.compose.validate_run import check_run
from vitlab.config import AugmentationConfig, Config, ModelConfig, RecipeConfig, to_steps
from vitlab.config.catalogue import GROUPS, MODE_KEYS, TRAINING_KEYS, find_mode, mode_files, mode_meanings
from vitlab.config.size import MOST_PIXELS, hw
from vitlab.data.paths import data_roots, not_found_error
from vitlab.errors import UserError
from vitlab.methods.base import Method, find_method, method_names
from vitlab.run.run import model_folder
from vitlab.training.schedule import COMPATS, KINDS

BALANCES = ("none", "weight", "sampler", "logit_adjust")


def check(config: Config, where: Where, read: set[str]) -> None:
    """Refuse the first invalid value; the data set's folder must exist if ``read`` contains "dataset".

    Raises:
        UserError: naming the key and its possible values.
    """
    one_of("mode", config.mode, mode_meanings(), where)
    check_values(config, "", where)
    if not config.output:
        raise UserError(f"{where('output')}: the folder of the runs has no name.", "Give output=FOLDER.")
    _folder("output", config.output, where)
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
    check_run(config, where)


def _folder(key: str, value: str, where: Where) -> None:
    """Refuse a folder to write into that is a file, or lies below one."""
    path = Path(value).expanduser()
    there = next((one for one in (path, *path.parents) if one.exists()), None)
    if there is not None and not there.is_dir():
        raise UserError(f"{where(key)}: {there} is a file.", f"Give a folder: {key}=FOLDER.")


def parts_of(value: object, key: str) -> Iterator[tuple[str, RecipeConfig | ModelConfig]]:
    """Every recipe and every network inside ``value``, with its dotted key."""
    if isinstance(value, (RecipeConfig, ModelConfig)):
        yield key, value
    elif dataclasses.is_dataclass(value):
        for one in dataclasses.fields(value):
            yield from parts_of(getattr(value, one.name), f"{key}.{one.name}")
    elif isinstance(value, (list, dict)):
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from parts_of(one, f"{key}.{name}")


def check_read(config: Config, method: type[Method], chosen: dict[str, str]) -> None:
    """Refuse a group or key on the command line that no stage of the method, or not the mode, reads.

    Args:
        chosen: group or top-level key → the override that gives it.

    Raises:
        UserError: naming the methods, or the modes, that read it.
    """
    of_modes = _reads_by_mode(config)
    keys = frozenset[str]().union(*of_modes.values()) - set(GROUPS) - TRAINING_KEYS
    for group, word in chosen.items():
        if config.mode in of_modes or group in keys:
            if group not in of_modes.get(config.mode, ()):
                _refuse_unread(config.mode, group, word, of_modes)
            continue
        if group in method.reads(config) | TRAINING_KEYS:
            continue
        name = config.method.name
        readers = [one for one in method_names() if any(group in stage.reads for stage in _every_stage(one))]
        reads = sorted(set().union(*(stage.reads for stage in method.stages(config))))
        cure = f"Leave it out, or choose a method that does: {', '.join(f'method={one}' for one in readers)}."
        detail = f"; its stages read {', '.join(reads)}" if reads else ""
        raise UserError(
            f"{word}: no stage of method={name} reads {group}{detail}.",
            cure if readers and name not in readers else "Leave it out.",
        )


def _reads_by_mode(config: Config) -> dict[str, frozenset[str]]:
    """What each mode reads; of those that several methods have, what the chosen method's reads."""
    found = {mode.name: mode.reads for mode in mode_files()}
    if (own := find_mode(config.mode, config.method.name)) is not None:
        found[own.name] = own.reads
    return found


def _refuse_unread(mode: str, group: str, word: str, of_modes: Mapping[str, frozenset[str]]) -> None:
    readers = [one for one, read in of_modes.items() if group in read]
    detail = f"the modes that do are {', '.join(readers)}" if readers else "only a training does"
    own = of_modes.get(mode, frozenset()) - MODE_KEYS
    keys = f" mode={mode} reads {', '.join(sorted(own))}." if own else ""
    raise UserError(f"{word}: mode={mode} does not read {group}; {detail}.", f"Leave it out, or choose another.{keys}")


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
    for name in ("validate_every", "checkpoint_every"):
        if to_steps(getattr(recipe, name), 1, 100) == 0 and float(getattr(recipe, name).strip(" epst%")) == 0:
            raise UserError(f"{where(f'{key}.{name}')}: 0 is not a valid interval.", "Give at least 1st.")
    length, warmup = recipe.duration.strip(), recipe.warmup.strip()
    total = "100%" if warmup.endswith("%") else length
    if warmup[-1] == total[-1] and to_steps(warmup, 10**6, 100) >= to_steps(total, 10**6, 100):
        raise UserError(
            f"{where(f'{key}.warmup')}: a warm-up of {warmup} is not shorter than the training of {length}.",
            f"Shorten it, or lengthen {key}.duration.",
        )
    for name in ("warmup_lr", "min_lr"):
        if getattr(recipe, name) > recipe.lr:
            raise UserError(
                f"{where(f'{key}.{name}')}: {getattr(recipe, name):g} is above {key}.lr, which is {recipe.lr:g}.",
                "Lower it, or raise the other.",
            )
    one_of(f"{key}.schedule", recipe.schedule, KINDS, where)
    one_of(f"{key}.schedule_compat", recipe.schedule_compat, COMPATS, where)
    if recipe.batch_size % recipe.accumulate:
        raise UserError(
            f"{where(f'{key}.accumulate')}: a batch of {recipe.batch_size} does not divide into {recipe.accumulate} "
            "equal micro-batches.",
            f"Choose {key}.batch_size as a multiple of {key}.accumulate.",
        )
    one_of(f"{key}.balance", recipe.balance, BALANCES, where)
    _augmentation(f"{key}.augmentation", recipe.augmentation, where)


def _augmentation(key: str, augmentation: AugmentationConfig, where: Where) -> None:
    """Construct the :class:`Augmentation`, which checks its values; its messages then name this recipe's keys."""
    from vitlab.distill.draw import Augmentation  # imports numpy; other checks do without it

    default = "recipe.augmentation"
    try:
        Augmentation(size=1, **dataclasses.asdict(augmentation))
    except UserError as error:
        match = re.match(rf"{default}\.\w+", error.what)
        own = match[0].replace(default, key) if match else key
        place = where(own)
        file = place.removesuffix(own) if place.endswith(own) else ""
        raise UserError(file + error.what.replace(default, key), error.cure.replace(default, key)) from None


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
            has_length(f"{key}.{name}", value, 3, where)


def _dataset(config: Config, where: Where, read: bool) -> None:
    dataset = config.dataset
    _size("dataset.size", dataset.size, where)
    has_length("dataset.mean", dataset.mean, 3, where)
    has_length("dataset.std", dataset.std, 3, where)
    from vitlab.distill.draw import CROPS

    one_of("dataset.crop", dataset.crop, CROPS, where)
    _split(config, where)
    for name in dataset.columns:
        one_of("dataset.columns", name, ("path", "label", "labels", "split", "group"), where)
    if dataset.columns and dataset.csv is None:
        raise UserError(f"{where('dataset.columns')}: there is no CSV that has columns.", "Give dataset.csv=FILE.")
    if dataset.embedded or not read or (dataset.csv is not None and dataset.root is None):  # then beside the CSV
        return
    roots = data_roots(dataset)
    if not dataset.download and not any(one.is_dir() for one in roots):
        from vitlab.data.sets import find_set  # imports numpy

        raise not_found_error(dataset, "a folder", downloadable=getattr(find_set(dataset.name), "DOWNLOADABLE", False))


def _split(config: Config, where: Where) -> None:
    """Keys that assign the images to splits."""
    dataset = config.dataset
    if dataset.folds is not None:
        if dataset.split_file is not None:
            raise UserError(f"{where('dataset.split_file')}: dataset.folds splits the images too.", "Leave one out.")
        if dataset.fold is None:
            every = ",".join(map(str, range(dataset.folds)))
            raise UserError(
                f"{where('dataset.folds')}: the test fold is not given.",
                f"Give dataset.fold=0, or all of them with -m dataset.fold={every}.",
            )
        if not 0 <= dataset.fold < dataset.folds:
            raise UserError(
                f"{where('dataset.fold')}: there is no fold {dataset.fold} of {dataset.folds}.",
                f"dataset.fold is a whole number from 0 to {dataset.folds - 1}.",
            )
    elif dataset.fold is not None:
        raise UserError(
            f"{where('dataset.fold')}: the number of folds is not given.", "Give dataset.folds=5, or leave it out."
        )
    if dataset.split_file is not None and not Path(dataset.split_file).expanduser().is_file():
        raise UserError(
            f"{where('dataset.split_file')}: there is no file {dataset.split_file}.",
            "Give a CSV with the columns path,split, such as the splits.csv of a run.",
        )
    if dataset.classes is not None and dataset.classes != "listed" and not isinstance(dataset.classes, list):
        raise UserError(
            f"{where('dataset.classes')}: '{dataset.classes}' is not an order of classes.",
            "Give all of them as a list, [cat,dog], or listed for the order of a CSV.",
        )


def _size(key: str, value: object, where: Where) -> None:
    try:
        longest = max(hw(value))  # type: ignore[arg-type]  # the value is checked here
    except (TypeError, ValueError):
        raise UserError(
            f"{where(key)}: {value} is not a size.", f"{key} is the side of a square in pixels, or [height,width]."
        ) from None
    if longest > MOST_PIXELS:
        raise UserError(f"{where(key)}: {longest} pixels are too many.", f"A side has at most {MOST_PIXELS}.")


TARGETS = {"class": "one label", "labels": "several labels"}
"""Values of ``task.targets`` with their description."""


def _task(config: Config, where: Where) -> None:
    task, dataset = config.task, config.dataset
    one_of("task.targets", task.targets, TARGETS, where)
    if dataset.targets is not None:
        one_of("dataset.targets", dataset.targets, TARGETS, where)
        if dataset.targets != task.targets:
            other = {"labels": "task=multilabel", "class": "task=classification"}[dataset.targets]
            raise UserError(
                f"task={task.name} needs images with {TARGETS[task.targets]} each, and those of "
                f"dataset={dataset.name} have {TARGETS[dataset.targets]}.",
                f"Give {other}, or other data (mode=list group=dataset).",
            )
    weights = task.pos_weight if isinstance(task.pos_weight, list) else [task.pos_weight]
    for value in weights:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value not in (None, "balanced") and not (number and math.isfinite(value) and value > 0):
            raise UserError(
                f"{where('task.pos_weight')}: {task.pos_weight} is not valid.",
                "task.pos_weight is a number above 0, a list of one per label, balanced, or null.",
            )
    if task.pos_weight is not None and task.targets != "labels":
        raise UserError(f"{where('task.pos_weight')}: task={task.name} has no binary cross-entropy.", "Leave it out.")
    if task.targets == "labels" and config.recipe.balance != "none":
        raise UserError(
            f"{where('recipe.balance')}: recipe.balance={config.recipe.balance} is for one label an image.",
            "Give task.pos_weight=balanced instead.",
        )
    if task.targets == "labels" and (config.evaluation.corruptions or config.evaluation.shifted):
        raise UserError(
            f"evaluation.corruptions and evaluation.shifted need classes, not labels (task={task.name}).",
            "Give evaluation=default.",
        )


def _teacher(config: Config, where: Where) -> None:
    teacher = config.teacher
    for index, member in enumerate(teacher.members):
        _model(f"teacher.members.{index}", member, where)
    if teacher.weights is not None:
        has_length("teacher.weights", teacher.weights, len(teacher.members), where)
        if not any(teacher.weights):
            raise UserError(f"{where('teacher.weights')}: no member has a weight.", "Give one a weight above 0.")
    for index, size in enumerate(teacher.sizes or []):
        _size(f"teacher.sizes.{index}", size, where)
    if teacher.train and len(teacher.members) != 1:
        raise UserError(
            f"{where('teacher.train')}: a teacher of {len(teacher.members)} members cannot be trained.",
            "Give teacher.train=false, or choose a teacher of one member.",
        )
    if teacher.train and teacher.recipe is None:
        raise UserError(
            f"{where('teacher.train')}: a teacher that is trained needs a recipe.",
            "Choose one: +recipe@teacher.recipe=finetune (mode=list group=recipe), or give teacher.train=false.",
        )
