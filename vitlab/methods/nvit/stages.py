"""The stages around pruning: the dense network, its latency table, export, finetuning."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitlab.config import Config, ModelConfig
from vitlab.data.build import build_source
from vitlab.errors import UserError
from vitlab.files import read_json, write_json
from vitlab.measure.timing import device_name
from vitlab.methods.nvit.options import NViTOptions, has_weights
from vitlab.models.artifact import load_model, read_meta, save_model
from vitlab.models.build import build_model
from vitlab.models.pruning.units import find_axes
from vitlab.models.vit_structure import VitStructure
from vitlab.stage import Context
from vitlab.tasks.base import find_task
from vitlab.training.distributed import device_of
from vitlab.training.train import prepare, train_on_labels

TABLE = "latency.json"
PARTIAL = "latency.partial.json"


def check_network(config: Config) -> None:
    """Refuse a network that cannot be pruned, and weights without a classifier for the data.

    Raises:
        UserError: naming the part, or the key.
    """
    find_axes(build(config, pretrained=False))


def build(config: Config, pretrained: bool) -> nn.Module:
    """The dense network of ``model=`` with a classifier for the data."""
    classes = build_source(config.dataset, "train", config.seed).classes
    head = find_task(config.task).head(classes)
    torch.manual_seed(config.seed)
    return build_model(config.model, size=config.dataset.size, classes=classes, pretrained=pretrained, **head)


def dense(context: Context, options: NViTOptions) -> dict[str, object]:
    """Take the weights that are given, or train on the labels: where there are none, or where they are of other
    classes, from which the training starts. Either way the dense network becomes an artifact.

    Raises:
        UserError: the weights are of other classes, and there is no recipe for it.
    """
    config, start = context.config, time.monotonic()
    if has_weights(config):
        training = prepare(context, config.model, config.recipe)
        if has_classifier(training.network):
            seconds = round(time.monotonic() - start, 2)
            return {**training.save(), "steps": 0, "seconds": seconds, "notes": ["The dense network was loaded."]}
    if options.dense is None:
        raise UserError(
            f"The weights of model '{config.model.name}' are of other classes than those of {config.dataset.name}, so "
            "that its classifier is empty.",
            "Train it on the labels first: recipe@method.dense=finetune.",
        )
    return train_on_labels(context, config.model, options.dense)


def has_classifier(network: nn.Module) -> bool:
    """Whether the heads of a timm ViT have weights: those of other classes were set to zero when they were loaded."""
    heads = [getattr(network, name, None) for name in ("head", "head_dist")]
    return all(bool(one.weight.any()) for one in heads if isinstance(one, nn.Linear))


def latency(context: Context, options: NViTOptions) -> dict[str, object]:
    """Measure the latency table on this device, or copy the one that is given."""
    from vitlab.methods.nvit.latency import load_table, measure

    start, path = time.monotonic(), context.folder / TABLE
    if options.latency.table != "measure":
        table = load_table(Path(options.latency.table).expanduser())
    else:
        network = build(context.config, pretrained=False)
        spec = (
            replace(options.latency, rounds=1, held_out=2, points=2, mlp_points=2)
            if context.dry_run
            else options.latency
        )
        table = measure(
            network,
            structure_of(network),
            vars(options.prune.groups),
            spec,
            device=device_of(context.config),
            partial=context.folder / PARTIAL,
            progress=_progress(context),
        )
    table.save(path)
    (context.folder / PARTIAL).unlink(missing_ok=True)
    error = table.mean_error
    notes = []
    if error is not None:
        busy = "; the machine was busy, so times may be too long" if table.busy else ""
        notes.append(
            f"The latency table predicts {len(table.held_out)} random structures to {error:.1%} on average "
            f"({table.conditions.device}, batch {table.conditions.batch}{busy})."
        )
    return {"seconds": round(time.monotonic() - start, 2), "notes": notes}


def _progress(context: Context) -> Any:
    from vitlab.training.interrupt import stop_if_requested
    from vitlab.training.progress import print_line

    shown = [-1]

    def progress(done: int, total: int) -> None:
        stop_if_requested()
        if (tenth := 10 * done // total) > shown[0] and not context.dry_run:
            shown[0] = tenth
            print_line(f"latency: {done} of {total} samples")

    return progress


def structure_of(network: nn.Module) -> VitStructure:
    """Widths of a timm ViT, or of a pruned one."""
    from vitlab.models.pruning.gates import live_structure
    from vitlab.models.pruning.units import all_live

    axes = find_axes(network)
    return live_structure(network, axes, all_live(axes))


def cut(context: Context, options: NViTOptions, dense: Path, pruned: Path) -> dict[str, object]:
    """Cut the pruned units out of the weights, and time the dense and the smaller network in turns on this device.

    ``export.json`` has the structure, the largest difference of the logits, and both speed-ups.
    """
    from vitlab.methods.nvit.prune import RECORD, load_pruned
    from vitlab.models.pruning.export import export

    start, meta, original = time.monotonic(), read_meta(dense), load_model(dense).eval()
    found = export(load_pruned(pruned, load_model(dense)).eval(), options.form)
    meta = replace(meta, name="pruned_vit", args=found.args, method="nvit", metrics={}, sha256="")
    save_model(context.folder, found.model, meta)
    before, after = (sum(p.numel() for p in one.parameters()) for one in (original, found.model))
    device = device_of(context.config)
    ratio, low, high = speed_up(original.to(device), found.model.to(device), options.latency.batch)
    target = read_json(pruned / RECORD)["target"]
    write_json(
        context.folder / "export.json",
        {
            "structure": found.structure.as_json(),
            "form": found.form,
            "difference": found.difference,
            "logits": found.logits,
            "speed_up": {"batch": options.latency.batch, "measured": ratio, "interval": [low, high]},
            "target": target,
        },
    )
    predicted = f"; the latency table predicts {1 / target['reached']:.2f}" if target["name"] == "latency" else ""
    return {
        "seconds": round(time.monotonic() - start, 2),
        "params": after,
        "notes": [
            f"The exported network has {after:,} of {before:,} parameters; its logits differ from those of the masked "
            f"one by at most {found.difference:.1e} (largest logit {found.logits:.3g}).",
            f"It is {ratio:.2f} times as fast as the dense network (95 % interval {low:.2f} to {high:.2f}, batches of "
            f"{options.latency.batch} on {device_name(device)}){predicted}.",
        ],
    }


def speed_up(dense: nn.Module, small: nn.Module, batch: int, repeats: int = 15) -> tuple[float, float, float]:
    """How many times as fast ``small`` is, timed in turns with ``dense``: the median ratio and its 95 % interval."""
    from vitlab.measure.timing import Contender, forward_pass, time_interleaved

    first = next(dense.parameters())
    images = torch.randn(batch, *input_shape(dense), device=first.device)
    small_first = [Contender("small", "eager", batch, forward_pass(small.eval(), images))]
    found = time_interleaved(
        [*small_first, Contender("dense", "eager", batch, forward_pass(dense.eval(), images))], repeats
    )
    return found[1].ratio, found[1].ratio_lo, found[1].ratio_hi


def input_shape(network: nn.Module) -> tuple[int, ...]:
    """[C, H, W] of the images of a timm ViT."""
    embed: Any = network.patch_embed
    return (embed.proj.in_channels, *embed.img_size)


def finetune(
    context: Context, options: NViTOptions, dense: Path, teacher: Path | None, exported: Path
) -> dict[str, object]:
    """Train the exported network with the divergence head by head, in eval mode unless the options say otherwise
    (specification 9)."""
    from vitlab.methods.nvit.training import prepare_pruned

    assert options.finetune is not None
    training = prepare_pruned(
        context,
        options.finetune,
        exported,
        teacher,
        options,
        dense=dense,
        kl_tau=options.loss.finetune_kl_tau,
        kl_pairs="each",
    )
    training.learner.student_eval = options.finetune_mode == "eval"
    if options.sparsity is None:
        training.run()
        return training.save()
    from vitlab.methods.nvit.sparse_callback import KeepSparse
    from vitlab.models.pruning.sparsity import Sparsity, count_nonzeros

    sparsity = Sparsity(training.learner.student)
    sparsity.apply_to(training.learner.student)
    training.run([KeepSparse(sparsity)])
    found = count_nonzeros(training.learner.student)
    dense_layers = f"; not eligible and dense: {', '.join(sparsity.left_out)}" if sparsity.left_out else ""
    note = f"2:4 sparsity leaves {found.nonzero:,} of {found.total:,} parameters{dense_layers}."
    return {**training.save(), "nonzero": found.nonzero, "notes": [note]}


def revit(context: Context, options: NViTOptions, teacher: Path | None) -> dict[str, object]:
    """Train a redistributed network from scratch, with the labels and the class of the CNN (specification 10)."""
    from vitlab.methods.nvit.training import set_objective

    config = context.config
    args: dict[str, Any] = {**config.model.args, "embed_dim": options.revit, "distilled": teacher is not None}
    training = prepare(context, ModelConfig(name="revit", args=args), config.recipe, teacher=teacher)
    set_objective(training.learner, options, kl_weight=0.0)
    training.run()
    return training.save()
