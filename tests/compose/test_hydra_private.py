"""Hydra's private names are in one file, and each behaves as vitlab needs.

``hydra._internal`` has no guarantees. Every failure here starts with Hydra's version and the name that it has moved or
changed, which shows what to adapt when the upper bound in ``pyproject.toml`` is raised.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import vitlab

SOURCES = Path(vitlab.__file__).parent


@contextmanager
def blame(name: str) -> Iterator[None]:
    """Report a failure inside as a change of ``name`` by the installed Hydra."""
    try:
        yield
    except Exception as error:
        message = f"Hydra {hydra.__version__} broke {name}: {type(error).__name__}: {error}"
        raise AssertionError(f"{message}. See vitlab's hydra_private.py.") from error


def test_private_names_are_in_one_file() -> None:
    pattern = re.compile(r"^\s*(?:from|import) hydra\._internal", re.MULTILINE)
    users = {path.name for path in SOURCES.rglob("*.py") if pattern.search(path.read_text())}
    assert users == {"hydra_private.py"}


def test_every_private_name_exists() -> None:
    with blame("an import"):
        from vitlab.compose import hydra_private
    with blame("the signature of create_defaults_list"):
        taken = inspect.signature(hydra_private.create_defaults_list).parameters
        assert {"repo", "config_name", "overrides_list", "prepend_hydra", "skip_missing"} <= set(taken)
    with blame("ConfigLoaderImpl's methods"):
        assert callable(hydra_private.ConfigLoaderImpl._load_single_config)
        assert callable(hydra_private.ConfigLoaderImpl._apply_overrides_to_config)


def test_a_defaults_list_is_made_and_its_files_are_loaded(tmp_path: Path) -> None:
    """As in vitlab.compose, on a folder of two files; the result is compared with Hydra's documentation."""
    from vitlab.compose import hydra_private as private

    (tmp_path / "pet").mkdir()
    (tmp_path / "config.yaml").write_text("defaults:\n  - pet: cat\n  - _self_\nhome: true\n")
    (tmp_path / "pet" / "cat.yaml").write_text("legs: 4\n")
    (tmp_path / "pet" / "bird.yaml").write_text("legs: 2\n")
    parse = OverridesParser.create().parse_override
    with blame("create_automatic_config_search_path or ConfigLoaderImpl"):
        loader = private.ConfigLoaderImpl(private.create_automatic_config_search_path(None, None, str(tmp_path)))
    with blame("CachingConfigRepository"):
        repository = private.CachingConfigRepository(loader.repository)
    with blame("create_defaults_list"):
        found = private.create_defaults_list(
            repository, "config", [parse("pet=bird")], prepend_hydra=False, skip_missing=False
        )
        assert found.overrides.known_choices == {"pet": "bird"}
        assert [(one.config_path, one.package) for one in found.defaults] == [("pet/bird", "pet"), ("config", "")]
    with blame("ConfigLoaderImpl._load_single_config"):
        tree = DictConfig({})
        for one in found.defaults:
            tree.merge_with(loader._load_single_config(one, repository).config)
        assert OmegaConf.to_container(tree) == {"pet": {"legs": 2}, "home": True}
    with blame("ConfigLoaderImpl._apply_overrides_to_config"):
        private.ConfigLoaderImpl._apply_overrides_to_config([parse("pet.legs=3")], tree)
        assert tree.pet.legs == 3


def test_a_sweep_is_expanded() -> None:
    from vitlab.compose import hydra_private as private

    words = [OverridesParser.create().parse_override(word) for word in ("a=1,2", "b=x")]
    with blame("BasicSweeper.split_arguments"):
        assert private.BasicSweeper.split_arguments(words, None) == [[["a=1", "b=x"], ["a=2", "b=x"]]]
