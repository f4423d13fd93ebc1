"""Dispatch of a checked configuration: a mode, the queue, or a run in this or several processes.

:func:`start` does what needs no torch (find the run, lock it, print the plan) and returns the work, for the entry point
to call: a stack trace from the prompt to the loss then passes six files of vitlab.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vitlab.compose.schema import complete
from vitlab.config import Config
from vitlab.config.catalogue import Mode, find_mode
from vitlab.config.composed import Composed
from vitlab.errors import Interrupted, UserError
from vitlab.files import check_folder, read_json, write_json
from vitlab.launch.imports import without_collections
from vitlab.launch.plan import batches, check_division, plan
from vitlab.launch.processes import known_process_count
from vitlab.launch.rendezvous import NodeInfo, Rendezvous, node_info
from vitlab.launch.slurm import is_queued, submit
from vitlab.methods.base import find_method
from vitlab.run.environment import environment
from vitlab.run.repair import lost_files, refuse_lost_models, relocated
from vitlab.run.run import IMAGES, Run

Work = Callable[[], int]
"""What remains to be done; returns the exit code.

Raises:
    UserError: a mistake that the user can fix.
    Interrupted: stopped by Ctrl-C or SIGTERM, everything saved.
"""


def start(composed: Composed) -> Work:
    """Prepare what ``mode=`` selects.

    Raises:
        UserError: a mistake that the user can fix.
    """
    config = composed.config
    from vitlab.data.decode import limit_pixels

    limit_pixels(config.dataset.max_pixels)
    if (mode := find_mode(config.mode, config.method.name)) is not None:
        if mode.one_device and (count := known_process_count(config)) != 1:
            given = "all GPUs" if count is None else f"{count} devices"
            print(f"devices  one, not {given}: mode={config.mode} runs in one process", file=sys.stderr)
        return partial(run_mode, mode, composed)
    method = find_method(config.method.name)
    method.check(config)
    method.selected(config)
    if any(word.startswith(("sweep.", "sweep=")) for word in composed.overrides):
        raise UserError(
            "sweep and its keys apply to several runs only.", "Put -m first, and give a key several values."
        )
    command = shlex.join(["python", "-m", "vitlab", *composed.overrides])
    run = find_run(composed)
    check_folder(run.folder, "output or name")
    if config.mode == "check":
        return partial(check, run, config, composed)
    if run.state == "finished":
        return partial(show_finished, run, composed)
    check_division(config, known_process_count(config))
    if is_queued(config):
        print(plan(run, composed), flush=True)
        return partial(submit, run, config, composed.overrides, command)
    node = node_info(config)
    if node.count > 1:  # set before torch is imported: it logs every failed attempt to connect to the first node
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if node.is_main:
        return prepare_run(run, composed, command)
    return partial(join_leader, node, config, composed.tree, command)


def run_mode(mode: Mode, composed: Composed) -> int:
    """``answer`` of the mode's module; the exit code."""
    with without_collections():
        answer: Callable[[Composed], int] = importlib.import_module(mode.module).answer
    try:
        return answer(composed)
    except KeyboardInterrupt:  # a mode that can continue, such as mode=contract, handles the signal itself
        raise Interrupted("Interrupted; no file is left half-written. The same command starts again.") from None


def show_finished(run: Run, composed: Composed) -> int:
    """Print the plan and the table of a finished run."""
    refuse_lost_models(run.folder)
    print(plan(run, composed))
    record = run.read_finished()
    print(relocated(str(record["table"]), record, run.folder))
    if lost := lost_files(run.folder):
        print(f"\nMissing: {', '.join(lost)}. mode=export run={run.folder} and mode=report write them again.")
    print(f"\nThis run is finished: {run.folder}. fresh=true starts another one beside it.")
    if changed := changed_images(run, composed.config):
        print(
            f"\nThe images have changed since it was trained: {'; '.join(changed)}. fresh=true trains on them as they "
            f"are now; mode=evaluate run={run.folder} measures this model on them."
        )
    return 0


def prepare_run(run: Run, composed: Composed, command: str) -> Work:
    """Lock the run, print the plan, audit the data; the work is one process's on one device, else one process's per
    device. A start that fails leaves no run folder."""
    config = composed.config
    run.lock(command)
    try:
        print(plan(run, composed), flush=True)
        run.note_environment(environment(command))
        refuse_lost_models(run.folder)
        refuse_changed_images(run, config)
        audit_data(run, config)
        note_images(run, config)
        from vitlab.launch.processes import process_count

        processes = process_count(config)
        if processes * config.trainer.num_nodes == 1:
            with without_collections():
                from vitlab.launch.stages import run_method

            return partial(run_method, run, config, command)
        check_division(config, processes)
        print(batches(config, processes), flush=True)
        return partial(run_on_devices, run, config, composed.tree, command, processes)
    except BaseException:
        with run.session():  # ends it; the work, which is not reached, would have opened its own
            raise


def run_on_devices(run: Run, config: Config, tree: dict[str, object], command: str, processes: int) -> int:
    """Execute a locked run in one process per device; the exit code."""
    from vitlab.launch.processes import run_distributed

    with run.session():
        return run_distributed(run, config, tree, command, processes, node_info(config))


def join_leader(node: NodeInfo, config: Config, tree: dict[str, object], command: str) -> int:
    """On a node other than the first: run its ranks of the run that the first node has locked; the exit code."""
    from vitlab.launch.processes import process_count, run_distributed

    processes = process_count(config)
    print(f"{node.describe()} waits for the first one at {node.host}:{node.port}", file=sys.stderr, flush=True)
    run = Run.at(Rendezvous(node).wait_for_main(tree))
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
    refuse_changed_images(run, config)
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


def changed_images(run: Run, config: Config) -> list[str]:
    """What has changed in the images of a folder since the run's first start; [] for runs without a record of them."""
    path = run.folder / IMAGES
    if not reads_folder(config) or not path.is_file():
        return []
    from vitlab.data.content import changes, record

    return changes(read_json(path), record(config.dataset, config.seed))


def refuse_changed_images(run: Run, config: Config) -> None:
    """Do not continue a run on other images than it was started on.

    Raises:
        UserError: naming the changes and the choices.
    """
    if run.state != "new" and (changed := changed_images(run, config)):
        raise UserError(
            f"The images have changed since {run.folder} was started: {'; '.join(changed)}.",
            "Put them back to continue this run, or start another one on them as they are now with fresh=true.",
        )


def note_images(run: Run, config: Config) -> None:
    """Record what the folder of images holds, at the first start of a run."""
    if reads_folder(config) and not (run.folder / IMAGES).exists():
        from vitlab.data.content import record

        write_json(run.folder / IMAGES, record(config.dataset, config.seed))


def reads_folder(config: Config) -> bool:
    """Whether some stage reads images of the user's own, which may change; published sets do not."""
    return config.dataset.name == "folder" and "dataset" in find_method(config.method.name).reads(config)


def audits_data(config: Config) -> bool:
    """Whether dataset=folder is audited before the training: some stage reads it, and audit.before_training is on."""
    return config.audit.before_training and reads_folder(config)


if __name__ == "__main__":
    sys.exit("vitlab.launch.start is not a command; see python -m vitlab --help")
