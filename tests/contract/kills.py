"""Kills at write events: every call of this process that changes a file or folder below a run's output is numbered, and
the process ends at a chosen one, as by SIGKILL, in the middle of a write, or as the machine would lose its power.

Names are seen by Python's audit events (open, mkdir, rename, remove, rmdir, truncate), contents by wrapped ``open``,
``os.write``, ``os.pwrite`` and ``os.fsync``. :meth:`WriteEvents.unseen` lists files that came into being otherwise.
"""

from __future__ import annotations

import builtins
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

KILL, TORN, POWER, POWER_AND_NAMES = "kill", "torn", "power", "power+names"
"""Ways to end at an event:

- kill: before it.
- torn: in the middle of it, half of the bytes written.
- power: before it, and what was written since the last fsync of a file is lost; names of files are all there.
- power+names: the same, and names made, changed or removed since the last fsync of their folder are lost, too.
"""

WRITABLE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class WriteEvents:
    """Numbers the write events of this process below ``folder``, from 0.

    Install it in a forked process only: an audit hook is never removed.

    Args:
        at: number of the event at which the process ends, or "operation end-of-path" of the first such; None: none.
        how: one of the ways above.
        log: file that gets a line per event, "operation path".
        aside: folder on the same disk, outside ``folder``, for what an undone rename or removal must restore.
    """

    def __init__(self, folder: Path, log: Path, aside: Path, at: int | str | None = None, how: str = KILL) -> None:
        self._top = os.path.realpath(folder) + os.sep
        self._aside, self._at, self._how = aside, at, how
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._count = 0
        self._busy = False  # own changes are no events
        self._written: dict[str, int] = {}  # bytes, by path
        self._synced: dict[int, bytes] = {}  # what the disk surely holds of files written since their fsync, by inode
        self._undo: list[tuple[str, Callable[[], None]]] = []  # changes of names since the fsync of their folder
        aside.mkdir(exist_ok=True)

    def install(self) -> None:
        """Watch from now on."""
        events = self
        self._os_write, self._os_pwrite, self._os_fsync = os.write, os.pwrite, os.fsync
        original_open = builtins.open

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                return events._write(self.fileno(), memoryview(data).cast("B"), super().write)

            def truncate(self, size: int | None = None) -> int:
                os.ftruncate(self.fileno(), self.tell() if size is None else size)
                return os.fstat(self.fileno()).st_size

        def open_(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            path = os.fsdecode(file) if isinstance(file, (str, bytes, os.PathLike)) else ""
            if not set(mode) & set("wax+") or not events._path(path) or kwargs.get("opener") is not None:
                return original_open(file, mode, buffering, *args, **kwargs)
            raw = File(path, mode.replace("b", "").replace("t", ""))
            if "b" in mode and buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **kwargs)

        def write(descriptor: int, data: Any) -> int:
            return events._write(descriptor, memoryview(data), lambda part: events._os_write(descriptor, part))

        def pwrite(descriptor: int, data: Any, offset: int) -> int:
            one = memoryview(data).cast("B")
            return events._write(descriptor, one, lambda part: events._os_pwrite(descriptor, part, offset))

        builtins.open = io.open = open_
        os.write, os.pwrite = write, pwrite
        os.fsync = self._fsync  # type: ignore[assignment]
        sys.addaudithook(self._audit)

    def unseen(self) -> list[str]:
        """Files with bytes that no event wrote: a library's own writes, at which the process cannot be ended."""
        files = [path for path in Path(self._top).rglob("*") if path.is_file() and path.stat().st_size]
        return [str(path) for path in files if self._written.get(str(path), 0) < path.stat().st_size]

    # -- events ---------------------------------------------------------------------------------------------------

    def _audit(self, name: str, args: tuple[Any, ...]) -> None:
        if self._busy:
            return
        if name == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & WRITABLE and (at := self._path(path)):
                self._event("open", at)
                self._before_open(at, flags)
        elif name in ("os.mkdir", "os.rmdir", "os.remove") and (at := self._path(args[0], args[-1])):
            if os.path.exists(at) == (name == "os.mkdir"):
                return  # it fails (mkdir(exist_ok=True), unlink(missing_ok=True)) and changes nothing
            self._event(name[3:], at)
            if name == "os.mkdir":
                self._later(at, lambda: _remove_empty(at))
            elif name == "os.rmdir":
                self._later(at, lambda: os.makedirs(at, exist_ok=True))
            else:
                self._later(at, self._restore(at))
        elif name == "os.rename" and (at := self._path(args[1], args[3])):
            source = self._path(args[0], args[2])
            assert source, f"{args[0]} comes from outside"
            self._event("rename", at)
            restore = self._restore(at) if os.path.isfile(at) else lambda: None

            def undo() -> None:
                os.rename(at, source)
                restore()

            self._later(at, undo)
            self._written[at] = self._written.pop(source, 0)
        elif name == "os.truncate" and (at := self._path(args[0])):
            self._event("truncate", at)
            self._keep(at)
            self._written.setdefault(at, 0)
            self._written[at] = max(self._written[at], int(args[1]))

    def _write(self, descriptor: int, data: memoryview, write: Callable[[memoryview], int]) -> int:
        if not self._busy and (path := self._path(descriptor)):
            half = lambda: write(data[: len(data) // 2])  # noqa: E731
            self._event("write", path, half)
            self._keep(path)
            self._written[path] = self._written.get(path, 0) + len(data)
        return write(data)

    def _fsync(self, file: Any) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        path = self._path(descriptor) or (self._top[:-1] if self._path_of(descriptor) + os.sep == self._top else "")
        if path:
            self._event("fsync", path)
        self._os_fsync(descriptor)
        if path and os.path.isdir(path):
            self._undo = [(at, undo) for at, undo in self._undo if os.path.dirname(at) != path]
        elif path:
            self._synced.pop(os.fstat(descriptor).st_ino, None)

    def _event(self, operation: str, path: str, half: Callable[[], object] | None = None) -> None:
        name = re.sub(r"\.\d+\.tmp$", ".tmp", path[len(self._top) :])  # without the number of the process
        self._os_write(self._log, f"{operation} {name}\n".encode())
        wanted, _, end = self._at.partition(" ") if isinstance(self._at, str) else ("", "", "")
        if self._count == self._at or (wanted == operation and name.endswith(end)):
            self._end(half)
        self._count += 1

    def _end(self, half: Callable[[], object] | None) -> NoReturn:
        self._busy = True
        if self._how == TORN and half is not None:
            half()
        if self._how == POWER_AND_NAMES:
            for _, undo in reversed(self._undo):
                undo()
        if self._how in (POWER, POWER_AND_NAMES):
            for folder, _, names in os.walk(self._top):
                for path in (os.path.join(folder, name) for name in names):
                    if (content := self._synced.get(os.stat(path).st_ino)) is not None:
                        Path(path).write_bytes(content)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("alive")

    # -- what a loss of power takes back ----------------------------------------------------------------------------

    def _before_open(self, path: str, flags: int) -> None:
        if not os.path.exists(path):
            self._later(path, lambda: Path(path).unlink(missing_ok=True))
        elif flags & os.O_TRUNC:
            self._keep(path)

    def _keep(self, path: str) -> None:
        """Keep what the disk holds of ``path`` before its first change since its fsync."""
        inode = os.stat(path).st_ino
        if inode not in self._synced:
            self._busy = True
            self._synced[inode] = Path(path).read_bytes()
            self._busy = False

    def _later(self, path: str, undo: Callable[[], None]) -> None:
        self._undo.append((path, undo))

    def _restore(self, path: str) -> Callable[[], None]:
        """What puts the file ``path`` back that is about to be removed or replaced."""
        kept = self._aside / f"{os.getpid()}-{self._count}"
        self._busy = True
        os.link(path, kept)
        self._busy = False
        return lambda: os.rename(kept, path)

    # -- paths ------------------------------------------------------------------------------------------------------

    def _path(self, path: Any, folder: Any = -1) -> str:
        """The absolute path below the watched folder, else ""."""
        if isinstance(path, int):
            path = self._path_of(path)
        elif isinstance(path, (str, bytes, os.PathLike)):
            path = os.fsdecode(path)
            base = self._path_of(folder) if isinstance(folder, int) and folder >= 0 else os.getcwd()
            path = os.path.normpath(os.path.join(base, path))
        return path if isinstance(path, str) and path.startswith(self._top) else ""

    @staticmethod
    def _path_of(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")


def _remove_empty(folder: str) -> None:
    if os.path.isdir(folder) and not os.listdir(folder):
        os.rmdir(folder)
