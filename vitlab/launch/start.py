"""From a checked configuration to a run: find it, say what will happen, hand over to a process with torch.

Nothing here imports torch before the plan is on the screen.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from vitlab.compose.load import Composed
from vitlab.config import Config
from vitlab.config.size import size_text
from vitlab.errors import Interrupted, UserError
from vitlab.launch.processes import known_process_count
from vitlab.launch.rendezvous import NodeInfo, Rendezvous, node_info
from vitlab.launch.slurm import is_queued, submit
from vitlab.methods.base import find_method
from vitlab.modes import ALONE, READS, find_mode
from vitlab.run.environment import environment
from vitlab.run.run import Run
from vitlab.stage import recipes_of


def start(composed: Composed) -> int:
    """Do what ``mode=`` says; the exit code.

    Raises:
        UserError: whatever the user can mend.
        Interrupted: stopped by Ctrl-C or SIGTERM, everything saved.
    """
    config = composed.config
    if config.mode in READS:
        if config.mode in ALONE and (several := known_process_count(config)) != 1:
            whole = "all GPUs" if several is None else f"{several} devices"
            print(f"devices  one, not {whole}: mode={config.mode} is one process's work", file=sys.stderr)
        answer: Callable[[Composed], int] = find_mode(config.mode).answer
        try:
            return answer(composed)
        except KeyboardInterrupt:  # what continues instead, such as mode=contract, listens for it
            raise Interrupted(
                "Interrupted; every file that was written is whole. The same command starts again."
            ) from None
    method = find_method(config.method.name)
    method.check(config)
    if any(word.startswith(("sweep.", "sweep=")) for word in composed.overrides):
        raise UserError("sweep and its keys belong to several runs.", "Put -m first, and give a key several values.")
    command = shlex.join(["python", "-m", "vitlab", *composed.overrides])
    run = find_run(composed)
    if config.mode == "check":
        return check(run, config, composed)
    if run.state == "finished":
        print(plan(run, composed))
        print(run.read_finished()["table"])
        print(f"\nThis run is finished: {run.folder}. fresh=true starts it once more.")
        return 0
    check_division(config, known_process_count(config))
    if is_queued(config):
        print(plan(run, composed), flush=True)
        return submit(run, config, composed.overrides, command)
    here = node_info(config)
    if here.count > 1:  # read when torch is loaded: meeting takes many tries, each of which it would tell
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if here.is_main:
        return run_as_leader(run, composed, command)
    return join_leader(here, config, composed.tree, command)


def run_as_leader(run: Run, composed: Composed, command: str) -> int:
    """Hold the run and do its work; the exit code. A start that fails leaves no run behind."""
    config = composed.config
    run.lock(command)
    begun = False
    try:
        print(plan(run, composed), flush=True)
        run.note_environment(environment(command))
        audit_data(run, config)
        code = run_local_or_distributed(run, config, composed.tree, command)
        begun = True
        return code
    except (Interrupted, KeyboardInterrupt):
        begun = True
        raise
    finally:
        if not begun:
            run.forget_if_empty()
        run.release()


def join_leader(here: NodeInfo, config: Config, tree: dict[str, object], command: str) -> int:
    """Another machine than the first: do its share of the run that the first one holds; the exit code."""
    from vitlab.launch.processes import process_count, run_distributed

    processes = process_count(config)
    print(f"{here.told(here.number)} waits for the first one at {here.host}:{here.port}", file=sys.stderr, flush=True)
    run = Run.at(Rendezvous(here).meet(tree))
    return run_distributed(run, config, tree, command, processes, here)


def run_local_or_distributed(run: Run, config: Config, tree: dict[str, object], command: str) -> int:
    """The work itself: here on one device, in a process for each of several; the exit code."""
    from vitlab.launch.processes import process_count, run_distributed

    here = node_info(config)
    if (processes := process_count(config)) * here.count == 1:
        from vitlab.launch.stages import run_method

        run_method(run, config, command)
        return 0
    check_division(config, processes)
    print(batches(config, processes), flush=True)
    return run_distributed(run, config, tree, command, processes, here)


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


def find_run(composed: Composed) -> Run:
    """The run that a command means; nothing is written.

    Raises:
        UserError: as :meth:`Run.open`.
    """
    config = composed.config
    prefix = config.name or f"{config.dataset.name}-{composed.network}"
    return Run.open(
        Path(config.output), config.method.name, prefix, composed.identity(), composed.tree, fresh=config.fresh
    )


def check(run: Run, config: Config, composed: Composed) -> int:
    """mode=check: the plan, a look at a folder of the user's own, then one batch of every stage in a folder that is
    thrown away, sizes and estimates.

    Raises:
        UserError: the data cannot be trained on.
    """
    print(plan(run, composed), flush=True)
    check_division(config, known_process_count(config))
    if audits_data(config):
        from vitlab.modes.audit import before_check

        before_check(config)
    from vitlab.launch.stages import rehearse

    with tempfile.TemporaryDirectory(prefix="vitlab-check-") as folder:
        print(rehearse(Path(folder), config))
    return 0


def audit_data(run: Run, config: Config) -> None:
    """A folder of the user's own is audited before it is trained on.

    Raises:
        UserError: the data cannot be trained on.
    """
    if audits_data(config):
        from vitlab.modes.audit import before_training

        before_training(config, run)


def audits_data(config: Config) -> bool:
    """Whether the data are a folder of the user's own that some stage reads."""
    folder = config.dataset.name == "folder" and config.audit.before_training
    return folder and "dataset" in find_method(config.method.name).reads(config)


def plan(run: Run, composed: Composed) -> str:
    """What will happen, for people: the run and its state, what goes in, the stages and which of them are done."""
    config, choices = composed.config, composed.choices | {"model": composed.network}
    method = find_method(config.method.name)
    stages, reads = method.stages(config), method.reads(config)
    said = {"new": "new", "continued": "continued where it stopped", "finished": "finished"}[run.state]
    lines = [f"run      {run.folder}  ({said})"]
    for group in ("method", "dataset", "model", "teacher", "recipe", "hardware", "experiment", "debug"):
        choice = choices.get(group)
        if group in reads and choice not in (None, "none"):
            lines.append(f"{group:<8} {choice:<24} {_detail(group, config)}".rstrip())
    lines += _scaling(config, reads, composed.usual)
    width = max(len(stage.name) for stage in stages)
    for number, stage in enumerate(stages, 1):
        state = "done" if run.is_done(stage.name) else method.length(stage, config)
        told = f"{stage.title} · {state}" if state else stage.title
        lines.append(f"{'stages' if number == 1 else '':<8} {number} {stage.name:<{width}}  {told}")
    lines.append(f"{'then':<8} evaluate, benchmark, export, report")
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


if __name__ == "__main__":
    sys.exit("vitlab.launch.start is not a command; type python -m vitlab --help")
