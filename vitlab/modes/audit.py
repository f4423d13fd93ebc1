"""``mode=audit``: what is in a folder of pictures. No torch here."""

from __future__ import annotations

import sys
from pathlib import Path

from vitlab.config import Config
from vitlab.config.composed import Composed
from vitlab.data.audit import Audit, audit_dataset, audit_folder, inputs_of, keep_together, refuse_faults, write_audit
from vitlab.data.folder_contents import Row
from vitlab.errors import UserError, printable
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
    result, splits = look(config, folder)
    written = write_audit(folder, result, splits, inputs_of(config.dataset))
    print(result.text())
    print(f"\nwritten  {folder}: {', '.join(sorted(path.name for path in written.values()))}")
    if "unreadable" in written:
        print(f"without them: dataset.leave_out={written['unreadable']}")
    if together := keep_together(result, written):
        print(together)
    return 2 if result.faults else 0


def look(config: Config, home: Path) -> tuple[Audit, dict[str, list[Row]]]:
    """Audit the data set of ``config``, with the cache in ``home``: the result, and the rows of every split."""
    bar: list[Progress] = []

    def step(done: int, total: int) -> None:
        if not bar:
            bar.append(Progress("audit", total, unit="file"))
        bar[0].update(done)

    home.mkdir(parents=True, exist_ok=True)
    workers = config.hardware.workers or config.hardware.threads
    try:
        return audit_dataset(config.dataset, home / CACHE, workers, step)
    finally:
        for one in bar:
            one.__exit__(None, None, None)


def before_training(config: Config, run: Run) -> None:
    """Audit before a run with ``dataset=folder`` trains. What is written for the user lies where mode=audit writes, so
    that a refused run leaves no folder; a run that trains keeps a copy in its ``audit/``.

    Raises:
        UserError: the data cannot be trained on.
    """
    result, splits = before_check(config)
    write_audit(run.stage_folder("audit"), result, splits, inputs_of(config.dataset))


def before_check(config: Config) -> tuple[Audit, dict[str, list[Row]]]:
    """Audit before mode=check or a training; prints what is doubtful.

    Raises:
        UserError: the data cannot be trained on.
    """
    folder = audit_folder(Path(config.output), config.dataset)
    result, splits = look(config, folder)
    written = write_audit(folder, result, splits, inputs_of(config.dataset))
    refuse_faults(result, written.get("unreadable"))
    if result.ignored:
        print(printable(f"data     ignored: {result.ignored}"), file=sys.stderr)
    if result.not_read:
        print(f"data     in part: {result.not_read}", file=sys.stderr)
    for line in result.doubts:
        print(printable(f"data     {line}"), file=sys.stderr)
    if result.doubts:
        listed = [str(written[kind]) for kind in ("duplicates", "audit") if kind in written]
        print(f"data     all of them: {' and '.join(listed)}", file=sys.stderr)
    if together := keep_together(result, written):
        print(f"data     {together}", file=sys.stderr)
    return result, splits
