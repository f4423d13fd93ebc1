"""The arguments that contraction changes, and the costs of the result: TinyViT, and other families of timm.

A family turns a network's arguments into smaller neighbours and into parameters and multiply-adds: TinyViT by closed
forms, the others by counting a network on the meta device, without computation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import timm
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.tiny_vit import TinyVit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitlab.config.size import Size, hw, size_text
from vitlab.errors import UserError
from vitlab.measure.cost import count_macs, count_params
from vitlab.methods.tinyvit.shape import Shape

Args = dict[str, Any]


class Family(Protocol):
    """Networks of one kind, described by those arguments of timm's that contraction changes."""

    start: Args
    beam: int
    """Networks a move that a search for the smallest one keeps; few where counting one takes long."""

    def smaller(self, args: Args) -> Iterator[tuple[str, Args]]:
        """Neighbours one move away, with the move's name."""

    def cost(self, args: Args) -> tuple[int, int]:
        """Parameters and multiply-adds."""

    def params(self, args: Args) -> int:
        """Parameters alone."""

    def head(self, args: Args) -> int:
        """Parameters of the classifier among them."""


def family_of(name: str, args: Mapping[str, Any], size: Size, classes: int) -> Family:
    """The family of timm's network ``name`` built with ``args``.

    Raises:
        UserError: contraction does not support its class.
    """
    model = timm.create_model(name, num_classes=classes, device="meta", **args)
    if isinstance(model, TinyVit):
        height, width = hw(size)
        if height != width:
            raise UserError(
                f"mode=contract counts {name} at square sizes, and dataset.size is {size_text(size)} px.",
                "Give dataset.size=SIDE.",
            )
        return TinyViTFamily(model, height, classes)
    for kind, (start, smaller) in _COUNTED.items():
        if isinstance(model, kind):
            return CountedFamily(name, dict(args), start(model), smaller, size, classes)
    known = ", ".join(["TinyVit", *(kind.__name__ for kind in _COUNTED)])
    raise UserError(f"mode=contract does not support {name}, a {type(model).__name__}.", f"Supported are {known}.")


class TinyViTFamily:
    """Every factor of the paper; costs in closed form."""

    beam = 8

    def __init__(self, model: Any, size: int, classes: int) -> None:
        attention = [stage.blocks[0] for stage in list(model.stages)[1:]]
        first = model.stages[0].blocks[0]
        dims = [info["num_chs"] for info in model.feature_info]
        expand = first.conv1.conv.out_channels / dims[0]
        shape = Shape(
            tuple(dims),
            tuple(model.depths),
            tuple(block.window_size for block in attention),
            float(expand),
            float(model.mlp_ratio),
            attention[0].attn.key_dim,
        )
        self.start: Args = shape.args()
        self._size, self._classes = size, classes

    def smaller(self, args: Args) -> Iterator[tuple[str, Args]]:
        for name, shape in Shape.of(args).smaller():
            yield name, shape.args()

    def cost(self, args: Args) -> tuple[int, int]:
        shape = Shape.of(args)
        return shape.params(self._classes), shape.macs(self._size, self._classes)

    def params(self, args: Args) -> int:
        return Shape.of(args).params(self._classes)

    def head(self, args: Args) -> int:
        return (Shape.of(args).dims[3] + 1) * self._classes


class CountedFamily:
    """A family whose costs are counted on networks without memory, each once."""

    beam = 1

    def __init__(
        self,
        name: str,
        fixed: Args,
        start: Args,
        smaller: Callable[[Args], Iterator[tuple[str, Args]]],
        size: Size,
        classes: int,
    ) -> None:
        self.name, self.fixed, self.start = name, fixed, start
        self._smaller, self._size, self._classes = smaller, size, classes
        self._macs: dict[str, int] = {}
        self._params: dict[str, int] = {}

    def smaller(self, args: Args) -> Iterator[tuple[str, Args]]:
        return self._smaller(args)

    def cost(self, args: Args) -> tuple[int, int]:
        key = json.dumps(args, sort_keys=True)
        if key not in self._macs:
            model = self._build(args)
            self._params[key], self._macs[key] = count_params(model), count_macs(model, self._size)
        return self._params[key], self._macs[key]

    def params(self, args: Args) -> int:
        key = json.dumps(args, sort_keys=True)
        if key not in self._params:
            self._params[key] = count_params(self._build(args))
        return self._params[key]

    def head(self, args: Args) -> int:
        found = self._build(args).get_classifier()
        return sum(map(count_params, found if isinstance(found, tuple) else (found,)))  # distilled DeiT has two

    def _build(self, args: Args) -> Any:
        return timm.create_model(self.name, num_classes=self._classes, device="meta", **(self.fixed | args))


def _vit_start(model: Any) -> Args:
    block = model.blocks[0]
    return {
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / model.embed_dim,
    }


def _vit_smaller(args: Args) -> Iterator[tuple[str, Args]]:
    """One attention head with its channels, one block, or one unit of the MLP's ratio less."""
    head = args["embed_dim"] // args["num_heads"]
    if args["num_heads"] > 1:
        yield "D", args | {"embed_dim": args["embed_dim"] - head, "num_heads": args["num_heads"] - 1}
    if args["depth"] > 1:
        yield "N", args | {"depth": args["depth"] - 1}
    if args["mlp_ratio"] >= 2:
        yield "M", args | {"mlp_ratio": args["mlp_ratio"] - 1}


def _convnext_start(model: Any) -> Args:
    dims = [info["num_chs"] for info in model.feature_info]
    return {"dims": dims, "depths": [len(stage.blocks) for stage in model.stages]}


def _resnet_start(model: Any) -> Args:
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    channels = [stage[0].conv1.out_channels for stage in stages]
    return {"channels": channels, "layers": [len(stage) for stage in stages]}


def _staged(widths: str, depths: str, step: int) -> Callable[[Args], Iterator[tuple[str, Args]]]:
    """Moves of a network whose stages are given by two lists: ``step`` channels or one block less in one stage."""

    def smaller(args: Args) -> Iterator[tuple[str, Args]]:
        for s, width in enumerate(args[widths]):
            less = [*args[widths]]
            less[s] = width - step
            if less[s] > 0 and less == sorted(less):
                yield f"D{s + 1}", args | {widths: less}
        for s, depth in enumerate(args[depths]):
            if depth > 1:
                fewer = [*args[depths]]
                fewer[s] = depth - 1
                yield f"N{s + 1}", args | {depths: fewer}

    return smaller


_COUNTED: dict[type[nn.Module], tuple[Callable[[Any], Args], Callable[[Args], Iterator[tuple[str, Args]]]]] = {
    VisionTransformer: (_vit_start, _vit_smaller),
    ConvNeXt: (_convnext_start, _staged("dims", "depths", 32)),
    ResNet: (_resnet_start, _staged("channels", "layers", 32)),
}
