"""``mode=audit``: what is in a folder of pictures. No torch here."""

from __future__ import annotations

import sys
from pathlib import Path

from vitlab.config import Config
from vitlab.config.composed import Composed
from vitlab.data.audit import Audit, audit, audit_folder, refuse_faults, write_audit
from vitlab.errors import UserError
from vitlab.run.run import Run
from vitlab.training.progress import Progress

MEANING = "what is in a folder of pictures: dataset=folder dataset.root=photos"
READS = ("dataset", "experiment", "audit")

CACHE = "cache.sqlite"
"""What was seen of each file, beside the audit's answers; a second look opens only new and changed files."""


def answer(composed: Composed) -> int:
    """Look at every file of ``dataset=folder`` and print what a training would meet; 2 where it would stop.

    Raises:
        UserError: another data set, or one that cannot be listed.
    """
    config = composed.config
    if config.dataset.name != "folder":
        raise UserError(
            f"mode=audit looks at a folder of your own, and dataset={config.dataset.name} is not one.",
            "Give dataset=folder dataset.root=FOLDER, or dataset=folder dataset.csv=FILE.",
        )
    folder = audit_folder(Path(config.output), config.dataset)
    result = look(config, folder, folder)
    print(result.text())
    print(f"\nwritten  {folder}: {', '.join(sorted(path.name for path in folder.iterdir() if path.name != CACHE))}")
    if result.unreadable or result.empty:
        print(f"without them: dataset.leave_out={folder / 'unreadable.txt'}")
    return 2 if result.faults else 0


def look(config: Config, home: Path, folder: Path) -> Audit:
    """Audit the data set of ``config``, with the cache in ``home``, and write the answers into ``folder``."""
    bar: list[Progress] = []

    def step(done: int, total: int) -> None:
        if not bar:
            bar.append(Progress("audit", total, unit="file"))
        bar[0].update(done)

    home.mkdir(parents=True, exist_ok=True)
    workers = config.hardware.workers or config.hardware.threads
    try:
        result, splits = audit(config.dataset, home / CACHE, workers, step)
    finally:
        for one in bar:
            one.__exit__(None, None, None)
    write_audit(folder, result, splits)
    return result


def before_training(config: Config, run: Run) -> None:
    """The same look before a run with ``dataset=folder`` trains; its answers go into the run, ``audit/``.

    Raises:
        UserError: the data cannot be trained on.
    """
    folder = run.stage_folder("audit")
    _judge(look(config, audit_folder(Path(config.output), config.dataset), folder), folder)


def before_check(config: Config) -> None:
    """The same look before mode=check; its answers go where those of mode=audit lie, as there may be no run yet.

    Raises:
        UserError: the data cannot be trained on.
    """
    folder = audit_folder(Path(config.output), config.dataset)
    _judge(look(config, folder, folder), folder)


def _judge(result: Audit, folder: Path) -> None:
    refuse_faults(result, folder)
    if result.ignored:
        print(f"data     ignored: {result.ignored}", file=sys.stderr)
    for line in result.doubts:
        print(f"data     {line}", file=sys.stderr)
    if result.doubts:
        print(f"data     all of them: {folder / 'audit.json'}", file=sys.stderr)
