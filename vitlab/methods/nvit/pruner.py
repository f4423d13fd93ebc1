"""Global pruning of one network: scores at every step, gates that an event closes (specification 5 to 7).

The same on every rank: its input is the gradient of the global batch, which all ranks have alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.methods.nvit.gains import BlockCost, adjust, dims_of, relative_eta, unit_gains
from vitlab.methods.nvit.importance import NORMS, RunningImportance, unit_importance
from vitlab.methods.nvit.selection import Selection, select_exact, select_official
from vitlab.models.pruning.gates import ATTRIBUTE, Gates, live_structure
from vitlab.models.pruning.units import Axis, Scope
from vitlab.models.vit_structure import VitStructure


@dataclass(frozen=True)
class PruningRule:
    """How units are scored and selected; the defaults are ours, :meth:`official` is the released code.

    Attributes:
        criterion: ``taylor`` (the paper's), ``magnitude`` (sum of squared weights) or ``random``, for comparison.
        scope: weights that are scored: ``official`` (one side of each pair) or ``full`` (all that are zeroed).
        norm: divide u by :data:`~vitlab.methods.nvit.importance.NORMS` (``official``) or by 1 (``none``).
        momentum, correct_bias, reset_after_first: see :class:`~vitlab.methods.nvit.importance.RunningImportance`.
        eta: weight of what a unit costs; 0: off.
        eta_scale: ``relative``: to importance and cost of the network
            (:func:`~vitlab.methods.nvit.gains.relative_eta`); ``absolute``: importance per unit of cost.
        schedule: ``exact`` or ``official``, see :mod:`vitlab.methods.nvit.selection`.
        units_per_event, divisor: p and G; an event prunes p / G groups.
        least: groups that an axis keeps.
        seed: of the ``random`` criterion.
    """

    criterion: str = "taylor"
    scope: Scope = "official"
    norm: str = "official"
    momentum: float = 0.9
    correct_bias: bool = True
    reset_after_first: bool = False
    eta: float = 0.0
    eta_scale: str = "relative"
    schedule: str = "exact"
    units_per_event: int = 32
    divisor: int = 16
    least: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Event:
    """What an event did.

    Attributes:
        number: of the event, from 1.
        pruned: units by axis name, of the axes where some were.
        threshold: largest score of a group that was chosen.
        eta: importance per unit of cost that was used.
        lowest, highest: scores of live units before the event, without the cost.
        structure: of the live units after the event.
        overlap: share of the units chosen that the importance alone would have chosen too.
    """

    number: int
    pruned: Mapping[str, list[int]]
    threshold: float
    eta: float
    lowest: float
    highest: float
    structure: VitStructure
    overlap: float


class GlobalPruner:
    """Closes the gates of a network, by averages over the batches between two events.

    Args:
        model: with gates (:func:`~vitlab.models.pruning.gates.attach_gates`); they are part of its state.
        rule: see there.
        cost: of a block, for the gains; None: no cost.

    Attributes:
        events: so far.
    """

    def __init__(self, model: nn.Module, rule: PruningRule, cost: BlockCost | None = None) -> None:
        gates = getattr(model, ATTRIBUTE)
        assert isinstance(gates, Gates)
        self.model, self.gates, self.axes = model, gates, gates.axes
        self.rule, self.cost = rule, cost
        self.events = 0
        self.importance = RunningImportance(
            [axis.units for axis in self.axes],
            momentum=rule.momentum,
            correct_bias=rule.correct_bias,
            reset_after_first=rule.reset_after_first,
        )
        self._names = sorted({one.parameter for axis in self.axes for one in axis.scored(rule.scope)})

    @property
    def structure(self) -> VitStructure:
        """What the live units make."""
        return live_structure(self.model, self.axes, self.gates.gates)

    def collect(self, gradients: Mapping[str, Tensor] | None = None) -> None:
        """Add the importance of one batch, from the weights and gradients that the network has now.

        Args:
            gradients: by name of the parameter, instead of those that the network has.
        """
        parameters = dict(self.model.named_parameters())
        device = next(iter(parameters.values())).device
        if self.importance.total.device != device:
            self.importance.to(device)
        with torch.no_grad():
            self.importance.add(self._batch_importance(parameters, gradients))

    def _batch_importance(
        self, parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor] | None
    ) -> list[Tensor]:
        if self.rule.criterion == "magnitude":
            squares = {name: parameters[name].float().square() for name in self._names}
            return [axis.scores(squares, self.rule.scope) for axis in self.axes]
        if self.rule.criterion == "random":
            draws = torch.Generator().manual_seed(self.rule.seed)
            return [torch.rand(axis.units, generator=draws, dtype=torch.float64) for axis in self.axes]
        products = {}
        for name in self._names:
            gradient = parameters[name].grad if gradients is None else gradients[name]
            if gradient is None:
                raise RuntimeError(f"{name} has no gradient: it is frozen, or not used")
            products[name] = parameters[name] * gradient
        sums = [axis.scores(products, self.rule.scope) for axis in self.axes]
        return [unit_importance(one, self._norm(axis)) for one, axis in zip(sums, self.axes, strict=True)]

    def _norm(self, axis: Axis) -> float:
        return NORMS[axis.kind] if self.rule.norm == "official" else 1.0

    def event(self) -> Event:
        """Close the interval and the gates of the least important groups.

        Raises:
            RuntimeError: nothing was collected since the last event.
        """
        before = [gate.cpu() for gate in self.gates.gates]
        averages = self.importance.close_interval()
        scores = [one * gate for one, gate in zip(averages, before, strict=True)]  # a pruned unit is worth nothing
        gains = self._gains()
        eta = self.rule.eta
        if self.rule.eta_scale == "relative":
            eta = relative_eta(scores, before, gains, eta)
        adjusted = adjust(scores, gains, eta)
        chosen, alone = self._select(adjusted, before), self._select(scores, before)
        self.gates.update(chosen.gates)
        self.events += 1
        live = torch.cat([one[gate] for one, gate in zip(scores, before, strict=True)])
        both = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(chosen.pruned, alone.pruned, strict=True))
        return Event(
            number=self.events,
            pruned={
                axis.name: units.tolist() for axis, units in zip(self.axes, chosen.pruned, strict=True) if len(units)
            },
            threshold=chosen.threshold,
            eta=eta,
            lowest=float(live.min()),
            highest=float(live.max()),
            structure=self.structure,
            overlap=both / max(1, sum(map(len, chosen.pruned))),
        )

    def _gains(self) -> list[float]:
        """d of each axis."""
        if self.cost is None or not self.rule.eta:
            return [0.0] * len(self.axes)
        least: dict[str, int] = {axis.kind: axis.group * self.rule.least for axis in self.axes}
        if self.rule.schedule == "official":
            del least["embedding"]
        gains = unit_gains(self.cost, dims_of(self.structure), least)
        return [float(gains[axis.kind][axis.block or 0]) for axis in self.axes]

    def _select(self, scores: Sequence[Tensor], gates: Sequence[Tensor]) -> Selection:
        rule, sizes = self.rule, [axis.group for axis in self.axes]
        if rule.schedule == "official":
            return select_official(
                scores, gates, sizes, event=self.events, units=rule.units_per_event, divisor=rule.divisor
            )
        least = [axis.group * rule.least for axis in self.axes]
        count = max(1, rule.units_per_event // rule.divisor)
        return select_exact(scores, gates, sizes, count=count, least=least)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, beside the gates in the network's state: tensors and integers."""
        return {"events": self.events, "importance": self.importance.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            ValueError: the state is of another network.
        """
        self.events = state["events"]
        self.importance.load_state_dict(state["importance"])
