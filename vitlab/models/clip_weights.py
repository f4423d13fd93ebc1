"""TinyViT's published teacher: CLIP ViT-L/14 finetuned on ImageNet-22k, read as a network of timm's.

CLIP's image tower ends in a projection without bias, and the teacher's classifier is a linear layer behind it. Two
linear layers without anything between are one: its weight is their product, so timm's ViT with an ordinary head
computes the same logits up to rounding, without a class of its own.
"""

from __future__ import annotations

from torch import Tensor

PROJECTION = "visual.proj"
"""Name of CLIP's projection, [width, embedding]."""


def has_classifier(state: dict[str, Tensor]) -> bool:
    """Whether ``state`` is CLIP's image tower with a linear classifier behind the projection."""
    projection, head = state.get(PROJECTION), state.get("head.weight")
    return projection is not None and head is not None and head.ndim == 2 and head.shape[1] == projection.shape[1]


def folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the classifier [C, embedding] multiplied into the projection, which becomes [width, C].

    The tower keeps its names, which timm reads; the classifier's bias is left under ``head.bias``.
    """
    product = state["head.weight"].double() @ state[PROJECTION].double().T
    rest = {name: value for name, value in state.items() if name != "head.weight"}
    return rest | {PROJECTION: product.T.to(state[PROJECTION].dtype).contiguous()}
