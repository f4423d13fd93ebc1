"""The plan that is printed before torch is imported, and the division of the batches over the devices."""

from __future__ import annotations

from collections.abc import Mapping

from vitlab.config import Config, ModelConfig
from vitlab.config.catalogue import PLAN_ORDER
from vitlab.config.composed import Composed
from vitlab.config.size import Size, size_text
from vitlab.config.words import describe_network
from vitlab.errors import UserError
from vitlab.launch.processes import known_process_count
from vitlab.methods.base import find_method
from vitlab.run.run import Run
from vitlab.stage import recipes_of


def plan(run: Run, composed: Composed) -> str:
    """The plan of a run as text: the run and its state, its choices, its stages and which of them are done."""
    config, choices = composed.config, composed.choices | {"model": composed.network}
    method = find_method(config.method.name)
    stages, reads = method.selected(config), method.reads(config)
    state = {"new": "new", "continued": "continued where it stopped", "finished": "finished"}[run.state]
    lines = [f"run      {run.folder}  ({state})"]
    if config.teacher.members and choices.get("teacher") == "none":  # folders, or members on the command line
        choices["teacher"] = "network" if len(config.teacher.members) == 1 else "ensemble"
    for group in PLAN_ORDER:
        choice = choices.get(group)
        if group in reads and choice not in (None, "none"):
            lines.append(f"{group:<8} {choice:<24} {_detail(group, config)}".rstrip())
    lines += [f"{'':<8} {note}" for note in composed.notes]
    lines += _scaling(config, reads, composed.defaults)
    width = max(len(stage.name) for stage in stages)
    for number, stage in enumerate(stages, 1):
        length = "done" if run.is_done(stage.name) else method.length(stage, config)
        text = f"{stage.title} · {length}" if length else stage.title
        lines.append(f"{'stages' if number == 1 else '':<8} {number} {stage.name:<{width}}  {text}")
    rest = "evaluate, benchmark, export, report"
    if config.only is not None:
        rest = f"stop; without only={config.only} the run goes on from there"
    lines.append(f"{'then':<8} {rest}")
    return "\n".join(lines)


def lengths(config: Config) -> str:
    """Lines of the plan on the steps of every recipe, for images of a user's own; the files are listed, not read."""
    from vitlab.data.build import open_splits
    from vitlab.training.schedule import describe_length, duration_steps

    images = len(open_splits(config.dataset, config.seed, config.debug.max_images)["train"])
    lines: list[str] = []
    for key, recipe in recipes_of(config, find_method(config.method.name).reads(config)).items():
        if not (per_epoch := images // recipe.batch_size):
            continue  # refused by the check that follows, with the cure
        limit = config.debug.max_steps
        total = duration_steps(f"{key}.duration", recipe.duration, per_epoch) if limit is None else limit
        plain = recipe.balance != "sampler"
        text = describe_length(total, per_epoch, recipe.batch_size, images if plain else 0)
        lines.append(f"{'' if lines else 'steps':<8} {key}: {text}")
    return "\n".join(lines)


def _scaling(config: Config, reads: set[str], defaults: Mapping[str, object]) -> list[str]:
    """A line for every recipe whose batch size was changed but not its lr; the lr is not scaled automatically."""
    lines = []
    for key, recipe in recipes_of(config, reads).items():
        default = defaults.get(f"{key}.batch_size")
        if isinstance(default, int) and f"{key}.lr" not in defaults:
            lines.append(
                f"{'':<8} {key}.batch_size {recipe.batch_size} instead of {default}; {key}.lr stays {recipe.lr:g} "
                f"(linear scaling gives {recipe.lr * recipe.batch_size / default:g})"
            )
    return lines


def _detail(group: str, config: Config) -> str:
    match group:
        case "dataset":
            dataset = config.dataset
            parts = [f"{size_text(dataset.size)} px" + (f" in {dataset.root}" if dataset.root else "")]
            if dataset.labels_per_class:
                parts.append(f"{dataset.labels_per_class} labels per class")
            if dataset.folds:
                parts.append(f"test fold {dataset.fold} of {dataset.folds}")
            if dataset.split_file:
                parts.append(f"split of {dataset.split_file}")
            stored = getattr(config.method, "store", None) is not None
            if dataset.val_fraction and dataset.name != "folder":
                parts.append(f"{100 * dataset.val_fraction:g} % of train held out for validation")
            elif dataset.val_fraction and stored:
                parts.append(f"{100 * dataset.val_fraction:g} % of each class held out where there is no val split")
            if dataset.val_fraction and stored:
                parts.append("what method.store holds of these images is not read")
            return ", ".join(parts)
        case "model":
            return _network(config.model, None)
        case "teacher":
            sizes = config.teacher.sizes or [None] * len(config.teacher.members)
            return " + ".join(map(_network, config.teacher.members, sizes))
        case "recipe":
            return f"{config.recipe.duration}, {config.recipe.optimizer}, lr {config.recipe.lr:g}"
        case "hardware":
            trainer = config.trainer
            count = known_process_count(config)
            devices = "all GPUs" if count is None else f"{count} device{'s' if count > 1 else ''}"
            return f"{trainer.accelerator}, {devices}, {trainer.precision}"
        case _:
            return ""


def _network(model: ModelConfig, size: Size | None) -> str:
    """The network, where its weights come from, and its size if that is not the data set's."""
    weights = f", weights of {model.checkpoint}" if model.checkpoint else ", pretrained" if model.pretrained else ""
    described = describe_network(model.name, model.args)
    return described + weights + (f", {size_text(size)} px" if size is not None else "")


def check_division(config: Config, processes: int | None) -> None:
    """Refuse a global batch that does not divide into equal micro-batches, of even size with MixUp or CutMix.

    Args:
        processes: per node; None: not known before torch is imported.

    Raises:
        UserError: naming the key and the batch sizes that are possible.
    """
    if processes is None:
        return
    world_size = processes * config.trainer.num_nodes
    for key, recipe in recipes_of(config, find_method(config.method.name).reads(config)).items():
        mixes = recipe.augmentation.mixup > 0 or recipe.augmentation.cutmix > 0
        parts = world_size * recipe.accumulate
        divisor = 2 * parts if mixes else parts
        if recipe.batch_size % divisor:
            pairs = " × pairs that are mixed" if mixes and not recipe.batch_size % parts else ""
            raise UserError(
                f"{key}.batch_size={recipe.batch_size} does not divide into {world_size} device(s) × {key}.accumulate="
                f"{recipe.accumulate}{pairs}.",
                f"Give a multiple of {divisor}; lr is that of the global batch, so scale it likewise.",
            )


def batches(config: Config, processes: int) -> str:
    """The lines of the plan on how the batches of all recipes are divided over the devices."""
    nodes = config.trainer.num_nodes
    prefix = f"{nodes} nodes × " if nodes > 1 else ""
    world_size, lines = nodes * processes, []
    for key, recipe in recipes_of(config, find_method(config.method.name).reads(config)).items():
        accumulated = f" × {recipe.accumulate} accumulated" if recipe.accumulate > 1 else ""
        each = recipe.batch_size // (world_size * recipe.accumulate)
        lines.append(
            f"{key}.batch_size {recipe.batch_size} = {world_size} × {each}{accumulated}, {key}.lr {recipe.lr:g} "
            "(not scaled)"
        )
    sharded = ", sharded weights" if config.trainer.strategy == "fsdp" and world_size > 1 else ""
    first = f"{'devices':<8} {prefix}{processes} process{'es' if processes > 1 else ''}{sharded}"
    return "\n".join([first, *(f"{'':<8} {line}" for line in lines)])
