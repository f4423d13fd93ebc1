"""A run is a folder with a life: identity, lock, stage markers, records.

``outputs/<method>/<prefix>-<hash>/`` holds everything a run needs and makes::

    run.json            identity, whole configuration, time of birth; written once, last of the birth
    config.yaml         the same configuration for people
    lock                flock-ed by the process that works here; says who it is
    commands.jsonl      one line a start: time, command
    environment.jsonl   one line a start: versions, commit, machine
    metrics.jsonl       see vitlab.run.recorder
    <stage>/            what the stage makes; done.json in it says that the stage is finished
    finished.json       the run is finished

No torch here: the command line asks for a run's state before anything heavy is imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vitlab.config.catalogue import RESULT_FREE, RESULT_FREE_KEYS
from vitlab.errors import UserError
from vitlab.files import atomic_write, read_json, write_json
from vitlab.locks import acquire, release
from vitlab.run.environment import now
from vitlab.run.recorder import Recorder, append_line, drop_half_line

FORMAT = 1
"""Version of the folder's layout."""

Complete = Callable[[Mapping[str, object]], dict[str, object]]
"""A stored configuration as today's schema writes it."""

_SHOWN = 12  # changed keys that an error message lists before it counts the rest


class Run:
    """One run's folder. :meth:`open` finds it without touching the disk, :meth:`lock` makes it this process's own.

    Attributes:
        folder: ``outputs/<method>/<name>``.
        name: the folder's name.
        state: "new" | "continued" | "finished", as things stood when the run was opened (and again when locked).
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
    ) -> Run:
        """Find the run that this configuration means. Nothing is written, so that a plan can be shown first.

        Args:
            output: where runs live, e.g. ``outputs``.
            method: name of the method, the folder below it.
            prefix: readable part of the name, e.g. ``digits-tiny_vit_digits``.
            identity: what the user chose and changed of what can change the result; JSON-able.
            tree: the whole resolved configuration; JSON-able.
            fresh: a new numbered sibling of the runs with this identity instead of the newest of them.
            complete: a stored configuration as today's schema writes it, so that a key which came later counts as its
                default (vitlab.compose.schema.complete; passed in, since what completes it knows the methods).

        The newest sibling of the same identity is continued if its configuration is today's in all but
        :data:`RESULT_FREE`; otherwise any run of this method and prefix whose configuration is, so that a run
        started under other defaults is found again by giving those values at the prompt.

        Raises:
            UserError: defaults have changed since the run was started (each key, old → new); a prefix that is no
                file name; a folder of the same name that is no run.
        """
        if not re.fullmatch(r"\w[\w.+-]*", prefix):
            raise UserError(f"name={prefix} cannot name a folder.", "Use letters, digits, '-', '_', '+' and '.' only.")
        identity, tree = _as_json(identity), _as_json(tree)
        stem = f"{prefix}-{hashlib.sha256(_canonical(identity).encode()).hexdigest()[:8]}"
        record = {"format": FORMAT, "method": method, "prefix": prefix, "identity": identity, "tree": tree}
        home = output / method
        siblings = _siblings(home, stem)

        def changed(folder: Path) -> dict[str, tuple[str, str]]:
            return differences(complete(_tree_of(folder)), complete(tree))

        if not fresh:
            if siblings and not changed(siblings[-1][1]):
                return cls(siblings[-1][1], record)
            for folder in reversed(_runs_of(home, prefix)):
                if not changed(folder):
                    return cls(folder, record)
        if fresh or not siblings:
            number = siblings[-1][0] + 1 if siblings else 1
            folder = home / (stem if number == 1 else f"{stem}-{number}")
            _refuse_foreign(folder)
            return cls(folder, record)
        newest = siblings[-1][1]
        raise UserError(
            f"The defaults have changed since {newest} was started: {_listed(changed(newest))}.",
            "Start again under today's with fresh=true, or continue the old run by giving the old values.",
        )

    @classmethod
    def at(cls, folder: Path, complete: Complete = dict) -> Run:
        """The run in an existing folder: for ranks started by the process that holds the lock, and for readers.

        Args:
            complete: as in :meth:`open`, for readers of what an older version made.

        Raises:
            UserError: ``folder`` is no run.
        """
        if not (folder / "run.json").exists():
            raise UserError(f"{folder} is not a run: it has no run.json.", "Give a folder below outputs/<method>/.")
        record = _read_record(folder)
        return cls(folder, {**record, "tree": complete(_tree_in(record))})

    @property
    def tree(self) -> dict[str, object]:
        """The resolved configuration: of the command that opened the run, or the stored one after :meth:`at`,
        completed there."""
        tree = self._record["tree"]
        assert isinstance(tree, dict)
        return tree

    @property
    def identity(self) -> dict[str, object]:
        """What names the run: the choices and the changed leaves that can change its results."""
        identity = self._record["identity"]
        assert isinstance(identity, dict)
        return identity

    @property
    def created(self) -> str:
        """When the run was started first, ISO 8601."""
        return str(read_json(self.folder / "run.json")["created"])

    # -- lock ---------------------------------------------------------------------------------------------------

    def lock(self, command: str) -> None:
        """Own the folder until this process ends in whatever way; on the first start, make it.

        Half-written files of a killed predecessor are removed, ``command`` is noted in ``commands.jsonl``, and
        ``state`` is looked at again, since another process may have worked here between open and lock.

        Raises:
            UserError: another process works here (its id, host and start are named).
        """
        if self._lock is not None:
            raise RuntimeError(f"{self.folder} is locked already by this Run")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _acquire(self.folder / "lock", self.folder)
        remove_temporary_files(self.folder)
        drop_half_line(self.folder / "metrics.jsonl")
        self.state = _state(self.folder)
        if self.state == "new":
            atomic_write(self.folder / "config.yaml", _yaml(self.tree))
            write_json(self.folder / "run.json", {**self._record, "created": now()})
        append_line(self.folder / "commands.jsonl", {"time": now(), "command": command})

    def release(self) -> None:
        """Give the folder up before the process ends (it is given up then in any case)."""
        if self._lock is not None:
            release(self._lock)
            self._lock = None

    def forget_if_empty(self, beside: Path | None = None) -> None:
        """Remove the folder of a run that never began: it holds how it was started, ``beside``, no more."""
        born = {
            "lock",
            "config.yaml",
            "run.json",
            "commands.jsonl",
            "environment.jsonl",
            "metrics.jsonl",
            "launch.json",
        }
        files = [path for path in self.folder.rglob("*") if path.is_file() and beside not in path.parents]
        if any(path.name not in born or (path.name == "metrics.jsonl" and path.stat().st_size) for path in files):
            return
        shutil.rmtree(self.folder)
        with contextlib.suppress(OSError):  # other runs are there
            self.folder.parent.rmdir()

    # -- stages -------------------------------------------------------------------------------------------------

    def stage_folder(self, stage: str) -> Path:
        """The folder of ``stage``, made if need be."""
        folder = self.folder / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_done(self, stage: str) -> bool:
        """Whether ``stage`` was finished; a finished stage is never done again."""
        return (self.folder / stage / "done.json").exists()

    def read_done(self, stage: str) -> dict[str, object]:
        """What :meth:`mark_done` was told, and the time.

        Raises:
            RuntimeError: the stage is not done.
        """
        if not self.is_done(stage):
            raise RuntimeError(f"stage '{stage}' of {self.folder} is not done")
        record = read_json(self.folder / stage / "done.json")
        assert isinstance(record, dict)
        return record

    def mark_done(self, stage: str, record: Mapping[str, object]) -> None:
        """The last write of a stage. ``record``: seconds, the artifact's fingerprint, whatever the plan shows."""
        write_json(self.stage_folder(stage) / "done.json", {"stage": stage, "time": now(), **record})

    def finish(self, record: Mapping[str, object]) -> None:
        """The last write of a run. ``record``: what the closing table is made of; JSON-able."""
        write_json(self.folder / "finished.json", {"time": now(), **record})
        self.state = "finished"

    def read_finished(self) -> dict[str, object]:
        """What :meth:`finish` was told, and the time.

        Raises:
            RuntimeError: the run is not finished.
        """
        if not (self.folder / "finished.json").exists():
            raise RuntimeError(f"{self.folder} is not finished")
        record = read_json(self.folder / "finished.json")
        assert isinstance(record, dict)
        return record

    # -- records ------------------------------------------------------------------------------------------------

    def recorder(self) -> Recorder:
        """A writer of ``metrics.jsonl``, for the process that holds the lock."""
        return Recorder(self.folder / "metrics.jsonl")

    def note_environment(self, record: Mapping[str, object]) -> None:
        """Append the record of this start (vitlab.run.environment.environment, and its devices)."""
        append_line(self.folder / "environment.jsonl", record)


