"""From a checked configuration to a run: find it, say what will happen, hand over to a process with torch.

Nothing here imports torch before the plan is on the screen.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from vitlab.compose.schema import complete
from vitlab.config import Config
from vitlab.config.catalogue import find_mode
from vitlab.config.composed import Composed
from vitlab.errors import Interrupted, UserError
from vitlab.launch.plan import batches, check_division, plan
from vitlab.launch.processes import known_process_count
from vitlab.launch.rendezvous import NodeInfo, Rendezvous, node_info
from vitlab.launch.slurm import is_queued, submit
from vitlab.methods.base import find_method
from vitlab.run.environment import environment
from vitlab.run.run import Run


def start(composed: Composed) -> int:
    """Do what ``mode=`` says; the exit code.

    Raises:
        UserError: whatever the user can mend.
        Interrupted: stopped by Ctrl-C or SIGTERM, everything saved.
    """
    config = composed.config
    if (mode := find_mode(config.mode, config.method.name)) is not None:
        if mode.one_device and (several := known_process_count(config)) != 1:
            given = "all GPUs" if several is None else f"{several} devices"
            print(f"devices  one, not {given}: mode={config.mode} runs in one process", file=sys.stderr)
        answer: Callable[[Composed], int] = importlib.import_module(mode.module).answer
        try:
            return answer(composed)
        except KeyboardInterrupt:  # what continues instead, such as mode=contract, listens for it
            raise Interrupted(
                "Interrupted; every file that was written is whole. The same command starts again."
            ) from None
    method = find_method(config.method.name)
    method.check(config)
    method.selected(config)
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


def find_run(composed: Composed) -> Run:
    """The run that a command means; nothing is written.

    Raises:
        UserError: as :meth:`Run.open`.
    """
    config = composed.config
    prefix = config.name or f"{config.dataset.name}-{composed.network}"
    return Run.open(
        Path(config.output), config.method.name, prefix, composed.identity(), composed.tree, config.fresh, complete
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


if __name__ == "__main__":
    sys.exit("vitlab.launch.start is not a command; type python -m vitlab --help")
