"""Catalogue of the config groups, the other top-level keys and the modes, with their files.

A mode is a file, ``vitlab/modes/<mode>.py`` or ``vitlab/methods/<method>/modes/<mode>.py``, that defines its one-line
description (``MEANING``), the groups and keys it reads (``READS``) and whether it runs on one device (``ONE_DEVICE``).
These constants are parsed, not imported, so that help and error messages need no torch.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

from vitlab.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]


class Group(NamedTuple):
    """A folder of ``conf/``.

    Attributes:
        meaning: one line for the help page.
        changes_result: part of a run's identity; a run is continued only if it is unchanged.
        always_read: read for every method, by the code around its stages.
        named: its ``name`` key stores the choice, and cannot be overridden.
    """

    meaning: str
    changes_result: bool = True
    always_read: bool = False
    named: bool = False


GROUPS = {
    "method": Group("stages of the training", always_read=True, named=True),
    "model": Group("network that is trained"),
    "dataset": Group("images and labels", named=True),
    "teacher": Group("teacher networks of distillation methods"),
    "recipe": Group("optimiser, schedule and augmentation"),
    "task": Group("what the network predicts", named=True),
    "hardware": Group("devices and precision", changes_result=False, always_read=True, named=True),
    "logger": Group("loggers beside metrics.jsonl", changes_result=False, always_read=True, named=True),
    "evaluation": Group("metrics, calibration, latency, robustness", changes_result=False, always_read=True),
    "export": Group("file formats of the exported model", changes_result=False, always_read=True),
    "debug": Group("shortened runs, profiling, overfitting", always_read=True, named=True),
    "sweep": Group("grids and searches of runs, with -m", changes_result=False),
    "paper": Group("published result, shown beside the run's", changes_result=False),
    "experiment": Group("complete configurations by name", always_read=True),
}
"""The config groups, in the order in which ``--help`` shows them."""

PLAN_ORDER = ("method", "dataset", "model", "teacher", "recipe", "hardware", "experiment", "debug")
"""Groups whose choice the plan of a run shows."""

TRAINING_KEYS = frozenset(
    {
        "trainer",
        "mode",
        "seed",
        "name",
        "output",
        "fresh",
        "only",
        "local",
        "paper",
        "audit",
        "report",
        "sweep",
        "slurm",
    }
)
"""Top-level keys and groups that every training reads, besides those of its stages."""

RESULT_FREE = frozenset(name for name, group in GROUPS.items() if not group.changes_result) | {
    *("slurm", "trainer", "mode", "name", "output", "fresh", "only", "local"),
    *("run", "input", "benchmark", "predict", "explain", "audit", "report"),  # of the modes that read trained models
}
"""Top-level keys and groups that cannot change the result of a training; a run continues under other values."""

RESULT_FREE_KEYS = frozenset({"accumulate", "embedded", "synthetic"})
"""Last parts of keys that cannot change the result either: division of a batch, properties of a data set."""

ALWAYS_READ = frozenset(name for name, group in GROUPS.items() if group.always_read)

MODE_KEYS = frozenset({"hardware", "trainer", "mode", "seed", "output", "local"})
"""Top-level keys and groups that every mode reads."""

TRAINING_MODES = {
    "train": "every stage of the method, then evaluation, exports and report (the default)",
    "check": "the plan with sizes and estimated times, and one batch of every stage",
    "list": "groups, choices and keys: mode=list group=GROUP, mode=list key=KEY",
}
"""Modes without a file: a training, its dry run, the lists."""


MODE_CONSTANTS = ("MEANING", "READS", "ONE_DEVICE")
"""Constants in the head of a mode's file."""


class Mode(NamedTuple):
    """A mode, as its file defines it.

    Attributes:
        module: dotted name, with a function ``answer(composed) -> exit code``.
        method: the method that has this mode; None: a general mode.
        reads: groups and top-level keys.
        one_device: runs on one device even if ``trainer.devices`` gives several.
    """

    name: str
    module: str
    method: str | None
    meaning: str
    reads: frozenset[str]
    one_device: bool


@functools.cache
def mode_files() -> tuple[Mode, ...]:
    """All modes with a file: the general ones, then those of the methods, sorted by name."""
    general = sorted((PACKAGE / "modes").glob("*.py"))
    owned = sorted((PACKAGE / "methods").glob("*/modes/*.py"), key=lambda path: (path.stem, path.parts))
    return tuple(mode for path in (*general, *owned) if (mode := _read_mode(path)) is not None)


