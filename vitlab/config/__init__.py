"""The typed configuration tree and the catalogue of groups and modes. No torch, no Hydra."""

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
    # Creating the dataclasses takes as long as the rest of --help, which needs the catalogue only.
    if name not in __all__:
        raise AttributeError(f"module 'vitlab.config' has no attribute '{name}'")
    from vitlab.config import tree

    return getattr(tree, name)
