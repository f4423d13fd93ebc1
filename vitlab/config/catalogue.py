"""What there is to choose: the groups of ``conf/``, the other keys at the top, the modes, and the files behind them.

A mode is a file, ``vitlab/modes/<mode>.py`` or ``vitlab/methods/<method>/modes/<mode>.py``, that says in its head what
it is for (``MEANING``), what it reads (``READS``) and whether it runs on one device (``ONE_DEVICE``). Heads are parsed,
not imported: the help page and a typo are answered without torch.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

from vitlab.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]


class Group(NamedTuple):
    """A folder of ``conf/``.

    Attributes:
        meaning: one line for the help page.
        changes_result: part of a run's identity; a run continues only where it is the same.
        always_read: by the code around the stages, whatever the method.
        named: its ``name`` key records the choice, so it cannot be overridden by itself.
    """

    meaning: str
    changes_result: bool = True
    always_read: bool = False
    named: bool = False


GROUPS = {
    "method": Group("what is done, in stages", always_read=True, named=True),
    "model": Group("the network that is trained"),
    "dataset": Group("the images", named=True),
    "teacher": Group("who labels them, for methods that distil"),
    "recipe": Group("how it is trained: optimiser, schedule, augmentation"),
    "task": Group("what the network answers", named=True),
    "hardware": Group("where it runs, and how precisely", changes_result=False, always_read=True, named=True),
    "logger": Group("copies of the record in metrics.jsonl", changes_result=False, always_read=True, named=True),
    "evaluation": Group("what is measured at the end", changes_result=False, always_read=True),
    "export": Group("the files that others can load", changes_result=False, always_read=True),
    "debug": Group("shortcuts, to see every stage pass quickly", always_read=True, named=True),
    "sweep": Group("several runs of one command, after -m", changes_result=False),
    "paper": Group("the published row that stands beside the result", changes_result=False),
    "experiment": Group("complete set-ups in one word", always_read=True),
}
"""The config groups, in the order in which ``--help`` shows them."""

PLAN_ORDER = ("method", "dataset", "model", "teacher", "recipe", "hardware", "experiment", "debug")
"""The groups whose choice the plan of a run shows."""

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
"""Top-level keys and groups that any training takes, beside what its stages read."""

RESULT_FREE = frozenset(name for name, group in GROUPS.items() if not group.changes_result) | {
    *("slurm", "trainer", "mode", "name", "output", "fresh", "only", "local"),
    *("run", "input", "benchmark", "predict", "explain", "audit", "report"),  # of the modes that read what was trained
}
"""Top-level keys and groups that cannot change what is learned; they may differ when a run continues."""

RESULT_FREE_KEYS = frozenset({"accumulate", "embedded", "synthetic"})
"""Last parts of keys of which the same is true: how a batch is divided, which memory decides; what a data set is."""

ALWAYS_READ = frozenset(name for name, group in GROUPS.items() if group.always_read)

MODE_KEYS = frozenset({"hardware", "trainer", "mode", "seed", "output", "local"})
"""What every mode takes."""

TRAINING_MODES = {
    "train": "every stage of the method, then evaluation, exports and report (the default)",
    "check": "the plan with sizes and estimates, and one batch of every stage",
    "list": "what there is: mode=list group=GROUP, mode=list key=KEY",
}
"""Modes that are not files: a training, its rehearsal, the lists."""


class Mode(NamedTuple):
    """What the head of a mode's file says.

    Attributes:
        module: dotted, with a function ``answer(composed) -> exit code``.
        method: whose mode it is; None: any method's.
        reads: groups and top-level keys.
        one_device: runs on one device even where ``trainer.devices`` names several.
    """

    name: str
    module: str
    method: str | None
    meaning: str
    reads: frozenset[str]
    one_device: bool


@functools.cache
def mode_files() -> tuple[Mode, ...]:
    """All modes that are files: the general ones, then those of the methods, each by name."""
    general = sorted((PACKAGE / "modes").glob("*.py"))
    owned = sorted((PACKAGE / "methods").glob("*/modes/*.py"), key=lambda path: (path.stem, path.parts))
    return tuple(mode for path in (*general, *owned) if (mode := _read_mode(path)) is not None)


def mode_meanings() -> dict[str, str]:
    """What ``mode=`` takes, with a line each: train, the general modes, those of methods, check, list."""
    found = {"train": TRAINING_MODES["train"]}
    for mode in mode_files():
        found.setdefault(mode.name, mode.meaning)
    return found | TRAINING_MODES


def find_mode(name: str, method: str) -> Mode | None:
    """The mode of that name: a general one, or that of ``method``, or of the only method that has it; None for a
    training and for a name that there is not.

    Raises:
        UserError: several methods have such a mode, and ``method`` is none of them.
    """
    found = [mode for mode in mode_files() if mode.name == name]
    for mode in found:
        if mode.method in (None, method):
            return mode
    if len(found) > 1:
        owners = " or ".join(f"method={mode.method}" for mode in found)
        raise UserError(f"mode={name} is not one of method={method}.", f"Choose {owners}.")
    return found[0] if found else None


def mode_reads(name: str) -> frozenset[str]:
    """Groups and keys that some mode of that name reads; empty for a training."""
    return frozenset[str]().union(*(mode.reads for mode in mode_files() if mode.name == name))


def _read_mode(path: Path) -> Mode | None:
    """The head of ``path``, up to its first function or class; None for a file that is no mode."""
    with open(path) as file:
        lines: list[str] = []
        for line in file:
            if line.startswith(("def ", "class ", "@")):
                break
            lines.append(line)
    head = {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse("".join(lines)).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("MEANING", "READS", "ONE_DEVICE")
    }
    if "MEANING" not in head:
        return None
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    method = path.parents[1].name if path.parents[2].name == "methods" else None
    reads = MODE_KEYS | frozenset(head["READS"])
    return Mode(path.stem, module, method, head["MEANING"], reads, head.get("ONE_DEVICE", False))


# ------------------------------------------------------------------------------------------------- the files of conf/


def conf_dir() -> Path:
    """The folder of the YAML files: inside the package when installed, beside it in a clone."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def choices(conf: Path, group: str) -> list[str]:
    """Names of the YAML files of a group, numbers in them in the order of their values. ``_NAME.yaml`` is a base of
    others, not a choice."""
    names = (path.stem for path in (conf / group).glob("*.yaml"))
    return sorted((name for name in names if not name.startswith("_")), key=_natural)


def head(path: Path) -> str:
    """The first comment line of a YAML file that is not a directive of Hydra's: what the file is, in one line."""
    with open(path) as file:
        for line in file:
            text = line.lstrip("#").strip()
            if not line.startswith("#"):
                break
            if text and not text.startswith("@"):
                return text
    return ""


def origin(path: Path) -> str:
    """What a data set's file says behind ``# Origin:``: who made the data, and under which licence; "" if nothing."""
    lines = (line.lstrip("#").strip() for line in path.read_text().splitlines() if line.startswith("#"))
    return next((line.removeprefix("Origin:").strip() for line in lines if line.startswith("Origin:")), "")


def top_level_key(key: str) -> str:
    """The top-level key that a dotted key, a group, or a mounted group (recipe@teacher.recipe) belongs to."""
    group, _, mount = key.partition("@")
    return (mount or group).partition(".")[0]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which cifar100 follows cifar10 and tiny_vit_5m comes before tiny_vit_11m."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