def mode_meanings() -> dict[str, str]:
    """Values of ``mode=`` with their descriptions: train, the general modes, those of methods, check, list."""
    meanings = {"train": TRAINING_MODES["train"]}
    for mode in mode_files():
        meanings.setdefault(mode.name, mode.meaning)
    return meanings | TRAINING_MODES


def find_mode(name: str, method: str) -> Mode | None:
    """The mode of that name: a general one, that of ``method``, or that of the only method that has it; None for a
    training and for an unknown name.

    Raises:
        UserError: several methods have such a mode, but not ``method``.
    """
    modes = [mode for mode in mode_files() if mode.name == name]
    for mode in modes:
        if mode.method in (None, method):
            return mode
    if len(modes) > 1:
        owners = " or ".join(f"method={mode.method}" for mode in modes)
        raise UserError(f"mode={name} is not one of method={method}.", f"Choose {owners}.")
    return modes[0] if modes else None


def mode_reads(name: str) -> frozenset[str]:
    """Groups and keys that some mode of that name reads; empty for a training."""
    return frozenset[str]().union(*(mode.reads for mode in mode_files() if mode.name == name))


def _read_mode(path: Path) -> Mode | None:
    """The mode defined by the constants above the first function or class of ``path``; None if it is not a mode."""
    with open(path) as file:
        lines: list[str] = []
        for line in file:
            if line.startswith(("def ", "class ", "@")):
                break
            lines.append(line)
    head = _constants(lines)
    if "MEANING" not in head:
        return None
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    method = path.parents[1].name if path.parents[2].name == "methods" else None
    reads = MODE_KEYS | frozenset(head["READS"])
    return Mode(path.stem, module, method, head["MEANING"], reads, head.get("ONE_DEVICE", False))


def _constants(lines: list[str]) -> dict[str, Any]:
    """The constants of a mode in the lines of its head, by name.

    One-line strings, tuples of names, True and False are read as text, as the import of ``ast`` would slow down the
    help page. Any other notation is parsed.
    """
    found: dict[str, Any] = {}
    inside_text = False
    for line in lines:
        inside_text ^= line.count('"""') % 2 == 1
        if inside_text or not line.startswith(MODE_CONSTANTS):
            continue
        name, _, text = line.rstrip().partition(" = ")
        value = _value(text)
        if value is None or name in found or name not in MODE_CONSTANTS:
            return _parsed(lines)
        found[name] = value
    return found


def _value(text: str) -> str | tuple[str, ...] | bool | None:
    """The string, tuple of names, True or False that ``text`` is; None if it is anything else."""
    if text in ("True", "False"):
        return text == "True"
    inner, ends = text[1:-1], text[:1] + text[-1:]
    if ends == '""' and len(text) > 1 and '"' not in inner and "\\" not in inner:
        return inner
    words = inner.removesuffix(",").split(", ")
    names = tuple(word[1:-1] for word in words)
    quoted = all(f'"{name}"' == word and name.isidentifier() for name, word in zip(names, words, strict=True))
    return names if ends == "()" and "," in inner and quoted else None


def _parsed(lines: list[str]) -> dict[str, Any]:
    """As :func:`_constants`, in any notation that Python has."""
    import ast

    return {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse("".join(lines)).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in MODE_CONSTANTS
    }


# ------------------------------------------------------------------------------------------------- the files of conf/


def conf_dir() -> Path:
    """The folder of the YAML files: inside the package when installed, beside it in a clone."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def choices(conf: Path, group: str) -> list[str]:
    """Names of the YAML files of a group, in natural order. ``_NAME.yaml`` is a base of other files, not a choice."""
    names = (path.stem for path in (conf / group).glob("*.yaml"))
    return sorted((name for name in names if not name.startswith("_")), key=_natural)


def head(path: Path) -> str:
    """The first comment line of a YAML file that is not a directive of Hydra: its one-line description."""
    with open(path) as file:
        for line in file:
            text = line.lstrip("#").strip()
            if not line.startswith("#"):
                break
            if text and not text.startswith("@"):
                return text
    return ""


def origin(path: Path) -> str:
    """The text after ``# Origin:`` in a data set's file: authors and licence of the data; "" if there is none."""
    lines = (line.lstrip("#").strip() for line in path.read_text().splitlines() if line.startswith("#"))
    return next((line.removeprefix("Origin:").strip() for line in lines if line.startswith("Origin:")), "")


def top_level_key(key: str) -> str:
    """The top-level key that a dotted key, a group, or a mounted group (recipe@teacher.recipe) belongs to."""
    group, _, mount = key.partition("@")
    return (mount or group).partition(".")[0]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which cifar100 follows cifar10 and tiny_vit_5m comes before tiny_vit_11m."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
