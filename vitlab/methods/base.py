"""What a method is: a class whose decorated functions are the stages, run in the order of their definition.

Everything here is light: the command line reads the stages of a method to print a plan without importing torch.
A ``method.py`` therefore imports torch, and whatever imports torch, inside its stages.
"""

from __future__ import annotations

import importlib
import inspect
import shlex
from pathlib import Path
from typing import Any, ClassVar

from vitlab.config import Config, RecipeConfig
from vitlab.config.catalogue import ALWAYS_READ
from vitlab.errors import UserError, nearest
from vitlab.stage import Context, Stage, stage

__all__ = ["Context", "Method", "Stage", "find_method", "method_names", "recipe_length", "stage"]


class Method:
    """A method of a paper. Subclasses add ``Options`` and stages; no method inherits another."""

    Options: ClassVar[type]
    """Dataclass of the keys under ``method.``; their values are in ``conf/method/<name>.yaml``."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.options: Any = config.method

    @classmethod
    def stages(cls, config: Config) -> list[Stage]:
        """The stages that run under ``config``, in order.

        Raises:
            RuntimeError: if a stage needs one that is not defined before it.
        """
        every = [f.__stage__ for f in vars(cls).values() if hasattr(f, "__stage__")]
        defined: set[str] = set()
        for one in every:
            if missing := set(one.needs) - defined:
                raise RuntimeError(f"{cls.__name__}.{one.name} needs {sorted(missing)}, not defined before it")
            defined.add(one.name)
        return [one for one in every if one.runs(config)]

    @classmethod
    def selected(cls, config: Config) -> list[Stage]:
        """The stages that this command runs: all, or those that ``only=`` names and needs.

        Raises:
            UserError: ``only=`` names no stage that runs under ``config``.
        """
        stages = cls.stages(config)
        if config.only is None:
            return stages
        by_name = {one.name: one for one in stages}
        if config.only not in by_name:
            near = nearest(config.only, by_name)
            cure = f"Did you mean only={near}?" if near else f"The stages are: {', '.join(by_name)}."
            raise UserError(f"only={config.only}: method={config.method.name} runs no such stage here.", cure)
        wanted, found = [config.only], set()
        while wanted:
            found.add(name := wanted.pop())
            wanted += [one for one in by_name[name].needs if one in by_name and one not in found]
        return [one for one in stages if one.name in found]

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse what the method cannot do, before anything runs. Override to raise :class:`UserError`."""

    @classmethod
    def length(cls, stage: Stage, config: Config) -> str:
        """Length of ``stage`` in units of the configuration, for the plan; "" for a stage without a recipe.

        Override for stages whose length is not that of ``config.recipe``.
        """
        return recipe_length(config.recipe, config) if "recipe" in stage.reads else ""

    @classmethod
    def network(cls, config: Config) -> str | None:
        """What runs are named after where their result is not ``model=``; None: ``model=``."""
        return None

    @classmethod
    def advice(cls, config: Config) -> list[tuple[str, str]]:
        """What is known to make the method pay: a clause, with its source where there is one, and the word that the
        command gets. Shown where the result is no better than the run's own baseline."""
        return []

    def check_data(self) -> None:
        """Refuse data and options on which a later stage would fail; called before the first, with torch available.

        Raises:
            UserError: naming the key.
        """

    @classmethod
    def reads(cls, config: Config) -> set[str]:
        """Config groups that at least one stage reads."""
        return set(ALWAYS_READ).union(*(one.reads for one in cls.stages(config)))


def recipe_length(recipe: RecipeConfig, config: Config) -> str:
    """Duration and batch of a recipe, as the plan shows them."""
    duration = recipe.duration if config.debug.max_steps is None else f"{config.debug.max_steps}st"
    return f"{duration}, batches of {recipe.batch_size}"


def longer(duration: str, factor: int = 3) -> str:
    """``"20ep"`` times ``factor``: ``"60ep"``."""
    number = duration.rstrip("abcdefghijklmnopqrstuvwxyz")
    return f"{float(number) * factor:g}{duration[len(number) :]}"


def suggestions(config: Config, command: str) -> list[str]:
    """The advice of the run's method, each with the command to try; last, how to see through chance."""
    advice = find_method(config.method.name).advice(config)
    lines = [f"{what}: {with_word(command, word)}" for what, word in advice]
    if advice:
        several = with_word(command, "seed=0,1,2").replace("vitlab ", "vitlab -m ", 1)
        lines.append(f"other seeds, which tell a gain from chance: {several}")
    return lines


def with_word(command: str, word: str) -> str:
    """``command`` with the value of ``word`` in place of its own; of another choice of a group, such as
    ``teacher=NAME``, the keys of the old one go."""
    key = word.partition("=")[0]
    below = () if "." in key else (f"{key}.", f"{key}@")
    kept = [one for one in shlex.split(command) if _key(one) not in (key, "fresh")]
    return shlex.join([*(one for one in kept if not _key(one).startswith(below)), word])


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0] if "=" in word else ""


def method_names() -> list[str]:
    """Names of all methods: the folders beside this file with a ``method.py``."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/method.py"))


def find_method(name: str) -> type[Method]:
    """The one :class:`Method` of ``vitlab/methods/<name>/method.py``.

    Raises:
        UserError: if there is no such folder.
    """
    if name not in method_names():
        near = nearest(name, method_names())
        hint = f"Did you mean {near}?" if near else f"There are: {', '.join(method_names())}."
        raise UserError(f"There is no method '{name}'.", hint)
    module = importlib.import_module(f"vitlab.methods.{name}.method")
    found = [
        one
        for one in vars(module).values()
        if inspect.isclass(one) and issubclass(one, Method) and one.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise RuntimeError(f"{module.__name__} must define exactly one Method, it defines {len(found)}")
    return found[0]
