"""A data set is a module and a YAML file; what the YAML states of it changes no run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from vitlab.compose.load import load
from vitlab.config import DatasetConfig
from vitlab.config.catalogue import conf_dir
from vitlab.data import sets
from vitlab.data.build import describe_dataset, open_splits
from vitlab.data.sets import find_set, set_names
from vitlab.errors import UserError
from vitlab.run.identity import differences

FILES = sorted((conf_dir() / "dataset").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_yaml_has_a_module(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["dataset"].get("name", "folder") in set_names()


def test_every_module_opens_its_splits_and_has_a_yaml() -> None:
    named = {yaml.safe_load(path.read_text())["dataset"].get("name", "folder") for path in FILES}
    assert set(set_names()) == named
    assert all(callable(find_set(name).splits) for name in set_names())


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UserError, match=r"dataset\.name=digit is unknown\. Did you mean digits\? There are: cifar10, "):
        open_splits(DatasetConfig(name="digit", size=8), 0)


def test_a_module_that_is_added_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in Path(sets.__file__).parent.glob("*.py"):
        shutil.copy(path, tmp_path)
    (tmp_path / "shells.py").write_text("splits = None\n")
    monkeypatch.setattr(sets, "__file__", str(tmp_path / "__init__.py"))
    assert "shells" in set_names() and "_cifar" not in set_names()


def test_embedded_sets_need_no_folder_and_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITLAB_DATA", raising=False)
    for name in ("digits", "fake"):
        config = load(["method=supervised", f"dataset={name}"]).config
        assert config.dataset.embedded and len(open_splits(config.dataset, 0)["train"])
    with pytest.raises(UserError, match=r"food101.*dataset\.root"):
        load(["method=supervised", "dataset=food101"])
    with pytest.raises(UserError, match=r"add dataset\.download=true"):
        load(["method=supervised", "dataset=food101", "dataset.root=none"])
    with pytest.raises(UserError, match=r"imagenet") as caught:
        load(["method=supervised", "dataset=imagenet", "dataset.root=none"])
    assert "download" not in str(caught.value)


def test_synthetic_is_a_fact_of_the_yaml_or_of_the_source() -> None:
    assert load(["method=supervised", "dataset=fake"]).config.dataset.synthetic
    old_run = DatasetConfig(name="fake", size=8)  # its tree has no such key
    assert (
        describe_dataset(old_run)["synthetic"]
        and not describe_dataset(DatasetConfig(name="digits", size=8))["synthetic"]
    )
    assert describe_dataset(DatasetConfig(name="digits", size=8, synthetic=True))["synthetic"]


def test_these_facts_are_no_part_of_what_a_run_is() -> None:
    composed = load(["method=supervised", "dataset=fake"])
    changed = load(["method=supervised", "dataset=fake", "dataset.synthetic=false"])
    assert composed.identity() == changed.identity()
    dataset = dict(composed.tree["dataset"])
    del dataset["synthetic"], dataset["embedded"]
    assert not differences(composed.tree | {"dataset": dataset}, composed.tree)
