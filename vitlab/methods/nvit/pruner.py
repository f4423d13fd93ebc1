"""Global pruning of one network: scores at every step, gates that an event closes (specification 5 to 7).

The same on every rank: its input is the gradient of the global batch, which all ranks have alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.methods.nvit.gains import BlockCost, adjust, live_dims, relative_eta, unit_gains
from vitlab.methods.nvit.importance import NORMS, RunningImportance, unit_importance
from vitlab.methods.nvit.selection import select_exact, select_official
from vitlab.models.pruning.units import Axis, Scope, all_live, apply_gates


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
        dims: of every block, after the event.
        overlap: share of the units chosen that the importance alone would have chosen too.
    """

    number: int
    pruned: Mapping[str, list[int]]
    threshold: float
    eta: float
    lowest: float
    highest: float
    dims: Mapping[str, list[int]]
    overlap: float


class GlobalPruner:
    """Gates of all axes of a network, and the averages that decide which close.

    Args:
        axes: of :func:`~vitlab.models.pruning.units.find_axes`.
        rule: see there.
        cost: of a block, for the gains; None: no cost.

    Attributes:
        gates: of each axis [units], on the CPU; False: pruned.
        events: so far.
    """

    def __init__(self, axes: Sequence[Axis], rule: PruningRule, cost: BlockCost | None = None) -> None:
        self.axes, self.rule, self.cost = list(axes), rule, cost
        self.gates = all_live(axes)
        self.events = 0
        self.importance = RunningImportance(
            [axis.units for axis in axes],
            momentum=rule.momentum,
            correct_bias=rule.correct_bias,
            reset_after_first=rule.reset_after_first,
        )
        self._names = sorted({one.parameter for axis in axes for one in axis.scored(rule.scope)})

    @property
    def dims(self) -> dict[str, Any]:
        """Dimensions of the blocks that the live units make, arrays [depth]."""
        return live_dims([axis.kind for axis in self.axes], [axis.block for axis in self.axes], self.gates)

    def collect(self, model: nn.Module) -> None:
        """Add the importance in the gradient of one batch; ``model`` has it and the weights before the update."""
        parameters = dict(model.named_parameters())
        device = next(iter(parameters.values())).device
        if self.importance.total.device != device:
            self.importance.to(device)
        with torch.no_grad():
            self.importance.add(self._batch_importance(parameters))

    def _batch_importance(self, parameters: Mapping[str, nn.Parameter]) -> list[Tensor]:
        if self.rule.criterion == "magnitude":
            squares = {name: parameters[name].float().square() for name in self._names}
            return [axis.scores(squares, self.rule.scope) for axis in self.axes]
        if self.rule.criterion == "random":
            draws = torch.Generator().manual_seed(self.rule.seed)
            return [torch.rand(axis.units, generator=draws, dtype=torch.float64) for axis in self.axes]
        products = {}
        for name in self._names:
            gradient = parameters[name].grad
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
        scores = [
            one * gate for one, gate in zip(self.importance.close_interval(), self.gates, strict=True)
        ]  # a pruned unit is worth nothing
        gains = self._gains()
        eta = self.rule.eta
        if self.rule.eta_scale == "relative":
            eta = relative_eta(scores, self.gates, gains, eta)
        adjusted = adjust(scores, gains, eta)
        chosen, alone = self._select(adjusted), self._select(scores)
        self.gates = chosen.gates
        self.events += 1
        live = torch.cat([one[gate] for one, gate in zip(scores, self.gates, strict=True)])
        both = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(chosen.pruned, alone.pruned, strict=True))
        return Event(
            number=self.events,
            pruned={axis.name: units.tolist() for axis, units in zip(self.axes, chosen.pruned, strict=True) if len(units)},
            threshold=chosen.threshold,
            eta=eta,
            lowest=float(live.min()),
            highest=float(live.max()),
            dims={name: values.tolist() for name, values in self.dims.items()},
            overlap=both / max(1, sum(map(len, chosen.pruned))),
        )

    def _gains(self) -> list[float]:
        """d of each axis."""
        if self.cost is None or not self.rule.eta:
            return [0.0] * len(self.axes)
        least = {axis.kind: axis.group * self.rule.least for axis in self.axes}
        if self.rule.schedule == "official":
            del least["embedding"]
        gains = unit_gains(self.cost, self.dims, least)
        return [float(gains[axis.kind][axis.block or 0]) for axis in self.axes]

    def _select(self, scores: Sequence[Tensor]) -> Any:
        rule, sizes = self.rule, [axis.group for axis in self.axes]
        if rule.schedule == "official":
            return select_official(
                scores, self.gates, sizes, event=self.events, units=rule.units_per_event, divisor=rule.divisor
            )
        least = [axis.group * rule.least for axis in self.axes]
        count = max(1, rule.units_per_event // rule.divisor)
        return select_exact(scores, self.gates, sizes, count=count, least=least)

    def apply(self, model: nn.Module) -> None:
        """Set the weights of pruned units to zero."""
        apply_gates(model, self.axes, [gate.to(next(model.parameters()).device) for gate in self.gates])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: tensors and integers."""
        return {"gates": self.gates, "events": self.events, "importance": self.importance.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            ValueError: the state is of another network.
        """
        if [len(one) for one in state["gates"]] != [axis.units for axis in self.axes]:
            raise ValueError("the gates are of another network")
        self.gates, self.events = [one.cpu() for one in state["gates"]], state["events"]
        self.importance.load_state_dict(state["importance"])
