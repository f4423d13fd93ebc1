"""What a method chooses anew on one data set stands between the data set's choices and the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitlab.compose.load import load


def test_the_data_set_gives_way_to_the_method_and_both_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path))
    assert load(["dataset=digits"]).choices["model"] == "tiny_vit_digits"
    found = load(["method=nvit", "dataset=digits"])
    assert found.choices["model"] == "vit_digits" and found.config.method.dense.batch_size == 64
    assert not any(choice and choice.startswith("_") for choice in found.choices.values())
    mine = load(["method=nvit", "dataset=digits", "model=deit_tiny", "method.prune.interval=5"])
    assert mine.choices["model"] == "deit_tiny" and mine.config.method.prune.interval == 5
    for dataset in ("folder", "cifar10"):  # which is based on folder
        assert (
            load(["method=nvit", f"dataset={dataset}"]).config.method.dense.lr
            == load(["recipe=finetune"]).config.recipe.lr
        )
    assert load(["method=nvit", "dataset=imagenet"]).choices["model"] == "deit_base"


def test_an_experiment_gives_way_to_nothing_but_the_command_line() -> None:
    found = load(["experiment=nvit_digits"])
    assert found.choices["model"] == "vit_digits" and found.config.method.scratch.duration == "100ep"
