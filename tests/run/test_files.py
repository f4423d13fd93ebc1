"""Files are written so that neither a kill nor a power failure leaves half of one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vitlab.files import atomic_write


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure may leave the new name with no content, or with the old one."""
    events: list[tuple[str, object]] = []
    sync, rename = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        state = os.fstat(descriptor)
        events.append(("sync", (state.st_ino, state.st_size)))
        sync(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        events.append(("rename", target))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_rename)
    path = tmp_path / "new" / "file.json"
    atomic_write(path, "content")
    (synced, renamed, folder) = events
    assert synced == ("sync", (path.stat().st_ino, len("content")))
    assert renamed == ("rename", path)
    assert folder[0] == "sync" and folder[1][0] == path.parent.stat().st_ino  # type: ignore[index]
