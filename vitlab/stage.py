"""A stage of a method, what it may know of the run around it, and the recipes and networks of stages.

Light, as the command line reads stages to print a plan; and below ``methods/``, as training is handed a context.
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
    """One step of a method: artifacts in, one artifact out."""

    name: str
    needs: tuple[str, ...]  # stages whose artifacts are read, where those stages run
    reads: tuple[str, ...]  # config groups that are read
    makes: str  # "model", "store", "architecture"
    title: str  # how the report calls the artifact
    role: str  # of a model: "teacher", "student" or "baseline"; the last student is the method's result
    when: Callable[[Config], bool] | None  # None: always
    alone: bool = False  # on rank 0 only; the other ranks wait

    def runs(self, config: Config) -> bool:
        """Whether this stage is part of the story under ``config``."""
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
    ``context.artifact(stage)``, and returns what its marker records (steps, seconds, sizes). It may be killed at any
    moment and is then called again on the same folder. Several processes call it together, unless it is ``alone``: then
    rank 0 does while the others wait (a design, a table that is measured once), and nothing in it may need all ranks.
    """

    def mark(function: Function) -> Function:
        name = function.__name__
        made = Stage(name, needs, reads, makes, title or name, role, when, alone)
        function.__stage__ = made  # type: ignore[attr-defined]
        return function

    return mark


class Context:
    """What a stage may know of the run around it.

    Attributes:
        config: the whole tree.
        stage: this stage.
        folder: where its artifact goes; what an earlier, killed session left is still there.
        recorder: of ``metrics.jsonl``; None on ranks other than 0.
        full_config: in a rehearsal (mode=check) the configuration of the real thing, while ``config`` is cut to a few
            images: the stage does a few batches and returns the sizes and seconds of the whole. Else None.
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
        """Whether this is a rehearsal."""
        return self.full_config is not None

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes (rank 0)."""
        return self.recorder is not None

    def artifact(self, stage: str) -> Path:
        """Folder of the artifact that ``stage`` made.

        Raises:
            RuntimeError: if the stage was not declared in ``needs``, or does not run.
        """
        if stage not in self.stage.needs or stage not in self._folders:
            raise RuntimeError(f"stage '{self.stage.name}' reads the artifact of '{stage}', which it does not need")
        return self._folders[stage]


def recipes_of(config: Config, reads: set[str]) -> dict[str, RecipeConfig]:
    """The recipes that will be trained with, by key."""
    found = {"recipe": config.recipe} if "recipe" in reads else {}
    if "teacher" in reads and config.teacher.train and config.teacher.recipe is not None:
        found["teacher.recipe"] = config.teacher.recipe
    for name, value in vars(config.method).items():
        if isinstance(value, RecipeConfig):
            found[f"method.{name}"] = value
    return found


def models_of(config: Config, reads: set[str]) -> list[ModelConfig]:
    """The networks that will be trained, but for teachers; one without a name is not asked for."""
    found = [config.model] if "model" in reads else []
    options = vars(config.method).values()
    return found + [value for value in options if isinstance(value, ModelConfig) and value.name]
