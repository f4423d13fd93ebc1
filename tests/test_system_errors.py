"""Failures of the place and the system end in a paragraph and exit code 2, before the work where they can be known."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.contract.story import run_command, the_run
from vitlab.cli.main import main
from vitlab.errors import SYSTEM_ERRORS, UserError, system_error
from vitlab.files import check_file, check_folder

PLAIN = ("method=supervised", "evaluation=quick")


@pytest.mark.parametrize("number", sorted(SYSTEM_ERRORS), ids=lambda number: errno.errorcode[number])
def test_every_errno_has_a_cure(number: int) -> None:
    found = system_error(OSError(number, os.strerror(number), "out/run.json"))
    assert found is not None and "out/run.json" in found.what and found.cure
    wrapped = RuntimeError("a library's own error")
    wrapped.__cause__ = OSError(number, os.strerror(number))
    assert system_error(wrapped) is not None


def test_errors_of_the_program_stay_errors_of_the_program() -> None:
    assert system_error(FileNotFoundError(errno.ENOENT, "none", "a")) is None and system_error(ValueError()) is None
    unrelated = RuntimeError()
    unrelated.__context__ = PermissionError(errno.EACCES, "denied", "a")  # handled before, and not the cause
    assert system_error(unrelated) is None


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    check_folder(tmp_path / "new" / "er", "output")
    check_file(tmp_path / "file", "predict.output")
    assert not (tmp_path / "new").exists()
    for place in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "dangling", tmp_path / ("x" * 300)):
        with pytest.raises(UserError):
            check_folder(place, "output")
    with pytest.raises(UserError, match="is a folder, not a file"):
        check_file(tmp_path, "predict.output")


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()

    def refused(*words: str) -> str:
        captured = capsys.readouterr()
        del captured
        output = words[0].removeprefix("output=")
        code = run_command(Path(output), *words[1:]) if "mode=" not in " ".join(words) else main([*words])
        text = " ".join(capsys.readouterr().err.split())
        assert code == 2 and "Traceback" not in text, text
        return text

    assert "is a file" in refused(f"output={tmp_path / 'file'}", *PLAIN)
    assert "is a file" in refused(f"output={tmp_path / 'file' / 'below'}", *PLAIN)
    assert "is too long" in refused(f"output={tmp_path}", *PLAIN, f"name={'x' * 300}")
    assert (tmp_path / "file").read_text() == "x"
    for words in ((f"output={tmp_path / 'file'}", "mode=benchmark", "model=resnet18", "evaluation.latency=false"),):
        assert "file" in refused(*words)
    assert run_command(tmp_path / "out", *PLAIN) == 0
    run = the_run(tmp_path / "out")
    picture = ("mode=predict", f"run={run}", f"input={tmp_path / 'none.png'}")
    assert "is a folder, not a file" in refused(f"output={tmp_path}", *picture, f"predict.output={tmp_path / 'folder'}")
    assert "is a file, not a folder" in refused(f"output={tmp_path}", *picture, f"predict.pictures={tmp_path / 'file'}")
    (run / "explain").write_text("in the way")
    assert "in the way" in (run / "explain").read_text()
    text = refused(f"output={tmp_path}", "mode=explain", f"run={run}", "explain.sanity=false", "explain.images=1")
    assert str(run / "explain") in text
