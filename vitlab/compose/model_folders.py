"""``model=RUN`` and ``teacher=RUN``: a run or a model folder in place of a name of ``conf/``.

Its ``model.json`` gives what would otherwise be typed: the network's name and arguments, its weights, its input size;
normalisation and classes are read from it when the network is built. Several folders, ``teacher=[A,B]``, are an
ensemble. Keys on the command line win over those of a folder. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from vitlab.config import ModelConfig
from vitlab.errors import UserError, list_names, nearest
from vitlab.run.model_file import META_FILE, ModelMeta, read_meta
from vitlab.run.run import model_folder

GROUPS_OF_MODELS = ("model", "teacher")
"""Groups that take a folder."""

OUTPUT = "outputs"
"""Where runs are searched by name if ``output=`` is not given."""


@dataclass(frozen=True)
class ModelFolder:
    """A run or a model folder, and what it holds."""

    path: Path  # of the model: of a run that of its result
    meta: ModelMeta


def names_folders(group: str, value: object, names: Sequence[str], output: str) -> bool:
    """Whether the choice ``value`` of a group means folders: a list, a path, or the name of a run below ``output``. A
    name in ``conf/`` wins over a folder of that name (``./NAME`` is the folder)."""
    if group not in GROUPS_OF_MODELS or value in names:
        return False
    if isinstance(value, list):
        return group == "teacher" and all(isinstance(one, str) for one in value)
    return isinstance(value, str) and ("/" in value or value.startswith((".", "~")) or _find(value, output) is not None)


def read_folders(words: Sequence[Override], names: Mapping[str, Sequence[str]]) -> dict[str, list[ModelFolder]]:
    """The folders that ``model=`` and ``teacher=`` name, by group; a group that is chosen by a name is absent.

    Args:
        words: the overrides, with at most one for each key.
        names: names of the choices in ``conf/``, by group.

    Raises:
        UserError: no such folder, one without a model, or a damaged one.
    """
    output = output_of(words)
    found = {}
    for word in words:
        group, value = word.key_or_group, word.value()
        if word.package is None and names_folders(group, value, names.get(group, ()), output):
            values = value if isinstance(value, list) else [value]
            found[group] = [_read(str(one), output, word) for one in values]
            if not values:
                raise UserError(f"{word.input_line}: no folder is named.", f"Give some: {group}=[RUN,RUN].")
    return found


def output_of(words: Sequence[Override]) -> str:
    """The folder of the runs."""
    given = [str(word.value()) for word in words if word.key_or_group == "output"]
    return given[-1] if given else OUTPUT


def put_into(tree: DictConfig, folders: Mapping[str, Sequence[ModelFolder]], sized: bool) -> None:
    """Set the keys that the folders know; those that they do not concern stay.

    Args:
        tree: the composed configuration without the keys of the command line, which are set after this.
        sized: an experiment has chosen ``dataset.size``, which then stays.
    """
    for one in folders.get("model", ()):
        tree.model = OmegaConf.structured(_model(one))
        if not sized:
            tree.dataset.size = one.meta.size
    if members := folders.get("teacher"):
        tree.teacher.members = [OmegaConf.structured(_model(one)) for one in members]
        tree.teacher.sizes = [one.meta.size for one in members]


def _model(one: ModelFolder) -> ModelConfig:
    # The size is passed on from dataset.size; mean and std are those in the folder.
    args = {key: value for key, value in one.meta.args.items() if key != "img_size"}
    return ModelConfig(one.meta.name, checkpoint=str(one.path), args=args)


def _find(word: str, output: str) -> Path | None:
    """The run or model folder of ``word``: a path, or a name below ``output``, as for ``run=``."""
    path = Path(word).expanduser()
    below = () if path.is_absolute() else (Path(output) / word, *sorted(Path(output).glob(f"*/{word}")))
    return next((one for one in (path, *below) if (one / "run.json").is_file() or (one / META_FILE).is_file()), None)


def _read(word: str, output: str, override: Override) -> ModelFolder:
    group, typed = override.key_or_group, override.input_line
    path = _find(word, output)
    if path is None:
        there = Path(word).expanduser()
        if there.is_file():
            keys = "model" if group == "model" else "teacher.members.0"
            raise UserError(
                f"{typed}: {there} is a file, which does not say what network it is for.",
                f"Give {keys}.name=NAME {keys}.checkpoint={word}, or the folder of a run.",
            )
        if there.is_dir():
            inside = sorted(one.parent for one in there.glob("*/run.json"))
            cure = f"It holds runs: {list_names(map(str, inside), 3)}." if inside else ""
            raise UserError(
                f"{typed}: {there} is neither a run nor a model folder.",
                cure or f"Give a folder with run.json or {META_FILE}.",
            )
        runs = [one.parent for one in Path(output).glob("*/*/run.json")]
        near = nearest(Path(word).name, [one.name for one in runs])
        cure = f"Did you mean {next(one for one in runs if one.name == near)}?" if near else ""
        raise UserError(
            f"{typed}: there is no folder {word}.",
            cure or f"Give a run, a model folder, or one of mode=list group={group}.",
        )
    try:
        folder = model_folder(path)
        return ModelFolder(folder, read_meta(folder))
    except UserError as error:
        raise UserError(f"{typed}: {error.what}", error.cure) from None
