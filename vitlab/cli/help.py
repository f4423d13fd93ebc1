"""The help page and the lists, read from the YAML files' first comments, without Hydra, OmegaConf or torch."""

from __future__ import annotations

from pathlib import Path

from vitlab._version import __version__
from vitlab.config.catalogue import GROUPS, choices, conf_dir, head, mode_meanings
from vitlab.errors import UserError, nearest

PAGE = """\
vitlab {version}: from data to a small, fast, calibrated and exported vision model, with one command.

  python -m vitlab [key=value ...]

EXAMPLES
  python -m vitlab
      The demo, minutes on a CPU: distils a TinyViT on real digits from stored labels, and reports.
  python -m vitlab mode=check recipe.duration=30ep
      Change a value, and print the plan and estimated times before the training.
  python -m vitlab dataset.labels_per_class=10
      Only ten labelled digits per class, to compare methods with few labels.
  python -m vitlab method=supervised dataset=folder dataset.root=photos
      Finetune a pretrained TinyViT on your own images, one folder per class.
  python -m vitlab dataset=cifar100 dataset.root=data dataset.download=true model=deit_small
      Another data set, another student; with hardware=gpu on a GPU in mixed precision.
  python -m vitlab -m seed=0,1,2 recipe.lr=1e-3,3e-3 sweep.jobs=2
      A run per combination, two in parallel, and a comparison with mean ± std over seeds.

CHOICES (GROUP=NAME; descriptions: mode=list group=GROUP)
{groups}

KEYS (KEY=VALUE; descriptions: mode=list key=GROUP)
  seed=0  name=TEXT  output=FOLDER  only=STAGE (and what it needs)  fresh=true (a second run beside)
  recipe.lr=3e-4  recipe.duration=90ep|5000st  recipe.augmentation.flip=0.5  model.args.depth=4
  dataset.val_fraction=0.1 (held out of training; a softmax temperature is fitted on it)
  dataset.size=64|[256,448]  model.name=TIMM_NAME  model.checkpoint=FILE  model=RUN  teacher=RUN

MODES
{modes}

FILES
  A run is a folder, outputs/METHOD/NAME-HASH: models, stored labels, metrics.jsonl, report.html.
  The same command continues it, also after Ctrl-C or a power failure; if it is finished, it
  prints the table. Data sets are searched in dataset.root, then in $VITLAB_DATA/NAME. The choices
  are YAML files in {conf}

EXIT CODES  0 done   1 internal error   2 a mistake in the command or in files   130 interrupted
"""

LIST_WORDS = ("group", "key")
INDENT, WIDTH = 14, 100


def page() -> str:
    """The help page."""
    groups = [_line(name, group.meaning, choices(conf_dir(), name)) for name, group in GROUPS.items()]
    modes = [f"  {name:<{INDENT - 2}}{meaning}" for name, meaning in mode_meanings().items()]
    conf = conf_dir()
    shown = conf.relative_to(Path.cwd()) if conf.is_relative_to(Path.cwd()) else conf
    return PAGE.format(version=__version__, groups="\n".join(groups), modes="\n".join(modes), conf=f"{shown}/").rstrip()


def answer_list(words: list[str]) -> str:
    """The output of ``mode=list``: the groups, the choices of ``group=``, or the keys under ``key=``.

    Raises:
        UserError: another argument, or an unknown group or key.
    """
    selection = {
        word.partition("=")[0]: word.partition("=")[2] for word in words if word.partition("=")[0] in LIST_WORDS
    }
    others = [word for word in words if word.partition("=")[0] not in LIST_WORDS]
    for word in others:
        _check_word(word, selection)
    if len(selection) == 2:
        raise UserError("mode=list takes group=GROUP or key=KEY, not both.", "Leave one of them out.")
    if "key" in selection:
        return list_keys(selection["key"], others)
    if others:
        raise UserError(f"mode=list does not read {' '.join(others)}.", "Leave it out.")
    return list_group(selection["group"]) if "group" in selection else list_groups()


def list_groups() -> str:
    """All groups with their descriptions and choices."""
    rows = [_row(name, group.meaning, choices(conf_dir(), name)) for name, group in GROUPS.items()]
    return "\n".join([*rows, "", "Descriptions of the names: mode=list group=GROUP. Keys: mode=list key=GROUP."])


def list_group(group: str) -> str:
    """Every choice of a group with its description, the first comment line of its file.

    Raises:
        UserError: there is no such group.
    """
    if group not in GROUPS:
        near = nearest(group, GROUPS)
        cure = f"Did you mean group={near}? " if near else ""
        raise UserError(f"There is no group '{group}'.", f"{cure}The groups are: {', '.join(GROUPS)}.")
    names = choices(conf_dir(), group)
    width = max(map(len, names), default=0) + 2
    rows = [_wrapped(f"  {name:<{width}}", head(conf_dir() / group / f"{name}.yaml")) for name in names]
    count = f"{len(names)} choices" if len(names) != 1 else "1 choice"
    foot = f"{count}; choose with {group}=NAME."
    if group == "model":
        foot += " Any other timm model: model.name=TIMM_NAME. A model of yours: model=RUN."
    if group == "teacher":
        foot += " A model of yours: teacher=RUN; several are an ensemble: teacher=[RUN,RUN]."
    if group == "recipe":
        foot += " Also for the teacher: recipe@teacher.recipe=NAME."
    if group != "experiment":
        foot += f" Its keys: mode=list key={group}."
    return "\n".join([f"{group}: {GROUPS[group].meaning}", "", *rows, "", _wrapped("", foot)])


def list_keys(key: str, words: list[str]) -> str:
    """The keys under ``key`` (the top-level keys if it is empty) with type, value and description. The values are the
    defaults of the schema, or with ``words`` those of the composed configuration, which takes longer.

    Raises:
        UserError: there is no such key, or a mistake in ``words``.
    """
    from vitlab.cli.list_keys import describe  # imports OmegaConf

    return describe(key, words, _wrapped)


def _check_word(word: str, selection: dict[str, str]) -> None:
    name, equals, value = word.partition("=")
    if not equals and not selection and name in GROUPS:
        raise UserError(f"'{word}' is not key=value.", f"Did you mean mode=list group={name}?")
    near = nearest(name, LIST_WORDS)
    if near and name not in GROUPS and not selection:
        raise UserError(f"mode=list has no {name}=.", f"Did you mean {near}={value or 'NAME'}?")


def _row(name: str, meaning: str, names: list[str]) -> str:
    return f"  {name:<{INDENT - 2}}{meaning}\n" + _wrapped(" " * INDENT, ", ".join(names))


def _line(name: str, meaning: str, names: list[str]) -> str:
    """One line for a group: its description and as many names as fit."""
    if not names:
        return f"  {name:<{INDENT - 2}}{meaning}"
    start, end = f"  {name:<{INDENT - 2}}{meaning}: ", f", ... ({len(names)})"
    text = start + ", ".join(names)
    while len(text) > WIDTH:
        names = names[:-1]
        text = start + ", ".join(names) + end
    return text


def _wrapped(indent: str, text: str) -> str:
    import shutil  # not at the head: the help page needs neither
    import textwrap

    width = max(min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH), 60)
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )
