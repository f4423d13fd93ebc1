"""Which runs the words at the prompt mean, and a run as a mode that comes later sees it: its models, its settings.

``run=`` names a run (its folder, or its name below ``output=``), one of its models (``RUN/STAGE``), a glob, or a list
of these. No torch here.
"""

from __future__ import annotations

import contextlib
import glob
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vitlab.compose.schema import complete, fields, from_tree
from vitlab.compose.unread_keys import check_unread
from vitlab.config import Config
from vitlab.config.catalogue import conf_dir
from vitlab.config.composed import Composed
from vitlab.errors import UserError, list_names, nearest
from vitlab.methods.base import Stage, find_method
from vitlab.run.run import Run

SHARED = ("mode", "output", "run", "input", "hardware", "trainer", "evaluation", "export", "benchmark", "predict")
"""Of a run's configuration, what today's prompt decides."""


def find_runs(composed: Composed) -> list[tuple[Run, str | None]]:
    """The runs that ``run=`` names, each with the stage that was named in it; none when there is no ``run=``.

    Raises:
        UserError: a word that names no run, with the nearest that there are; or ``model=`` beside it.
    """
    value = composed.config.run
    if value is None:
        return []
    if "model" in composed.chosen:
        raise UserError(
            "run= and model= both name the model.",
            "Leave one of them out; another model to measure beside a run's goes into benchmark.models=[NAME].",
        )
    words = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    if not words or not all(words):
        raise UserError("run= names nothing.", known_runs(composed, ""))
    found: list[tuple[Run, str | None]] = []
    for word in words:
        found += [one for one in _resolve(word, composed) if (one[0].folder, one[1]) not in _seen(found)]
    return found


