"""2:4 sparsity: in every four consecutive input weights of a linear layer, the two largest stay.

Sparse tensor cores of NVIDIA's Ampere and later multiply such matrices at twice the dense rate. The masks are taken
from the magnitudes once and stay fixed while the network is finetuned (nvit.md, section 9). A layer is eligible if its
rows are a multiple of 8 and its columns of 16; with NViT's group sizes every linear layer of a pruned network is, but
for classifiers of other numbers of classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from vitlab.errors import UserError

ROWS, COLUMNS = 8, 16
"""Multiples that the rows (outputs) and columns (inputs) of an eligible weight have."""


def is_eligible(weight: Tensor) -> bool:
    """Whether a weight [rows, ...], its other dimensions taken as columns, can be made 2:4 sparse."""
    return weight.ndim >= 2 and weight.shape[0] % ROWS == 0 and weight[0].numel() % COLUMNS == 0


def linear_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights of the linear layers, by parameter name; the embedding of patches, a convolution with its kernel as
    stride, is one."""
    return {f"{name}.weight".lstrip("."): one.weight for name, one in model.named_modules() if _is_linear(one)}


def _is_linear(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    patches = isinstance(layer, nn.Conv2d) and layer.kernel_size == layer.stride and layer.groups == 1
    return isinstance(layer, nn.Linear) or patches


def mask_2_4(weight: Tensor) -> Tensor:
    """True at the two largest magnitudes of every four consecutive inputs; of equal ones the first are kept.

    Args:
        weight: [rows, ...], the other dimensions taken as inputs, their number a multiple of 4.

    Returns:
        Boolean, of the weight's shape.

    Raises:
        ValueError: another number of inputs.
    """
    if weight.ndim < 2 or weight[0].numel() % 4:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} has no groups of four inputs")
    fours = weight.detach().abs().flatten(1).unflatten(1, (-1, 4))
    largest = fours.argsort(dim=-1, descending=True, stable=True)[..., :2]
    return torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, largest, True).view_as(weight)


@dataclass(frozen=True)
class NonZeros:
    """Parameters of a network, and how many of them 2:4 sparsity leaves."""

    total: int
    nonzero: int


def count_nonzeros(model: nn.Module) -> NonZeros:
    """Parameters of ``model``, and those left by 2:4 masks on every eligible linear layer; from shapes alone."""
    removed = sum(weight.numel() // 2 for weight in linear_weights(model).values() if is_eligible(weight))
    total = sum(one.numel() for one in model.parameters())
    return NonZeros(total, total - removed)


class Sparsity:
    """2:4 masks of a network's eligible linear layers, from its magnitudes when this object is made.

    Attributes:
        masks: boolean, by parameter name.
        left_out: names of linear weights that are not eligible; they stay dense.

    Raises:
        UserError: no layer is eligible.
    """

    def __init__(self, model: nn.Module) -> None:
        weights = linear_weights(model)
        self.masks = {name: mask_2_4(weight) for name, weight in weights.items() if is_eligible(weight)}
        self.left_out = [name for name in weights if name not in self.masks]
        if not self.masks:
            raise UserError(
                f"{type(model).__name__} has no linear layer for 2:4 sparsity.",
                f"Rows must be a multiple of {ROWS} and columns of {COLUMNS}.",
            )

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> None:
        """Set the weights outside the masks to zero; to be called at first and after every step of the optimiser."""
        parameters = dict(model.named_parameters())
        for name, mask in self.masks.items():
            weight = parameters[name]
            if mask.device != weight.device:
                mask = self.masks[name] = mask.to(weight.device)
            weight.masked_fill_(~mask, 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, for a checkpoint: a weight that trained to zero would be lost from masks made anew."""
        return dict(self.masks)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the masks of a checkpoint.

        Raises:
            ValueError: they are of other layers.
        """
        if {name: mask.shape for name, mask in state.items()} != {n: mask.shape for n, mask in self.masks.items()}:
            raise ValueError("the 2:4 masks are of another network")
        self.masks = {name: mask.bool() for name, mask in state.items()}
