"""A stage of a method, the context in which it runs, and the recipes and networks that stages use.

No torch: the command line reads stages to print the plan. Not in ``methods/``: training takes a context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vitlab.config import Config, ModelConfig, RecipeConfig

if TYPE_CHECKING:
    from vitlab.run.recorder import Recorder


@dataclass(frozen=True)
class Stage:
    """One step of a method: reads artifacts, writes one artifact."""

    name: str
    needs: tuple[str, ...]  # stages whose artifacts are read, if those stages run
    reads: tuple[str, ...]  # config groups that are read
    makes: str  # "model", "store", "architecture"
    title: str  # name of the artifact in the report
    role: str  # of a model: "teacher", "student" or "baseline"; the last student is the method's result
    when: Callable[[Config], bool] | None  # None: always
    alone: bool = False  # on rank 0 only; the other ranks wait

    def runs(self, config: Config) -> bool:
        """Whether the method runs this stage under ``config``."""
        return self.when is None or self.when(config)


Function = TypeVar("Function", bound=Callable[..., "dict[str, object]"])


def stage(
    *,
    needs: tuple[str, ...] = (),
    reads: tuple[str, ...] = (),
    makes: str = "model",
    title: str = "",
    role: str = "student",
    when: Callable[[Config], bool] | None = None,
    alone: bool = False,
) -> Callable[[Function], Function]:
    """Mark a function ``(self, context) -> record`` of a :class:`Method` as a stage.

    The function writes its artifact into ``context.folder``, finds the artifacts that it needs with
    ``context.artifact(stage)``, and returns the record for its ``done.json`` (steps, seconds, sizes). The process may
    be killed at any moment; the function is then called again on the same folder. All ranks call it, unless it is
    ``alone``: then rank 0 calls it while the others wait (a design, a table that is measured once), and no collective
    operation may be in it.
    """

    def mark(function: Function) -> Function:
        name = function.__name__
        made = Stage(name, needs, reads, makes, title or name, role, when, alone)
        function.__stage__ = made  # type: ignore[attr-defined]
        return function

    return mark


class Context:
    """What a stage may read of the run.

    Attributes:
        config: the full configuration.
        stage: this stage.
        folder: of its artifact; may contain files of an earlier session that was killed.
        recorder: of ``metrics.jsonl``; None on ranks other than 0.
        full_config: in a dry run (mode=check) the configuration of the full run, while ``config`` is reduced to a few
            images: the stage runs a few batches and returns the sizes and seconds of the full run. Else None.
    """

    def __init__(
        self,
        config: Config,
        stage: Stage,
        folders: Mapping[str, Path],
        recorder: Recorder | None,
        full_config: Config | None = None,
    ) -> None:
        self.config = config
        self.stage = stage
        self.folder = folders[stage.name]
        self.recorder = recorder
        self.full_config = full_config
        self._folders = folders

    @property
    def dry_run(self) -> bool:
        """Whether this is a dry run (mode=check)."""
        return self.full_config is not None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files."""
        return self.recorder is not None

    def artifact(self, stage: str) -> Path:
        """Folder of the artifact of ``stage``.

        Raises:
            RuntimeError: ``stage`` is not declared in ``needs``, or does not run.
        """
        if stage not in self.stage.needs or stage not in self._folders:
            raise RuntimeError(f"stage '{self.stage.name}' reads the artifact of '{stage}', which it does not need")
        return self._folders[stage]


def recipes_of(config: Config, reads: set[str]) -> dict[str, RecipeConfig]:
    """The recipes of the trainings of this method, by key."""
    recipes = {"recipe": config.recipe} if "recipe" in reads else {}
    if "teacher" in reads and config.teacher.train and config.teacher.recipe is not None:
        recipes["teacher.recipe"] = config.teacher.recipe
    for name, value in vars(config.method).items():
        if isinstance(value, RecipeConfig):
            recipes[f"method.{name}"] = value
    return recipes


def models_of(config: Config, reads: set[str]) -> list[ModelConfig]:
    """The networks that are trained, without teachers; a network without a name is not used."""
    models = [config.model] if "model" in reads else []
    options = vars(config.method).values()
    return models + [value for value in options if isinstance(value, ModelConfig) and value.name]