def config_of(run: Run, composed: Composed) -> Config:
    """The run's own configuration, with what the command line may change: hardware, measuring, and typed keys of the
    data set (``dataset.root`` of data that have moved; ``dataset=NAME`` for others). A key that came after the run
    has its default, and an option of the method without one what ``conf/method/`` gives.

    Raises:
        UserError: the stored configuration is not one that this vitlab reads.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    typed = composed.config
    name = str(_dict(run.tree["method"])["name"])
    try:
        usual = OmegaConf.load(conf_dir() / "method" / f"{name}.yaml")
        assert isinstance(usual, DictConfig)
        config = from_tree(run.tree, {"method": usual.get("method", {})})
    except OmegaConfBaseException as error:
        raise UserError(
            f"The configuration of {run.folder} does not fit this vitlab: {str(error).splitlines()[0]}.",
            "Use the version that made the run (environment.jsonl names it).",
        ) from error
    trained = config.dataset
    config = replace(config, **{key: getattr(typed, key) for key in (*SHARED, "explain")})
    for group in ("dataset", "debug"):
        if any(word.startswith(f"{group}=") for word in composed.overrides):
            config = replace(config, **{group: getattr(typed, group)})
        else:
            values = {key: getattr(getattr(typed, group), key) for key in typed_keys(composed, group)}
            config = replace(config, **{group: replace(getattr(config, group), **values)})
    words = {word.lstrip("+").partition("=")[0]: word for word in composed.overrides}
    given = {key: word for key, word in words.items() if key.startswith("dataset.")}
    check_unread(config, given, fields(find_method(name).Options))
    elsewhere = (config.dataset.root, config.dataset.csv) != (trained.root, trained.csv)  # other images, or moved ones
    for key in ("val_fraction",) if elsewhere else ("val_fraction", "folds", "fold", "split_file"):
        now, then = getattr(config.dataset, key), getattr(trained, key)
        if config.dataset.name == trained.name and now != then:
            now, then = (
                "null" if one is None else f"{one:g}" if isinstance(one, float) else one for one in (now, then)
            )
            raise UserError(
                f"dataset.{key}={now}: {run.name} was trained with {then}, so it has seen images that this would hold "
                "out, or the other way round.",
                "Leave it out, or train with it: then it belongs into the command of the training.",
            )
    return config


def typed_keys(composed: Composed, group: str) -> frozenset[str]:
    """Keys directly below ``group`` that the prompt gives a value."""
    keys = [word.lstrip("+").partition("=")[0] for word in composed.overrides]
    return frozenset(key.removeprefix(f"{group}.").partition(".")[0] for key in keys if key.startswith(f"{group}."))


def models_of(run: Run, config: Config) -> list[Stage]:
    """The stages of a run that are done and left a model, in order."""
    stages = find_method(config.method.name).stages(config)
    return [stage for stage in stages if run.is_done(stage.name) and (run.folder / stage.name / "model.json").exists()]


def result_of(stages: Sequence[Stage]) -> Stage:
    """What a run is about: its last student, else its last model."""
    return ([stage for stage in stages if stage.role == "student"] or list(stages))[-1]


def command_of(composed: Composed) -> str:
    """What was typed, as one types it."""
    return shlex.join(["python", "-m", "vitlab", *composed.overrides])


@contextlib.contextmanager
def writing(run: Run | None, composed: Composed) -> Iterator[None]:
    """Own the run's folder while a mode writes into it; nothing to own where there is no run.

    Raises:
        UserError: another process works there.
    """
    if run is None:
        yield
        return
    run.lock(command_of(composed))
    try:
        yield
    finally:
        run.release()


# ------------------------------------------------------------------------------------------------------------- parts


def _resolve(word: str, composed: Composed) -> list[tuple[Run, str | None]]:
    """The runs of one word; a glob may match what is no run, a plain word may not."""
    output = Path(composed.config.output)
    text = str(Path(word).expanduser())
    patterns = [text, *(str(output / below) for below in (text, f"*/{text}") if not Path(text).is_absolute())]
    if glob.has_magic(word):
        for pattern in patterns:
            paths = [path for path in map(Path, sorted(glob.glob(pattern))) if _holds_run(path)]
            matched = [one for path in paths if (one := _run_at(path)) is not None]
            if matched:
                return matched
        raise UserError(f"run={word} matches no run.", known_runs(composed, word))
    for pattern in patterns:
        for path in sorted(glob.glob(pattern) if "*" in pattern else [pattern]):
            if (one := _run_at(Path(path))) is not None:
                return [one]
    if (Path(text) / "model.json").is_file():
        raise UserError(f"run={word} is a model folder outside any run.", f"Give model.checkpoint={word}.")
    if Path(text).is_dir() and (inside := sorted(path.parent for path in Path(text).glob("**/run.json"))):
        raise UserError(f"run={word} is a folder of {len(inside)} run(s).", f"Give one: run={inside[-1]}.")
    raise UserError(f"run={word} names no run.", known_runs(composed, word))


def _run_at(path: Path) -> tuple[Run, str | None] | None:
    if (path / "run.json").exists():
        return Run.at(path, complete), None
    if path.parent != path and (path.parent / "run.json").exists():
        return Run.at(path.parent, complete), path.name
    return None


def _holds_run(path: Path) -> bool:
    """Whether a glob may mean this: a run, or a model of one."""
    return path.is_dir() and any((path / name).exists() for name in ("run.json", "model.json"))


def known_runs(composed: Composed, word: str) -> str:
    """The nearest run, or the latest ones, for a message."""
    output = Path(composed.config.output)
    found = [marker.parent for marker in output.glob("*/*/run.json")]
    if not found:
        return f"There is no run in {output}/ yet; give run=FOLDER."
    near = nearest(Path(word).name, [folder.name for folder in found])
    if near:
        return f"Did you mean run={next(folder for folder in found if folder.name == near)}?"
    trained = [folder for folder in found if any(folder.glob("*/model.json"))]  # what the modes can use
    latest = sorted(trained or found, key=lambda folder: (folder / "run.json").stat().st_mtime, reverse=True)
    return f"The latest runs: {list_names((f'run={folder}' for folder in latest), 3)}."


def matches_several(composed: Composed) -> bool:
    """Whether ``run=`` holds a glob: runs that a mode cannot use are then skipped instead of refused."""
    value = composed.config.run
    return any(glob.has_magic(str(one)) for one in (value if isinstance(value, list) else [value]))


def _seen(found: Sequence[tuple[Run, str | None]]) -> set[tuple[Path, str | None]]:
    return {(run.folder, stage) for run, stage in found}


def _dict(value: object) -> dict[str, object]:
    assert isinstance(value, dict)
    return value
