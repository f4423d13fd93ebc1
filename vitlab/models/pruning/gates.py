"""The masked forward pass: gates of the units in buffers, and LayerNorm over the live channels.

A pruned unit has zero weights (:func:`~vitlab.models.pruning.units.apply_gates`). This alone is not the exported
network: a LayerNorm over all channels averages over the zeros of the pruned ones, and logits differ by the order of
their own size (nvit.md, section 4). With ``norm_stats: live`` every norm over gated channels covers the live ones only,
so that the masked and the exported network are one function; with ``full`` the norms stay as they are, as in the
official code, and the exported network has norms that count the absent channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitlab.errors import UserError
from vitlab.models.pruning.norms import WidthLayerNorm, gated_layer_norm
from vitlab.models.pruning.units import Axis, find_axes
from vitlab.models.vit_structure import VitStructure

NormStats = Literal["live", "full"]

ATTRIBUTE = "pruning"
"""Name of the gates' module in the network, hence the prefix of their names in its state dict."""


class Gates(nn.Module):
    """Which units of a network are live: a boolean buffer [units] for each axis, saved with the network's state.

    Attributes:
        axes: in the order of :func:`find_axes`.
        norm_stats: channels that the statistics of the norms cover.
    """

    def __init__(self, axes: Sequence[Axis], norm_stats: NormStats = "live") -> None:
        super().__init__()
        self.axes, self.norm_stats = tuple(axes), norm_stats
        for axis in self.axes:
            self.register_buffer(_buffer(axis), torch.ones(axis.units, dtype=torch.bool))
        self.live = [axis.units for axis in self.axes]  # kept, since reading it from a GPU waits for it
        self._dead: list[Tensor | None] = [None] * len(self.axes)

    @property
    def gates(self) -> list[Tensor]:
        """The gate [units] of each axis; true: live."""
        return [self.get_buffer(_buffer(axis)) for axis in self.axes]

    def gate(self, axis: int) -> Tensor:
        return self.get_buffer(_buffer(self.axes[axis]))

    @property
    def structure(self) -> dict[str, int]:
        """Live units by axis."""
        return {axis.name: live for axis, live in zip(self.axes, self.live, strict=True)}

    def update(self, gates: Sequence[Tensor]) -> None:
        """Take over ``gates``, one boolean tensor [units] for each axis.

        Raises:
            ValueError: a pruned unit would be live again, or an axis have no live unit.
        """
        for axis, old, new in zip(self.axes, self.gates, gates, strict=True):
            new = new.to(old.device)
            if bool((new & ~old).any()):
                raise ValueError(f"{axis.name}: a pruned unit cannot be made live again, its weights are zero")
            if not bool(new.any()):
                raise ValueError(f"{axis.name}: no unit would be left")
            old.copy_(new)
        self._count()

    def apply_to(self, model: nn.Module) -> None:
        """Set all weights of pruned units to zero; to be called after every step of the optimiser."""
        parameters = dict(model.named_parameters())
        for axis, dead in zip(self.axes, self._dead, strict=True):
            if dead is not None:
                for one in axis.slices:
                    one.zero_(parameters[one.parameter], dead)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._count()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._count()  # the indices move to the device of the buffers
        return self

    def _count(self) -> None:
        """Bring what is derived from the buffers up to date."""
        self.live = [int(gate.sum()) for gate in self.gates]
        self._dead = [
            (~gate).nonzero()[:, 0] if live < axis.units else None
            for axis, gate, live in zip(self.axes, self.gates, self.live, strict=True)
        ]


def _buffer(axis: Axis) -> str:
    return axis.name.replace(".", "_")


class LiveLayerNorm(nn.LayerNorm):
    """A norm of the network, with its parameters, whose statistics cover the channels that ``gates`` has as live."""

    def __init__(self, norm: nn.LayerNorm, gates: Gates, axis: int) -> None:
        super().__init__(norm.normalized_shape, eps=norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias  # the same: an optimiser may hold them already
        self.train(norm.training)
        self.original = (norm,)  # a tuple: no submodule, whose parameters would be listed twice
        self._gates = (gates, axis)

    def forward(self, x: Tensor) -> Tensor:
        gates, axis = self._gates
        if gates.live[axis] == gates.axes[axis].units:
            return super().forward(x)
        return gated_layer_norm(x, gates.gate(axis), gates.live[axis], self.weight, self.bias, self.eps)


def attach_gates(model: nn.Module, norm_stats: NormStats = "live", groups: Mapping[str, int] | None = None) -> Gates:
    """Give ``model`` gates, all live, as its submodule ``pruning``; with ``live`` statistics its norms are replaced.

    The function of the network is unchanged until units are pruned, and the names, shapes and identity of its
    parameters always. To be called before weights of a checkpoint with gates are loaded.

    Raises:
        UserError: a network that :func:`find_axes` refuses; or statistics over the live channels of a network that was
            exported with those of its original width.
    """
    gates = Gates(find_axes(model, groups), norm_stats)
    if norm_stats == "live":
        for name, axis in _gated_norms(model, gates.axes):
            norm: Any = model.get_submodule(name)
            if isinstance(norm, WidthLayerNorm) and norm.width != norm.normalized_shape[0]:
                raise UserError(
                    f"{name} has the statistics of {norm.width} channels but {norm.normalized_shape[0]} channels, from "
                    "an earlier export.",
                    "Prune the network of the compact form, or with norm_stats=full.",
                )
            model.set_submodule(name, LiveLayerNorm(norm, gates, axis))
    device = next(model.parameters()).device
    model.add_module(ATTRIBUTE, gates.to(device))
    return gates


def detach_gates(model: nn.Module) -> Gates:
    """Remove the gates of ``model`` and restore its norms; pruned weights stay zero. Returns the gates.

    Raises:
        ValueError: it has none.
    """
    gates = getattr(model, ATTRIBUTE, None)
    if not isinstance(gates, Gates):
        raise ValueError(f"{type(model).__name__} has no gates")
    for name, norm in list(model.named_modules()):
        if isinstance(norm, LiveLayerNorm):
            original = norm.original[0]
            original.weight, original.bias = norm.weight, norm.bias
            model.set_submodule(name, original.train(norm.training))
    delattr(model, ATTRIBUTE)
    return gates


def _gated_norms(model: nn.Module, axes: Sequence[Axis]) -> list[tuple[str, int]]:
    """Norms over the units of an axis: (module name, index of the axis)."""
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    found: dict[str, int] = {}
    for index, axis in enumerate(axes):
        for one in axis.slices:
            if (name := one.parameter.rpartition(".")[0]) in norms:
                found[name] = index
    return list(found.items())


def live_structure(model: nn.Module, axes: Sequence[Axis], gates: Sequence[Tensor]) -> VitStructure:
    """The structure that is left when the units with a false gate are removed."""
    network: Any = model
    live: dict[str, list[int]] = {}
    for axis, gate in zip(axes, gates, strict=True):
        live.setdefault(axis.kind, []).append(int(gate.sum()))
    return VitStructure(
        embed=live["embedding"][0],
        heads=tuple(live["head"]),
        qk=tuple(live["qk"]),
        v=tuple(live["v"]),
        mlp=tuple(live["mlp"]),
        head_dim=round(network.blocks[0].attn.scale ** -2),
    )
