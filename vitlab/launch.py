"""From a checked configuration to a run: find it, say what will happen, hand over to a process with torch.

Nothing here imports torch before the plan is on the screen.
"""

from __future__ import annotations

import importlib
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from vitlab.compose import Composed
from vitlab.config import Config
from vitlab.environment import environment
from vitlab.errors import Interrupted, UserError
from vitlab.methods.base import find_method
from vitlab.modes import ALONE, READS
from vitlab.processes import known_count
from vitlab.run import Run


def start(composed: Composed) -> int:
    """Do what ``mode=`` says; the exit code.

    Raises:
        UserError: whatever the user can mend.
        Interrupted: stopped by Ctrl-C or SIGTERM, everything saved.
    """
    config = composed.config
    if config.mode in READS:
        if config.mode in ALONE and (several := known_count(config)) != 1:
            whole = "all GPUs" if several is None else f"{several} devices"
            print(f"devices  one, not {whole}: mode={config.mode} is one process's work", file=sys.stderr)
        answer: Callable[[Composed], int] = importlib.import_module(f"vitlab.modes.{config.mode}").answer
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
        print(plan(run, config, composed.choices))
        print(run.read_finished()["table"])
        print(f"\nThis run is finished: {run.folder}. fresh=true starts it once more.")
        return 0
    run.lock(command)
    try:
        print(plan(run, config, composed.choices), flush=True)
        run.note_environment(environment(command))
        look_at_data(run, config)

        return go(run, config, composed.tree, command)
    finally:
        run.release()


def go(run: Run, config: Config, tree: dict[str, object], command: str) -> int:
    """The work itself: here on one device, in a process for each of several; the exit code."""
    from vitlab.processes import check_division, count, work_together
    from vitlab.training.assemble import recipes_of

    if (processes := count(config)) == 1:
        from vitlab.work import work

        work(run, config, command)
        return 0
    recipes = recipes_of(config, find_method(config.method.name).reads(config))
    check_division(recipes, processes)
    parts = ", ".join(
        f"{key}.batch_size {one.batch_size} = {processes} × {one.batch_size // processes}"
        for key, one in recipes.items()
    )
    print(f"{'devices':<8} {processes} processes on this machine; {parts}", flush=True)
    return work_together(run, config, tree, command, processes)


def find_run(composed: Composed) -> Run:
    """The run that a command means; nothing is written.

    Raises:
        UserError: as :meth:`Run.open`.
    """
    config = composed.config
    prefix = config.name or f"{config.dataset.name}-{composed.choices['model']}"
    return Run.open(
        Path(config.output), config.method.name, prefix, composed.identity(), composed.tree, fresh=config.fresh
    )


def check(run: Run, config: Config, composed: Composed) -> int:
    """mode=check: the plan, a look at a folder of the user's own, then one batch of every stage in a folder that is
    thrown away, sizes and estimates.

    Raises:
        UserError: the data cannot be trained on.
    """
    print(plan(run, config, composed.choices), flush=True)
    if looks_at_data(config):
        from vitlab.modes.audit import before_check

        before_check(config)
    from vitlab.work import rehearse

    with tempfile.TemporaryDirectory(prefix="vitlab-check-") as folder:
        print(rehearse(Path(folder), config))
    return 0


def look_at_data(run: Run, config: Config) -> None:
    """A folder of the user's own is audited before it is trained on.

    Raises:
        UserError: the data cannot be trained on.
    """
    if looks_at_data(config):
        from vitlab.modes.audit import before_training

        before_training(config, run)


def looks_at_data(config: Config) -> bool:
    """Whether the data are a folder of the user's own that some stage reads."""
    folder = config.dataset.name == "folder" and config.audit.before_training
    return folder and "dataset" in find_method(config.method.name).reads(config)


def plan(run: Run, config: Config, choices: dict[str, str | None]) -> str:
    """What will happen, for people: the run and its state, what goes in, the stages and which of them are done."""
    method = find_method(config.method.name)
    stages, reads = method.stages(config), method.reads(config)
    said = {"new": "new", "continued": "continued where it stopped", "finished": "finished"}[run.state]
    lines = [f"run      {run.folder}  ({said})"]
    for group in ("method", "dataset", "model", "teacher", "recipe", "hardware", "experiment", "debug"):
        choice = choices.get(group)
        if group in reads and choice not in (None, "none"):
            lines.append(f"{group:<8} {choice:<24} {_detail(group, config)}".rstrip())
    width = max(len(stage.name) for stage in stages)
    for number, stage in enumerate(stages, 1):
        state = "done" if run.is_done(stage.name) else method.length(stage, config)
        told = f"{stage.title} · {state}" if state else stage.title
        lines.append(f"{'stages' if number == 1 else '':<8} {number} {stage.name:<{width}}  {told}")
    lines.append(f"{'then':<8} evaluate, benchmark, export, report")
    return "\n".join(lines)


def _detail(group: str, config: Config) -> str:
    match group:
        case "dataset":
            few = config.dataset.labels_per_class
            where = f" in {config.dataset.root}" if config.dataset.root else ""
            kept = 0.0 if config.dataset.name == "folder" else config.dataset.val_fraction
            told = [f"{config.dataset.size} px{where}", *([f"{few} labels per class"] if few else [])]
            return ", ".join([*told, *([f"{100 * kept:g} % of train held out for validation"] if kept else [])])
        case "model":
            return config.model.name + (", pretrained" if config.model.pretrained else "")
        case "teacher":
            return " + ".join(member.name for member in config.teacher.members)
        case "recipe":
            return f"{config.recipe.duration}, {config.recipe.optimizer}, lr {config.recipe.lr:g}"
        case "hardware":
            trainer = config.trainer
            number = known_count(config)
            many = "all GPUs" if number is None else f"{number} device{'s' if number > 1 else ''}"
            return f"{trainer.accelerator}, {many}, {trainer.precision}"
        case _:
            return ""


if __name__ == "__main__":
    sys.exit("vitlab.launch is not a command; type python -m vitlab --help")
