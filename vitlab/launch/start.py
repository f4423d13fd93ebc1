"""Dispatch of a checked configuration: a mode, the queue, or a run in this or several processes.

Nothing here imports torch before the plan is printed.
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
    """Run what ``mode=`` selects; the exit code.

    Raises:
        UserError: a mistake that the user can fix.
        Interrupted: stopped by Ctrl-C or SIGTERM, everything saved.
    """
    config = composed.config
    if (mode := find_mode(config.mode, config.method.name)) is not None:
        if mode.one_device and (count := known_process_count(config)) != 1:
            given = "all GPUs" if count is None else f"{count} devices"
            print(f"devices  one, not {given}: mode={config.mode} runs in one process", file=sys.stderr)
        answer: Callable[[Composed], int] = importlib.import_module(mode.module).answer
        try:
            return answer(composed)
        except KeyboardInterrupt:  # a mode that can continue, such as mode=contract, handles the signal itself
            raise Interrupted("Interrupted; no file is left half-written. The same command starts again.") from None
    method = find_method(config.method.name)
    method.check(config)
    method.selected(config)
    if any(word.startswith(("sweep.", "sweep=")) for word in composed.overrides):
        raise UserError(
            "sweep and its keys apply to several runs only.", "Put -m first, and give a key several values."
        )
    command = shlex.join(["python", "-m", "vitlab", *composed.overrides])
    run = find_run(composed)
    if config.mode == "check":
        return check(run, config, composed)
    if run.state == "finished":
        print(plan(run, composed))
        print(run.read_finished()["table"])
        print(f"\nThis run is finished: {run.folder}. fresh=true starts another one beside it.")
        return 0
    check_division(config, known_process_count(config))
    if is_queued(config):
        print(plan(run, composed), flush=True)
        return submit(run, config, composed.overrides, command)
    node = node_info(config)
    if node.count > 1:  # set before torch is imported: it logs every failed attempt to connect to the first node
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if node.is_main:
        return run_as_leader(run, composed, command)
    return join_leader(node, config, composed.tree, command)


def run_as_leader(run: Run, composed: Composed, command: str) -> int:
    """Lock the run and execute it; the exit code. A start that fails leaves no run folder."""
    config = composed.config
    run.lock(command)
    started = False
    try:
        print(plan(run, composed), flush=True)
        run.note_environment(environment(command))
        audit_data(run, config)
        code = run_local_or_distributed(run, config, composed.tree, command)
        started = True
        return code
    except (Interrupted, KeyboardInterrupt):
        started = True
        raise
    finally:
        if not started:
            run.remove_if_empty()
        run.release()


def join_leader(node: NodeInfo, config: Config, tree: dict[str, object], command: str) -> int:
    """On a node other than the first: run its ranks of the run that the first node has locked; the exit code."""
    from vitlab.launch.processes import process_count, run_distributed

    processes = process_count(config)
    print(f"{node.describe()} waits for the first one at {node.host}:{node.port}", file=sys.stderr, flush=True)
    run = Run.at(Rendezvous(node).wait_for_main(tree))
    return run_distributed(run, config, tree, command, processes, node)


def run_local_or_distributed(run: Run, config: Config, tree: dict[str, object], command: str) -> int:
    """Execute the run in this process on one device, else in one process per device; the exit code."""
    from vitlab.launch.processes import process_count, run_distributed

    node = node_info(config)
    if (processes := process_count(config)) * node.count == 1:
        from vitlab.launch.stages import run_method

        run_method(run, config, command)
        return 0
    check_division(config, processes)
    print(batches(config, processes), flush=True)
    return run_distributed(run, config, tree, command, processes, node)


def find_run(composed: Composed) -> Run:
    """The run that a command starts or continues; nothing is written.

    Raises:
        UserError: as :meth:`Run.open`.
    """
    config = composed.config
    prefix = config.name or f"{config.dataset.name}-{composed.network}"
    return Run.open(
        Path(config.output), config.method.name, prefix, composed.identity(), composed.tree, config.fresh, complete
    )


def check(run: Run, config: Config, composed: Composed) -> int:
    """mode=check: the plan, an audit with dataset=folder, then one batch of every stage in a temporary folder, with
    sizes and estimated times.

    Raises:
        UserError: the audit found errors in the data.
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
    """Audit the images of dataset=folder before the training.

    Raises:
        UserError: the audit found errors in the data.
    """
    if audits_data(config):
        from vitlab.modes.audit import before_training

        before_training(config, run)


def audits_data(config: Config) -> bool:
    """Whether dataset=folder is audited before the training: some stage reads it, and audit.before_training is on."""
    folder = config.dataset.name == "folder" and config.audit.before_training
    return folder and "dataset" in find_method(config.method.name).reads(config)


if __name__ == "__main__":
    sys.exit("vitlab.launch.start is not a command; see python -m vitlab --help")
