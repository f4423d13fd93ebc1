"""mode=convert: an official checkpoint becomes a model folder that is pruned further."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vitlab
from tests.models.test_nvit_weights import CLASSES, DIM, official
from vitlab.cli.main import main
from vitlab.models.artifact import read_meta


def test_a_checkpoint_becomes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": official(), "dim": DIM}, tmp_path / "nvit.pth")
    words = ["mode=convert", "method=nvit", f"input={tmp_path / 'nvit.pth'}", f"method.convert_to={tmp_path / 'model'}"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "16 embedding channels" in out and "block  heads" in out
    vitlab.load_model(tmp_path / "model")
    assert len(read_meta(tmp_path / "model").classes) == CLASSES
    assert main(words) == 2  # nothing is overwritten
    assert "not empty" in capsys.readouterr().err
    assert main(words[:3]) == 2
    assert "method.convert_to=FOLDER" in capsys.readouterr().err
