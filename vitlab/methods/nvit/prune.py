"""The *prune* stage: train the dense network while events close gates, until the cost meets its target (section 3).

After every optimiser step the weights of pruned units are set to zero again. The first event also puts the student into
eval mode, without drop path, and begins the divergence from the dense network (specification 8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.files import atomic_write, read_json, write_json
from vitlab.measure.latency_table import LatencyTable
from vitlab.methods.nvit.gains import BlockCost, dims_of, macs_cost, params_cost
from vitlab.methods.nvit.options import NViTOptions, PruneOptions, resolved, target_of
from vitlab.methods.nvit.pruner import Event, GlobalPruner, PruningRule
from vitlab.methods.nvit.training import prepare_pruned
from vitlab.models.pruning.gates import ATTRIBUTE, Gates, attach_gates, live_structure
from vitlab.models.pruning.units import table as axes_table
from vitlab.models.vit_structure import TokenLayout, VitStructure, count_macs, count_params, read_structure
from vitlab.stage import Context
from vitlab.training.learner import Learner
from vitlab.training.sharding import uses_sharding

PRUNED = "pruned.safetensors"
"""Weights of the masked network with its gates."""

RECORD = "pruning.json"
"""Structure before and after, target, and all events."""


@dataclass(frozen=True)
class Target:
    """A share of the cost of the dense network.

    Attributes:
        name: latency, macs or params.
        share: of the dense network's cost.
        of_network: cost of a structure.
        of_block: its part that depends on the block, for the gains.
    """

    name: str
    share: float
    of_network: Callable[[VitStructure], float]
    of_block: BlockCost

    def ratio(self, structure: VitStructure, dense: VitStructure) -> float:
        """Cost of ``structure`` as a share of that of ``dense``."""
        return self.of_network(structure) / self.of_network(dense)


def make_target(options: NViTOptions, network: nn.Module, table: LatencyTable | None) -> Target:
    """The target of the options.

    Args:
        table: of latencies, where the target is one.
    """
    name, share = target_of(options)
    if name == "latency":
        assert table is not None
        seconds = table.seconds
        return Target(name, share, lambda one: float(seconds(dims_of(one)).sum()), seconds)
    layout = layout_of(network)
    if name == "macs":
        return Target(name, share, lambda one: count_macs(one, layout), macs_cost(layout.tokens))
    return Target(name, share, lambda one: count_params(one, layout), params_cost)


def layout_of(network: nn.Module) -> TokenLayout:
    """Tokens and classifiers of a timm ViT."""
    net: Any = network
    embed = net.patch_embed
    return TokenLayout(
        patches=int(embed.num_patches),
        patch_values=embed.proj.weight[0].numel(),
        prefix=int(net.num_prefix_tokens),
        classifiers=2 if hasattr(net, "head_dist") else 1,
        classes=int(net.num_classes),
    )


def rule_of(prune: PruneOptions, seed: int) -> PruningRule:
    """The options as the pruner takes them."""
    score = prune.score
    return PruningRule(
        criterion=prune.criterion,
        scope=score.scope,  # type: ignore[arg-type]  # checked
        norm=score.norm,
        momentum=score.momentum,
        correct_bias=bool(score.correct_bias),
        reset_after_first=bool(score.reset_after_first),
        eta=prune.eta,
        eta_scale=str(prune.eta_scale),
        schedule=str(prune.schedule),
        units_per_event=prune.units_per_event,
        divisor=prune.divisor,
        least=prune.least,
        seed=seed,
    )


class PruningCallback(Callback):
    """Collects importance at every optimiser step, prunes at every ``interval``-th, ends the training at the target.

    Args:
        pruner: of the student.
        target: what the cost is to fall to.
        dense: structure of the unpruned network.
        prune: interval, and whether scores are of the weights before the update.
        most: events after which the training ends; None: no limit.
        table: fingerprint of the latency table, or ""; a checkpoint of another one is refused.
        write: called on rank 0 with the row of an event.

    Attributes:
        events: rows of all events so far, as in :data:`RECORD`.
    """

    def __init__(
        self,
        pruner: GlobalPruner,
        target: Target,
        dense: VitStructure,
        prune: PruneOptions,
        most: int | None,
        table: str,
        write: Callable[[int, dict[str, float]], None],
    ) -> None:
        self.pruner, self.target, self.dense, self.prune = pruner, target, dense, prune
        self.most, self.table, self.write = most, table, write
        self.events: list[dict[str, Any]] = []
        self._gradients: dict[str, Tensor] | None = None

    @property
    def state_key(self) -> str:
        return "pruning"

    def state_dict(self) -> dict[str, Any]:
        return {"pruner": self.pruner.state_dict(), "events": self.events, "table": self.table}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["table"] != self.table:
            raise UserError(
                "The checkpoint of stage prune was made with another latency table.",
                "Put that table back, or start with fresh=true.",
            )
        self.pruner.load_state_dict(state_dict["pruner"])
        self.events = list(state_dict["events"])

    def on_before_optimizer_step(self, trainer: L.Trainer, learner: L.LightningModule, optimizer: Any) -> None:
        assert isinstance(learner, Learner)
        if self.prune.score.weights == "pre":
            self.pruner.collect()
        elif learner.clip is not None:  # clipping follows, and scales the gradients in place
            named = learner.student.named_parameters()
            self._gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}

    def on_train_batch_end(self, trainer: L.Trainer, learner: L.LightningModule, *_: object) -> None:
        assert isinstance(learner, Learner)
        if not learner.completes_step:
            return
        gates = self.pruner.gates
        gates.apply_to(learner.student)
        if self.prune.score.weights == "post":
            self.pruner.collect(self._gradients)
            self._gradients = None
        if not self._is_due(learner.step):
            return
        event = self.pruner.event()
        gates.apply_to(learner.student)
        learner.student_eval = True
        ratio = self.target.ratio(event.structure, self.dense)
        self._record(event, learner.step, ratio)
        # The official schedule also counts groups that are pruned already or must stay: an event of it may prune none.
        exhausted = not event.pruned and self.prune.schedule == "exact"
        if ratio <= self.target.share or exhausted or len(self.events) == self.most:
            learner.finished = True

    def _is_due(self, step: int) -> bool:
        """Whether an event follows the step with index ``step``; in the released code the first interval has a step
        more."""
        interval = self.prune.interval
        return step > 0 and step % interval == 0 if self.prune.schedule == "official" else (step + 1) % interval == 0

    def _record(self, event: Event, step: int, ratio: float) -> None:
        row = {
            **asdict(event),
            "structure": event.structure.as_json(),
            "pruned": {name: list(units) for name, units in event.pruned.items()},
            "step": step + 1,
            self.target.name: ratio,
        }
        self.events.append(row)
        numbers = ("threshold", "eta", "lowest", "highest", "overlap")
        self.write(step + 1, {f"prune_{self.target.name}": ratio, **{f"prune_{one}": row[one] for one in numbers}})


def prune(
    context: Context, options: NViTOptions, dense: Path, teacher: Path | None, table: Path | None
) -> dict[str, object]:
    """Run the stage.

    Args:
        dense: artifact of the network that is pruned, which is also the teacher of the divergence.
        teacher: artifact of the CNN, if there is one.
        table: latency table, if the target is a latency.
    """
    config, rule = context.config, resolved(options)
    if uses_sharding(config):
        raise UserError("NViT scores complete gradients, and hardware=fsdp shards them.", "Choose hardware=ddp.")
    training = prepare_pruned(context, config.recipe, dense, teacher, options, kl_from=first_event(rule))
    learner = training.learner
    # A compiled network would be compiled anew for every structure, which costs more than it saves.
    object.__setattr__(learner, "forward_student", learner.student)
    gates = attach_gates(learner.student, rule.norm_stats, asdict(rule.groups))  # type: ignore[arg-type]  # checked
    if context.dry_run and context.is_main:
        print(f"\n{axes_table(gates.axes)}\n")
    before = live_structure(learner.student, gates.axes, gates.gates)
    latency = LatencyTable.load(table) if table is not None else None
    target = make_target(options, learner.student, latency)
    refuse_unreachable(target, smallest(gates, before, rule.least), before)
    pruner = GlobalPruner(learner.student, rule_of(rule, config.seed), target.of_block)

    def write(step: int, values: dict[str, float]) -> None:
        if context.recorder is not None:
            context.recorder.write(stage=context.stage.name, step=step, **values)

    fingerprint = latency.fingerprint if latency is not None else ""
    callback = PruningCallback(pruner, target, before, rule, options.target.events, fingerprint, write)
    learner.can_finish = True
    training.run([callback])
    after = pruner.structure
    ratio = target.ratio(after, before)
    record = {
        "target": {"name": target.name, "share": target.share, "reached": ratio},
        "dense": before.as_json(),
        "structure": after.as_json(),
        "norm_stats": rule.norm_stats,
        "groups": asdict(rule.groups),
        "non_finite": pruner.importance.non_finite,
        "events": callback.events,
    }
    if context.is_main:
        from vitlab.methods.nvit.figures import write_figures

        state = {name: value.contiguous().cpu() for name, value in learner.student.state_dict().items()}
        atomic_write(context.folder / PRUNED, save_bytes(state))
        write_json(context.folder / RECORD, record)
        write_figures(context.folder, record)
    notes = [describe(target, ratio, len(callback.events), learner.step)]
    return {
        "seconds": round(training.seconds, 2),
        "steps": learner.step if learner.finished else training.expected_steps,
        "images": training.expected_images,
        "events": len(callback.events),
        "notes": notes,
    }


def first_event(prune: PruneOptions) -> int:
    """First optimiser step after the first event."""
    return prune.interval + 1 if prune.schedule == "official" else prune.interval


def smallest(gates: Gates, full: VitStructure, least: int) -> VitStructure:
    """The smallest structure that pruning can reach: ``least`` groups of every axis."""
    left: dict[str, list[int]] = {}
    for axis in gates.axes:
        left.setdefault(axis.kind, []).append(min(axis.units, axis.group * least))
    heads, qk, v, mlp = (tuple(left[kind]) for kind in ("head", "qk", "v", "mlp"))
    return VitStructure(left["embedding"][0], heads, qk, v, mlp, full.head_dim)


def refuse_unreachable(target: Target, smallest: VitStructure, dense: VitStructure) -> None:
    """
    Raises:
        UserError: the smallest structure costs more than the target.
    """
    if (lowest := target.ratio(smallest, dense)) > target.share:
        raise UserError(
            f"method.target.{target.name}={target.share:g} cannot be reached: with one group left of every axis the "
            f"network still costs {lowest:.3f} of the dense one.",
            "Give a larger share, or smaller groups (method.prune.groups).",
        )


def describe(target: Target, ratio: float, events: int, steps: int) -> str:
    """A sentence for the report."""
    found = f"Pruned to {ratio:.3f} of the dense network's {target.name} in {events} events, {steps} steps"
    if ratio <= target.share:
        return f"{found} (target {target.share:g})."
    return (
        f"{found}: the target of {target.share:g} was not met. Lengthen recipe.duration, shorten "
        "method.prune.interval, or raise method.prune.units_per_event."
    )


def load_pruned(folder: Path, network: nn.Module) -> nn.Module:
    """``network``, a dense one, with the weights and gates of the stage's ``folder``."""
    from safetensors.torch import load_file

    record = read_json(folder / RECORD)
    attach_gates(network, record["norm_stats"], record["groups"])
    network.load_state_dict(load_file(folder / PRUNED))
    assert isinstance(getattr(network, ATTRIBUTE), Gates)
    return network


def pruned_structure(folder: Path) -> VitStructure:
    """The structure that the stage left in its ``folder``."""
    return read_structure(read_json(folder / RECORD)["structure"])
