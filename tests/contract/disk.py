"""A small disk, filled at chosen calls: a tmpfs in the mount namespace of a forked process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.story import before

NEWNS, NEWUSER = 0x00020000, 0x10000000
NOT_HERE = 77


def on_a_small_disk(folder: Path, megabytes: int, check: Callable[[Path], None]) -> None:
    """Call ``check`` in a forked process with ``folder``, the mount point of a disk of ``megabytes``.

    Skips the test if a process may not create a mount namespace.
    """
    folder.mkdir()
    log = folder.with_name("log")
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == NOT_HERE:
            pytest.skip(f"needs a mount namespace: {log.read_text()}")
        assert code == 0, log.read_text()
        return
    code = 1
    try:
        with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                _mount(folder, megabytes)
            except OSError as error:
                print(error)
                code = NOT_HERE
            else:
                try:
                    check(folder)
                    code = 0
                except BaseException:
                    traceback.print_exc()
    finally:
        os._exit(code)


def _mount(folder: Path, megabytes: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEWNS) != 0:  # without root, a user namespace comes first
        if libc.unshare(NEWUSER | NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    private = 1 << 18 | 1 << 14  # MS_PRIVATE | MS_REC: not visible outside
    size = f"size={megabytes}m".encode()
    mounted = libc.mount(b"none", b"/", None, private, None) == 0
    if not mounted or libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, size) != 0:
        raise OSError(ctypes.get_errno(), "mount")


@contextlib.contextmanager
def full_at(disk: Path, owner: object, name: str, when: Callable[..., bool], left: int = 0) -> Iterator[None]:
    """Fill ``disk`` but for ``left`` bytes before ``owner.name`` is called with arguments for which ``when`` is true;
    free it after the block."""
    ballast = disk / "ballast"

    def fill() -> None:
        free = os.statvfs(disk)
        ballast.write_bytes(bytes(free.f_bavail * free.f_bsize - left))

    try:
        with before(owner, name, when, fill):
            yield
    finally:
        assert ballast.exists(), "the disk was not filled"
        ballast.unlink()
