"""The typed tree of keys, and what the groups and modes are. No torch, no Hydra."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlab.config.tree import (
        AuditConfig,
        AugmentationConfig,
        BenchmarkConfig,
        Config,
        DatasetConfig,
        DebugConfig,
        EvaluationConfig,
        ExplainConfig,
        ExportConfig,
        HardwareConfig,
        LoggerConfig,
        ModelConfig,
        PaperConfig,
        PredictConfig,
        RecipeConfig,
        SlurmConfig,
        SweepConfig,
        TaskConfig,
        TeacherConfig,
        TrainerConfig,
        to_steps,
    )

__all__ = [
    "AuditConfig",
    "AugmentationConfig",
    "BenchmarkConfig",
    "Config",
    "DatasetConfig",
    "DebugConfig",
    "EvaluationConfig",
    "ExplainConfig",
    "ExportConfig",
    "HardwareConfig",
    "LoggerConfig",
    "ModelConfig",
    "PaperConfig",
    "PredictConfig",
    "RecipeConfig",
    "SlurmConfig",
    "SweepConfig",
    "TaskConfig",
    "TeacherConfig",
    "TrainerConfig",
    "to_steps",
]


def __getattr__(name: str) -> Any:
    # Making the dataclasses costs as much as the rest of the help page, which needs the catalogue alone.
    if name not in __all__:
        raise AttributeError(f"module 'vitlab.config' has no attribute '{name}'")
    from vitlab.config import tree

    return getattr(tree, name)
