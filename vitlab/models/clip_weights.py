"""TinyViT's published teacher: CLIP ViT-L/14 finetuned on ImageNet-22k, loaded into a network of timm.

CLIP's image tower ends in a projection without bias, and the teacher's classifier is a linear layer after it. Two
consecutive linear layers are one, whose weight is their product: timm's ViT with an ordinary head therefore computes
the same logits up to rounding, and no further network class is needed.
"""

from __future__ import annotations

from torch import Tensor

PROJECTION = "visual.proj"
"""Name of CLIP's projection, [width, embedding]."""


def is_clip_classifier(state: dict[str, Tensor]) -> bool:
    """Whether ``state`` is CLIP's image tower with a linear classifier after the projection."""
    projection, head = state.get(PROJECTION), state.get("head.weight")
    return projection is not None and head is not None and head.ndim == 2 and head.shape[1] == projection.shape[1]


def fold_projection(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the classifier [C, embedding] multiplied into the projection, which becomes [width, C].

    The tower keeps its names, which timm reads; the classifier's bias is left under ``head.bias``.
    """
    # In float64: the product replaces two roundings by one.
    product = state["head.weight"].double() @ state[PROJECTION].double().T
    rest = {name: value for name, value in state.items() if name != "head.weight"}
    return rest | {PROJECTION: product.T.to(state[PROJECTION].dtype).contiguous()}
