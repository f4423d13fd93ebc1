"""The folder of a run: identity, lock, markers of finished stages, records.

``outputs/<method>/<prefix>-<hash>/`` contains all files of a run::

    run.json            identity, full configuration, time of creation; written once, after config.yaml
    config.yaml         the same configuration, to be read by people
    lock                flock-ed by the process that writes here; contains its id, host and start
    commands.jsonl      one line per start: time, command
    images.json         dataset=folder: number of images and a hash of their names, labels and sizes, by split
    environment.jsonl   one line per start: versions, commit, machine
    metrics.jsonl       see vitlab.run.recorder
    <stage>/            the artifact of the stage; done.json in it marks the stage as finished
    finished.json       marks the run as finished

No torch here: the command line reads a run's state before torch is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vitlab.errors import DamagedError, Interrupted, StoppedAtOnce, UserError
from vitlab.files import atomic_write, read_json, write_json
from vitlab.locks import release
from vitlab.run.environment import now
from vitlab.run.folder_lock import acquire_folder
from vitlab.run.identity import (
    FORMAT,
    as_json,
    canonical,
    differences,
    list_changes,
    read_record,
    record_damage,
    runs_of,
    siblings_of,
    stored_tree,
    tree_in,
)
from vitlab.run.recorder import Recorder, append_line, drop_half_line
from vitlab.run.repair import aside, first_start, read_marker, repair_records

IMAGES = "images.json"
"""What the folder of images held at the first start (vitlab.data.content.record)."""

Complete = Callable[[Mapping[str, object]], dict[str, object]]
"""Function that completes a stored configuration with the defaults of keys added since."""


class Run:
    """One run's folder. :meth:`open` finds it without writing, :meth:`lock` locks it for this process.

    Attributes:
        folder: ``outputs/<method>/<name>``.
        name: the folder's name.
        state: "new" | "continued" | "finished", at the time of :meth:`open`, updated by :meth:`lock`.
    """

    def __init__(self, folder: Path, record: dict[str, object]) -> None:
        self.folder = folder
        self.name = folder.name
        self.state = _state(folder)
        self._record = record
        self._lock: int | None = None

    @classmethod
    def open(
        cls,
        output: Path,
        method: str,
        prefix: str,
        identity: Mapping[str, object],
        tree: Mapping[str, object],
        fresh: bool = False,
        complete: Complete = dict,
        former: str | None = None,
    ) -> Run:
        """Find the run of this configuration. Nothing is written, so that the plan can be printed first.

        Args:
            output: folder of the runs, e.g. ``outputs``.
            method: name of the method, a folder below ``output``.
            prefix: readable part of the name, e.g. ``digits-tiny_vit_digits``.
            identity: the choices and changed values that can change the result; JSON-able.
            tree: the full resolved configuration; JSON-able.
            fresh: a new numbered sibling of the runs with this identity instead of the newest of them.
            complete: completes a stored configuration, so that a key added since counts as its default
                (vitlab.compose.schema.complete; an argument, because it imports the methods).
            former: the prefix that an earlier version gave to this run; one that has it is continued.

        The newest sibling of the same identity is continued if its configuration equals ``tree`` in all keys outside
        ``RESULT_FREE``; otherwise any run of this method and prefix whose configuration does, so that a run started
        under other defaults is found again by giving those values on the command line.

        Raises:
            UserError: defaults have changed since the run was started (each key, old → new); the prefix is not a
                valid file name; a folder of the same name is not a run.
        """
        if not re.fullmatch(r"\w[\w.+-]*", prefix):
            raise UserError(f"name={prefix} cannot name a folder.", "Use letters, digits, '-', '_', '+' and '.' only.")
        identity, tree = as_json(identity), as_json(tree)
        stem = f"{prefix}-{hashlib.sha256(canonical(identity).encode()).hexdigest()[:8]}"
        record = {"format": FORMAT, "method": method, "prefix": prefix, "identity": identity, "tree": tree}
        home = output / method
        siblings = siblings_of(home, stem)
        before = stem.replace(prefix, former, 1) if former is not None else stem

        def changed(folder: Path) -> dict[str, tuple[str, str]]:
            stored = stored_tree(folder)
            if stored is None:
                raise UserError(
                    f"{folder / 'run.json'} and config.yaml beside it cannot be read, so it is not known which run "
                    "this is.",
                    "Restore one of them from a copy, or start another run beside it with fresh=true.",
                )
            return differences(complete(stored), complete(tree))

        if not fresh:
            if siblings and not changed(siblings[-1][1]):
                return cls(siblings[-1][1], record)
            for folder in reversed([*(runs_of(home, former) if former is not None else []), *runs_of(home, prefix)]):
                if not changed(folder):
                    return cls(folder, record)
            siblings = siblings or siblings_of(home, before)
        if fresh or not siblings:
            number = siblings[-1][0] + 1 if siblings else 1
            folder = home / (stem if number == 1 else f"{stem}-{number}")
            _refuse_foreign(folder)
            return cls(folder, record)
        newest = siblings[-1][1]
        raise UserError(
            f"The defaults have changed since {newest} was started: {list_changes(changed(newest))}.",
            "Start a new run under the new defaults with fresh=true, or continue this one by giving its values.",
        )

    @classmethod
    def at(cls, folder: Path, complete: Complete = dict) -> Run:
        """The run in an existing folder: for ranks started by the process that holds the lock, and for readers.

        Args:
            complete: as in :meth:`open`, for readers of runs of older versions.

        Raises:
            UserError: ``folder`` is not a run.
        """
        if not (folder / "run.json").exists():
            raise UserError(f"{folder} is not a run: it has no run.json.", "Give a folder below outputs/<method>/.")
        record = read_record(folder)
        return cls(folder, {**record, "tree": complete(tree_in(record))})

    @property
    def tree(self) -> dict[str, object]:
        """The resolved configuration: that of the command after :meth:`open`, that of ``run.json`` after :meth:`at`."""
        tree = self._record["tree"]
        assert isinstance(tree, dict)
        return tree

    @property
    def identity(self) -> dict[str, object]:
        """The choices and changed values that can change the results; the hash in the run's name is theirs."""
        identity = self._record["identity"]
        assert isinstance(identity, dict)
        return identity

    @property
    def created(self) -> str:
        """Time of the first start, ISO 8601."""
        return str(read_json(self.folder / "run.json")["created"])

    # -- lock ---------------------------------------------------------------------------------------------------

    def lock(self, command: str) -> None:
        """Lock the folder until this process ends or calls :meth:`release`; the first start creates it.

        Temporary files of a killed process are removed, ``command`` is appended to ``commands.jsonl``, and ``state``
        is updated, since another process may have written here between open and lock.

        Raises:
            UserError: another process holds the lock (its id, host and start are given).
        """
        if self._lock is not None:
            raise RuntimeError(f"{self.folder} is already locked by this Run")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = acquire_folder(self.folder / "lock", self.folder)
        remove_temporary_files(self.folder)
        for name in ("metrics.jsonl", "commands.jsonl", "environment.jsonl"):
            drop_half_line(self.folder / name)  # before half a line of a killed process is taken for damage
        for line in repair_records(self.folder):
            print(f"repaired {line}", file=sys.stderr)
        self.state = _state(self.folder)
        if self.state != "new" and (why := record_damage(self.folder)):  # config.yaml was read instead
            aside(self.folder / "run.json")
            write_json(self.folder / "run.json", {**self._record, "created": first_start(self.folder) or now()})
            print(
                f"repaired {self.folder / 'run.json'} was damaged ({why}); made again from config.yaml", file=sys.stderr
            )
        if self.state == "new":
            atomic_write(self.folder / "config.yaml", _yaml(self.tree))
            write_json(self.folder / "run.json", {**self._record, "created": now()})
        append_line(self.folder / "commands.jsonl", {"time": now(), "command": command})

    def release(self) -> None:
        """Release the lock before the process ends (the end of the process releases it, too)."""
        if self._lock is not None:
            release(self._lock)
            self._lock = None

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Release the lock at the end; a locked run that fails before its first result leaves no folder."""
        try:
            yield
        except (Interrupted, StoppedAtOnce, KeyboardInterrupt):
            raise
        except BaseException:
            self.remove_if_empty()
            raise
        finally:
            self.release()

    def remove_if_empty(self, except_for: Path | None = None) -> None:
        """Remove the folder of a run that did not start: it has the files of a start, its audit, and ``except_for``,
        only."""
        start_files = {
            "lock",
            "config.yaml",
            "run.json",
            "commands.jsonl",
            "environment.jsonl",
            "metrics.jsonl",
            "launch.json",
            IMAGES,
        }
        files = [path for path in self.folder.rglob("*") if path.is_file() and except_for not in path.parents]
        for path in files:
            if path.parent == self.folder / "audit":
                continue
            if path.name not in start_files or (path.name == "metrics.jsonl" and path.stat().st_size):
                return
        shutil.rmtree(self.folder)
        with contextlib.suppress(OSError):  # it has other runs
            self.folder.parent.rmdir()

    # -- stages -------------------------------------------------------------------------------------------------

    def stage_folder(self, stage: str) -> Path:
        """The folder of ``stage``, created if it does not exist."""
        folder = self.folder / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_done(self, stage: str) -> bool:
        """Whether ``stage`` is finished; a finished stage is not run again."""
        return (self.folder / stage / "done.json").exists()

    def read_done(self, stage: str) -> dict[str, object]:
        """The record given to :meth:`mark_done`, with the time.

        Raises:
            RuntimeError: the stage is not done.
        """
        if not self.is_done(stage):
            raise RuntimeError(f"stage '{stage}' of {self.folder} is not done")
        record: dict[str, object] = read_marker(self.folder / stage / "done.json")
        return record

    def mark_done(self, stage: str, record: Mapping[str, object]) -> None:
        """Mark ``stage`` as finished, its last write. ``record``: seconds, sizes, fingerprint; JSON-able."""
        write_json(self.stage_folder(stage) / "done.json", {"stage": stage, "time": now(), **record})

    def finish(self, record: Mapping[str, object]) -> None:
        """Mark the run as finished, its last write. ``record``: the final table; JSON-able."""
        write_json(self.folder / "finished.json", {"time": now(), "folder": str(self.folder), **record})
        self.state = "finished"

    def read_finished(self) -> dict[str, object]:
        """The record given to :meth:`finish`, with the time.

        Raises:
            RuntimeError: the run is not finished.
        """
        if not (self.folder / "finished.json").exists():
            raise RuntimeError(f"{self.folder} is not finished")
        record: dict[str, object] = read_marker(self.folder / "finished.json")
        return record

    # -- records ------------------------------------------------------------------------------------------------

    def recorder(self) -> Recorder:
        """A writer of ``metrics.jsonl``, for the process that holds the lock."""
        return Recorder(self.folder / "metrics.jsonl")

    def note_environment(self, record: Mapping[str, object]) -> None:
        """Append the record of this start (vitlab.run.environment.environment)."""
        append_line(self.folder / "environment.jsonl", record)


def model_folder(path: Path) -> Path:
    """The model folder of ``path``: of a run the folder of its result; any other path is returned unchanged.

    Raises:
        UserError: a run that is not evaluated yet, so that its result is not known.
    """
    if not (path / "run.json").is_file():
        return path
    done = path / "evaluation" / "done.json"
    result = read_marker(done)["result"] if done.exists() else None
    if result is None or not (path / result / "model.json").is_file():
        raise UserError(
            f"{path} is a run that has no result yet.",
            "Finish it (the same command continues it), or give one of its models: RUN/STAGE.",
        )
    folder: Path = path / str(result)
    return folder


def remove_temporary_files(folder: Path) -> int:
    """Remove the temporary files of a killed vitlab.files.atomic_write below ``folder``; returns how many."""
    stale = [path for path in folder.rglob(".*.tmp") if re.fullmatch(r"\..+\.\d+\.tmp", path.name) and path.is_file()]
    for path in stale:
        path.unlink()
    return len(stale)


def _state(folder: Path) -> str:
    if not (folder / "run.json").exists():
        return "new"
    try:
        read_marker(folder / "finished.json")
    except (FileNotFoundError, DamagedError):  # a damaged marker is written again by the same command
        return "continued"
    return "finished"


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder without run.json that contains more than the files of a start that was killed."""
    if not folder.exists():
        return
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in ("lock", "config.yaml"))
    foreign = [name for name in foreign if not name.endswith(".tmp")]
    if foreign:
        raise UserError(f"{folder} is not a run but contains {foreign[0]}.", "Move it away, or choose another name=.")


def _yaml(tree: Mapping[str, object]) -> str:
    from omegaconf import OmegaConf  # only the first start of a run needs it

    return OmegaConf.to_yaml(OmegaConf.create(dict(tree)))
