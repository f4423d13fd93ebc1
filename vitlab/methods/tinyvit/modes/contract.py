"""``mode=contract``: make a network smaller step by step (TinyViT's model scaling; for the supported families)."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.compose.schema import complete
from vitlab.config import Config, DatasetConfig, ModelConfig
from vitlab.config.composed import Composed
from vitlab.errors import UserError
from vitlab.files import stable_dict
from vitlab.run.environment import environment
from vitlab.run.run import Run

if TYPE_CHECKING:
    from vitlab.methods.tinyvit.contract import Limits
    from vitlab.methods.tinyvit.families import Args, Family

MEANING = "make model= smaller step by step to method.contract.params (TinyViT's model scaling)"
READS = ("method", "model", "dataset", "recipe", "experiment", "debug", "name", "fresh")
ONE_DEVICE = True


def answer(composed: Composed) -> int:
    """Search from ``model=`` under ``method.contract.*``; after a kill the same command continues.

    Raises:
        UserError: another method, budgets that no candidate meets.
    """
    config = composed.config
    options = getattr(config.method, "contract", None)
    if options is None:
        raise UserError(f"mode=contract is TinyViT's; method={config.method.name} has none.", "Give method=tinyvit.")
    prefix = config.name or f"{config.dataset.name}-{composed.network}"
    identity = composed.identity() | {"mode": "contract"}
    run = Run.open(Path(config.output), "contract", prefix, identity, composed.tree, config.fresh, complete)
    command = shlex.join(["python", "-m", "vitlab", *composed.overrides])
    if run.state == "finished":
        print(run.read_finished()["table"])
        return 0
    start = start_of(config)  # refuses what cannot be before a folder is made
    run.lock(command)
    try:
        run.note_environment(environment(command))
        run.finish({"table": search(config, start, run.folder)})
    finally:
        run.release()
    print(run.read_finished()["table"])
    return 0


@dataclass(frozen=True)
class Start:
    """What a contraction starts from: timm's name, the arguments that stay, the family of the others, the classes."""

    name: str
    fixed: Args
    family: Family
    classes: int
    limits: Limits


def start_of(config: Config) -> Start:
    """The network of ``model=`` for the classes of the data set, and the targets under ``method.contract.*``.

    Raises:
        UserError: a network that contraction does not support, or a target that it cannot reach.
    """
    from vitlab.data.build import open_splits
    from vitlab.methods.tinyvit.contract import Limits, check_target
    from vitlab.methods.tinyvit.families import family_of
    from vitlab.models.build import resolve_architecture

    options, size = config.method.contract, config.dataset.size
    limits = Limits(*(getattr(options, one.name) for one in fields(Limits)))
    classes = len(open_splits(config.dataset, config.seed, config.debug.max_images)["train"].classes)
    name, args = resolve_architecture(config.model, size)
    family = family_of(name, args, size, classes)
    check_target(family, limits)
    fixed = {key: value for key, value in config.model.args.items() if key not in family.start}
    return Start(name, fixed, family, classes, limits)


def search(config: Config, start: Start, folder: Path) -> str:
    """Run the contraction and write its result into ``folder``; returns the text to print."""
    import torch

    from vitlab.methods.tinyvit import contraction_report
    from vitlab.methods.tinyvit.contract import Journal, contract, outline
    from vitlab.models.build import build_model
    from vitlab.training.distributed import configure_torch, device_of
    from vitlab.training.interrupt import install_signal_handlers, stop_if_requested
    from vitlab.training.progress import print_line

    install_signal_handlers()
    configure_torch(config)
    options, size = config.method.contract, config.dataset.size
    name, fixed, family, limits, classes = start.name, start.fixed, start.family, start.limits, start.classes
    for line in outline(family, limits, classes):
        print_line(f"contraction: {line}")

    def candidate(args: Args) -> ModelConfig:
        return ModelConfig(name=name, args=fixed | args, mean=config.model.mean, std=config.model.std)

    def throughput(args: Args) -> float:
        from vitlab.measure.throughput import AUTOCAST, measure_throughput

        stop_if_requested()
        torch.manual_seed(config.seed)
        network = build_model(candidate(args), classes, size).to(device_of(config))
        precision = AUTOCAST.get(config.trainer.precision, "32")
        batch, seconds = options.batch_size, options.seconds
        return measure_throughput(network, size, batch, seconds / 2, seconds, precision).images_per_second

    def score(args: Args) -> float:
        stop_if_requested()
        if options.proxy == "params":
            return float(family.cost(args)[0])
        return proxy_accuracy(config, candidate(args), folder)

    settings = {"model": name, "args": config.model.args, "limits": stable_dict(limits), "proxy": options.proxy}
    if options.proxy == "train":
        settings |= {"duration": options.duration, "holdout": options.holdout}
    journal = Journal(folder / "journal.jsonl", settings)
    log: Callable[[str], None] = print_line
    chosen = contract(family, limits, journal, throughput, score, log, 1.5 * options.seconds)
    head = family.head(chosen[-1].args)
    files = contraction_report.write(folder, journal.rows, name, fixed, options.proxy, classes, head)
    first, last = chosen[0], chosen[-1]
    faster = f", {last.throughput / first.throughput:.2f}x as fast" if last.throughput and first.throughput else ""
    lines = [
        contraction_report.table(journal.rows, options.proxy),
        f"from {first.params:,} to {last.params:,} parameters, {first.macs:,} to {last.macs:,} multiply-adds{faster}",
        contraction_report.head_text(last.params, classes, head),
        *(f"written  {file}" for file in files),
    ]
    return "\n".join(lines)


def with_validation(dataset: DatasetConfig, seed: int, holdout: float) -> DatasetConfig:
    """``dataset`` with ``holdout`` of every training class for validation, where it has no separate split."""
    from vitlab.data.build import open_splits

    splits = open_splits(dataset, seed)
    separate = splits["val"].split_name != splits["test"].split_name
    return dataset if separate else replace(dataset, val_fraction=holdout)


def proxy_accuracy(config: Config, model: ModelConfig, folder: Path) -> float:
    """The proxy: top-1 after a short training on the labels, interrupted and continued like any run.

    Measured on a validation split, or where there is none on images held out of the training split: no candidate is
    chosen on the images that the result is measured on.
    """
    from vitlab.methods.base import Context, Stage
    from vitlab.methods.tinyvit.contract import digest
    from vitlab.run.recorder import Recorder, read_rows
    from vitlab.tasks.base import find_task
    from vitlab.training.train import train_on_labels

    options = config.method.contract
    config = replace(config, dataset=with_validation(config.dataset, config.seed, options.holdout))
    recipe = replace(config.recipe, duration=options.duration, warmup="10%", decay_at=[])
    key = digest(model.args)
    inside = folder / "candidates" / key
    inside.mkdir(parents=True, exist_ok=True)
    stage = Stage(f"candidate {key}", (), (), "model", "candidate", "student", None)
    recorder = Recorder(inside / "metrics.jsonl")
    try:
        train_on_labels(Context(config, stage, {stage.name: inside}, recorder), model, recipe)
    finally:
        recorder.close()
    rows: list[dict[str, Any]] = [dict(row) for row in read_rows(inside / "metrics.jsonl")]
    metric = f"val_{find_task(config.task).headline.key}"
    value = float(next(row[metric] for row in reversed(rows) if metric in row))
    shutil.rmtree(inside)  # a thousand candidates would leave a thousand networks
    return value
