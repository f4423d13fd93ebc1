"""Checks of values that no training uses: devices, loggers, evaluation, exports, modes, sweeps."""

from __future__ import annotations

import importlib.util
import re

from vitlab.compose.rules import Where, one_of
from vitlab.config import Config
from vitlab.config.precision import HALF, no_half_on_cpu
from vitlab.data.paths import shifted_root
from vitlab.errors import UserError
from vitlab.measure.robustness_names import BACKENDS, CORRUPTIONS, FAMILIES, SHIFTED
from vitlab.report.export_formats import FORMATS, ONNX_NEEDS

LOGGERS = ("local", "csv", "tensorboard", "wandb")
SAMPLERS = ("grid", "tpe", "random", "nsga2")
PRUNERS = ("median", "halving")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
STRATEGIES = ("auto", "ddp", "fsdp")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")

PACKAGES = {
    "tensorboard": ("tensorboard",),
    "optuna": ("optuna",),
    "wandb": ("wandb",),
    "onnx": ONNX_NEEDS,
    "onnx_int8": ONNX_NEEDS,
}
"""Choice → packages that it needs."""

EXTRAS = ("tensorboard", "optuna")
"""Choices whose packages are an extra of vitlab."""


def check_run(config: Config, where: Where) -> None:
    """Refuse the first invalid value.

    Raises:
        UserError: naming the key and its possible values, or a package that is missing.
    """
    one_of("trainer.accelerator", config.trainer.accelerator, ACCELERATORS, where)
    devices = config.trainer.devices
    listed = devices if isinstance(devices, list) else []
    numbers = [one for one in listed if isinstance(one, int) and not isinstance(one, bool) and one >= 0]
    indices = listed and len(set(numbers)) == len(listed)
    count = isinstance(devices, int) and not isinstance(devices, bool) and devices >= 1
    if not (indices or devices == "auto" or count):
        raise UserError(
            f"{where('trainer.devices')}: '{devices}' is not valid.",
            "trainer.devices is a number of devices, a list of their indices such as [0,1], or auto.",
        )
    one_of("trainer.precision", config.trainer.precision, PRECISIONS, where)
    if config.trainer.accelerator == "cpu" and config.trainer.precision in HALF:
        raise no_half_on_cpu(where("trainer.precision"))
    one_of("trainer.strategy", config.trainer.strategy, STRATEGIES, where)
    one_of("slurm.executor", config.slurm.executor, ("slurm", "local"), where)
    if config.trainer.sync_batchnorm and config.trainer.accelerator in ("cpu", "mps"):
        raise UserError(
            f"{where('trainer.sync_batchnorm')}: torch synchronises BatchNorm's statistics on GPUs only.",
            "Leave it out, or choose a network without batch statistics.",
        )
    if config.sweep.name is not None and not re.fullmatch(r"\w[\w.+-]*", config.sweep.name):
        raise UserError(f"{where('sweep.name')}: not a valid folder name.", "Use letters, digits, '-', '_' and '.'.")
    _sweep(config, where)
    one_of("logger.name", config.logger.name, LOGGERS, where)
    for one in config.logger.also:
        one_of("logger.also", one, LOGGERS, where)
    for one in config.evaluation.corruptions:
        one_of("evaluation.corruptions", one, ("all", *FAMILIES, *CORRUPTIONS), where)
    if not config.evaluation.severities:
        raise UserError(f"{where('evaluation.severities')}: no severity is given.", "Give some of 1 to 5: [1,3,5].")
    for one in config.evaluation.shifted:
        one_of("evaluation.shifted", one, ("all", *SHIFTED), where)
    if config.evaluation.shifted:
        shifted_root(config.evaluation.shifted_root)
    for one in config.benchmark.backends:
        one_of("benchmark.backends", one, BACKENDS, where)
    for one in config.export.formats:
        one_of("export.formats", one, FORMATS, where)
    if config.export.push is not None and "hub" not in config.export.formats:
        raise UserError(
            f"{where('export.push')}: export.push uploads the hub layout, which is not in export.formats.",
            "Give export.formats=[hub] too.",
        )
    one_of("predict.format", config.predict.format, ("table", "jsonl", "csv"), where)
    needed = [(config.logger.name, "logger"), *((one, "logger.also") for one in config.logger.also)]
    needed += [(one, "export.formats") for one in config.export.formats]
    if config.sweep.sampler != "grid":
        needed.append(("optuna", "sweep"))
    for choice, key in needed:
        for package in PACKAGES.get(choice, ()):
            if importlib.util.find_spec(package) is None:
                extra = f'pip install "vitlab[{choice}]"' if choice in EXTRAS else f"pip install {package}"
                raise UserError(
                    f"{where(key)}: {choice} needs the package {package}, which is not installed.",
                    f"Install it ({extra}), or choose without it.",
                )


def _sweep(config: Config, where: Where) -> None:
    sweep = config.sweep
    one_of("sweep.sampler", sweep.sampler, SAMPLERS, where)
    objectives = [*sweep.maximize, *sweep.minimize]
    for one in objectives:
        if objectives.count(one) > 1:
            raise UserError(f"{where('sweep.minimize')}: {one} is given twice.", "Leave it out once.")
    if sweep.prune is not None:
        one_of("sweep.prune", sweep.prune, PRUNERS, where)
        if len(objectives) > 1:
            raise UserError(
                f"{where('sweep.prune')}: pruning needs a single metric.",
                "Give sweep.prune=null, or one metric.",
            )
