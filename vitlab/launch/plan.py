"""What a command will do, in words, before anything heavy is imported; and whether its batches divide."""

from __future__ import annotations

from collections.abc import Mapping

from vitlab.config import Config
from vitlab.config.catalogue import PLAN_ORDER
from vitlab.config.composed import Composed
from vitlab.config.size import size_text
from vitlab.errors import UserError
from vitlab.launch.processes import known_process_count
from vitlab.methods.base import find_method
from vitlab.run.run import Run
from vitlab.stage import recipes_of


def plan(run: Run, composed: Composed) -> str:
    """What will happen, for people: the run and its state, what goes in, the stages and which of them are done."""
    config, choices = composed.config, composed.choices | {"model": composed.network}
    method = find_method(config.method.name)
    stages, reads = method.selected(config), method.reads(config)
    said = {"new": "new", "continued": "continued where it stopped", "finished": "finished"}[run.state]
    lines = [f"run      {run.folder}  ({said})"]
    for group in PLAN_ORDER:
        choice = choices.get(group)
        if group in reads and choice not in (None, "none"):
            lines.append(f"{group:<8} {choice:<24} {_detail(group, config)}".rstrip())
    lines += _scaling(config, reads, composed.usual)
    width = max(len(stage.name) for stage in stages)
    for number, stage in enumerate(stages, 1):
        state = "done" if run.is_done(stage.name) else method.length(stage, config)
        told = f"{stage.title} · {state}" if state else stage.title
        lines.append(f"{'stages' if number == 1 else '':<8} {number} {stage.name:<{width}}  {told}")
    rest = "evaluate, benchmark, export, report"
    if config.only is not None:
        rest = f"stop; without only={config.only} the run goes on from there"
    lines.append(f"{'then':<8} {rest}")
    return "\n".join(lines)


def _scaling(config: Config, reads: set[str], usual: Mapping[str, object]) -> list[str]:
    """A word on every learning rate that was chosen for another batch; nothing is scaled by itself."""
    lines = []
    for key, one in recipes_of(config, reads).items():
        before = usual.get(f"{key}.batch_size")
        if isinstance(before, int) and f"{key}.lr" not in usual:
            lines.append(
                f"{'':<8} {key}.batch_size {one.batch_size} instead of {before}; {key}.lr stays {one.lr:g} (in "
                f"proportion {one.lr * one.batch_size / before:g})"
            )
    return lines


def _detail(group: str, config: Config) -> str:
    match group:
        case "dataset":
            few = config.dataset.labels_per_class
            where = f" in {config.dataset.root}" if config.dataset.root else ""
            kept = 0.0 if config.dataset.name == "folder" else config.dataset.val_fraction
            told = [f"{size_text(config.dataset.size)} px{where}", *([f"{few} labels per class"] if few else [])]
            told += [f"fold {config.dataset.fold} of {config.dataset.folds} is tested"] if config.dataset.folds else []
            told += [f"split as {config.dataset.split_file} has it"] if config.dataset.split_file else []
            return ", ".join([*told, *([f"{100 * kept:g} % of train held out for validation"] if kept else [])])
        case "model":
            return config.model.name + (", pretrained" if config.model.pretrained else "")
        case "teacher":
            return " + ".join(member.name for member in config.teacher.members)
        case "recipe":
            return f"{config.recipe.duration}, {config.recipe.optimizer}, lr {config.recipe.lr:g}"
        case "hardware":
            trainer = config.trainer
            number = known_process_count(config)
            many = "all GPUs" if number is None else f"{number} device{'s' if number > 1 else ''}"
            return f"{trainer.accelerator}, {many}, {trainer.precision}"
        case _:
            return ""


def check_division(config: Config, processes: int | None) -> None:
    """Refuse a global batch that does not divide into equal parts, or into whole pairs where views are mixed.

    Args:
        processes: of each machine; None: not known before torch is asked.

    Raises:
        UserError: naming the key and the batches that would do.
    """
    if processes is None:
        return
    several = processes * config.trainer.num_nodes
    for key, recipe in recipes_of(config, find_method(config.method.name).reads(config)).items():
        mixes = recipe.augmentation.mixup > 0 or recipe.augmentation.cutmix > 0
        parts = several * recipe.accumulate
        whole = 2 * parts if mixes else parts
        if recipe.batch_size % whole:
            pairs = " × pairs that are mixed" if mixes and not recipe.batch_size % parts else ""
            raise UserError(
                f"{key}.batch_size={recipe.batch_size} does not divide into {several} device(s) × {key}.accumulate="
                f"{recipe.accumulate}{pairs}.",
                f"Take a multiple of {whole}; lr is meant for the whole batch, so scale it likewise.",
            )


def batches(config: Config, processes: int) -> str:
    """The lines of the plan that say how the batches of all recipes lie on the devices."""
    nodes = config.trainer.num_nodes
    machines = f"{nodes} machines × " if nodes > 1 else ""
    several, lines = nodes * processes, []
    for key, one in recipes_of(config, find_method(config.method.name).reads(config)).items():
        accumulated = f" × {one.accumulate} accumulated" if one.accumulate > 1 else ""
        each = one.batch_size // (several * one.accumulate)
        lines.append(
            f"{key}.batch_size {one.batch_size} = {several} × {each}{accumulated}, {key}.lr {one.lr:g} as it is"
        )
    shared = ", weights shared out" if config.trainer.strategy == "fsdp" and several > 1 else ""
    head = f"{'devices':<8} {machines}{processes} process{'es' if processes > 1 else ''}{shared}"
    return "\n".join([head, *(f"{'':<8} {line}" for line in lines)])