def model_folder(path: Path) -> Path:
    """The model folder that ``path`` names: a run means the model that it is about; anything else is left as it is.

    Raises:
        UserError: a run whose models were not measured yet, so that its result is not known.
    """
    if not (path / "run.json").is_file():
        return path
    done = path / "evaluation" / "done.json"
    result = read_json(done).get("result") if done.is_file() else None
    if result is None or not (path / result / "model.json").is_file():
        raise UserError(
            f"{path} is a run without a result yet.",
            "Let its training finish (the same command goes on), or name one of its models: RUN/STAGE.",
        )
    folder: Path = path / str(result)
    return folder


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """Dotted keys that can change the result and differ: key → (old, new) as JSON; "absent" where there is none."""
    before, after = _leaves(old), _leaves(new)
    return {
        key: (before.get(key, "absent"), after.get(key, "absent"))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def remove_temporary_files(folder: Path) -> int:
    """Remove the temporary files of a killed vitlab.files.atomic_write below ``folder``; returns how many."""
    stale = [path for path in folder.rglob(".*.tmp") if re.fullmatch(r"\..+\.\d+\.tmp", path.name) and path.is_file()]
    for path in stale:
        path.unlink()
    return len(stale)


@contextlib.contextmanager
def locked(folder: Path, cure: str) -> Iterator[None]:
    """Own a folder that several commands may write into, for as long as the block lasts.

    Raises:
        UserError: another process owns it; ``cure`` is what to do then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(folder / "lock", folder, cure)
    try:
        yield
    finally:
        release(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether some process works in a run's folder just now."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _acquire(
    path: Path, folder: Path, cure: str = "Wait for it or stop it; fresh=true starts a run of its own."
) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        acquire(descriptor)
    except OSError as error:
        owner = os.read(descriptor, 4096).decode(errors="replace")
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise UserError(
                f"{folder} cannot be locked: {error.strerror}.", "Choose a file system with locks: output=<folder>."
            ) from error
        raise UserError(
            f"{folder} is being worked on by {owner.strip() or 'a process that has just started'}.",
            cure,
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now()}\n".encode())
    return descriptor


def _state(folder: Path) -> str:
    if not (folder / "run.json").exists():
        return "new"
    return "finished" if (folder / "finished.json").exists() else "continued"


def _siblings(home: Path, stem: str) -> list[tuple[int, Path]]:
    """Runs named ``stem``, ``stem-2``, ``stem-3``, ... by number."""
    found = []
    for folder in home.glob(f"{stem}*"):
        match = re.fullmatch(re.escape(stem) + r"(?:-(\d+))?", folder.name)
        if match and (folder / "run.json").exists():
            found.append((int(match[1] or 1), folder))
    return sorted(found)


def _runs_of(home: Path, prefix: str) -> list[Path]:
    """All runs of a prefix, the youngest last."""
    born = {marker.parent: _read_record(marker.parent) for marker in home.glob(f"{prefix}-*/run.json")}
    return sorted((run for run in born if born[run]["prefix"] == prefix), key=lambda run: str(born[run]["created"]))


def _read_record(folder: Path) -> dict[str, object]:
    path = folder / "run.json"
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.", "Move the folder away to start again.") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}, which this vitlab reads.", "Move the folder away.")
    return record


def _tree_of(folder: Path) -> Mapping[str, object]:
    return _tree_in(_read_record(folder))


def _tree_in(record: Mapping[str, object]) -> Mapping[str, object]:
    tree = record["tree"]
    assert isinstance(tree, dict)
    return tree


def _refuse_foreign(folder: Path) -> None:
    """A folder without run.json may hold the traces of a killed birth, and nothing else."""
    if not folder.exists():
        return
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in ("lock", "config.yaml"))
    foreign = [name for name in foreign if not name.endswith(".tmp")]
    if foreign:
        raise UserError(f"{folder} is no run but holds {foreign[0]}.", "Move it away, or choose another name=.")


def _leaves(tree: Mapping[str, object], at: str = "") -> dict[str, str]:
    """Dotted key → value as JSON, for every leaf (lists and empty mappings are leaves) outside RESULT_FREE."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if not at and key in RESULT_FREE:
            continue
        if key in RESULT_FREE_KEYS:
            continue
        if isinstance(value, Mapping) and value:
            found.update(_leaves(value, f"{at}{key}."))
        else:
            found[f"{at}{key}"] = _canonical(value)
    return found


def _listed(changed: Mapping[str, tuple[str, str]]) -> str:
    shown = [f"{key}: {old} → {new}" for key, (old, new) in list(changed.items())[:_SHOWN]]
    rest = len(changed) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _as_json(value: Mapping[str, object]) -> dict[str, object]:
    """What the value will be when it is read back: tuples are lists, keys are text."""
    plain = json.loads(json.dumps(value))
    assert isinstance(plain, dict)
    return plain


def _yaml(tree: Mapping[str, object]) -> str:
    from omegaconf import OmegaConf  # only the first start of a run needs it

    return OmegaConf.to_yaml(OmegaConf.create(dict(tree)))
