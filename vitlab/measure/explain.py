"""Saliency maps: Grad-CAM (Selvaraju et al., ICCV 2017), for CNNs and for transformers.

A map is [B, h, w], on the grid of the layer it was read from, never negative; :func:`upsample_maps` brings it to the
size of the view. Attention rollout is in :mod:`vitlab.measure.rollout`, the test that a map says anything about the
weights in :mod:`vitlab.measure.model_randomization`.

Implemented here, because the grad-cam package needs the layer and a reshaping function for each transformer from the
user, and depends on OpenCV; timm records the layout of its own networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitlab.errors import UserError, nearest
from vitlab.models.eval_mode import eval_mode

LEAST_GRID = 4
"""Smallest side of a map, in positions, that resolves anything."""

Map = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, image [B, 3, H, W], target [B]) -> map [B, h, w]."""


def grad_cam(model: nn.Module, image: Tensor, target: Tensor, layer: str | None = None) -> Tensor:
    """Positions of a layer that increase the logit of class ``target``: ``relu(sum_c a_c A_c)``, where ``a_c`` is the
    mean of ``dy/dA_c`` over positions.

    Args:
        model: any timm classifier; its mode and ``requires_grad`` are restored.
        image: [B, 3, H, W], normalised, on the model's device.
        target: [B] class numbers; y is that logit, before the softmax.
        layer: name of a module whose output is read; None: :func:`usual_layer`, and where there is none, what
            ``forward_features`` returns.

    Returns:
        [B, h, w] >= 0, of no fixed scale; all zero where every position of the layer decreases the logit.

    Raises:
        UserError: no such layer, or one whose output is no grid of positions.
    """
    if layer is None and not callable(getattr(model, "forward_features", None)):
        raise UserError(
            f"Grad-CAM: {type(model).__name__} has no forward_features, which is read by default.", _LAYER_CURE
        )
    name = layer if layer is not None else usual_layer(model, image)
    with _frozen(model), torch.enable_grad():
        if name is None:
            # The input requires a gradient, since the parameters are frozen and the graph needs a leaf.
            kept = model.forward_features(image.detach().requires_grad_())  # type: ignore[operator]
            logits = model.forward_head(kept)  # type: ignore[operator]
        else:
            outputs: list[Tensor] = []
            handle = find_layer(model, name).register_forward_hook(lambda _m, _i, out: outputs.append(out))
            try:
                logits = model(image.detach().requires_grad_())
            finally:
                handle.remove()
            kept = outputs[-1] if outputs else None
        where = f"layer '{name}'" if name else "the features"
        if not isinstance(kept, Tensor) or not kept.requires_grad:
            raise UserError(f"Grad-CAM: {where} of this network gives no tensor to differentiate by.", _LAYER_CURE)
        # The sum over the batch: images do not interact in eval mode, so its gradient is that of each image's logit.
        score = logits.gather(1, target.to(logits.device)[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, kept, allow_unused=True)
    if gradient is None:
        raise UserError(f"Grad-CAM: the logits do not depend on {where}.", _LAYER_CURE)
    activation, slope = to_grid(model, kept.detach(), where), to_grid(model, gradient, where)
    weight = slope.mean(dim=(2, 3), keepdim=True)
    return functional.relu((weight * activation).sum(1)).float()


_LAYER_CURE = "Give explain.layer=NAME, the name of a module, such as blocks.10.norm1 or layer4."


def usual_layer(model: nn.Module, image: Tensor) -> str | None:
    """The layer that Grad-CAM reads by default; None: what ``forward_features`` returns.

    In a transformer of equal blocks it is the last block's first norm: after the last attention the patch tokens of a
    network with a class token no longer influence the logits, so its final features have no gradient. In a network of
    stages (CNNs, Swin, TinyViT) it is the final features, unless their grid has a side below ``LEAST_GRID``, as for
    small images: then the last layer with a grid of at least that.

    Args:
        image: [B, 3, H, W]; one forward pass is made where the network has stages, to record its grids.
    """
    blocks = getattr(model, "blocks", None)
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) and hasattr(blocks[-1], "norm1"):
        return f"blocks.{len(blocks) - 1}.norm1"
    grids: list[tuple[str, int]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                grid = to_grid(model, output, name).shape[2:]
                grids.append((name, min(grid)))

        return hook

    # Stages and their blocks; deeper modules are inside a block, before its residual sum.
    named = [(name, module) for name, module in model.named_modules() if name and name.count(".") <= 1]
    handles = [module.register_forward_hook(note(name)) for name, module in named]
    try:
        with eval_mode(model):
            features = model.forward_features(image[:1])  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    if features.ndim != 4 or min(to_grid(model, features, "the features").shape[2:]) >= LEAST_GRID:
        return None
    large = [name for name, side in grids if side >= LEAST_GRID]
    return large[-1] if large else None


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The module called ``name``.

    Raises:
        UserError: naming the nearest.
    """
    modules = dict(model.named_modules())
    if name not in modules or not name:
        near = nearest(name, modules)
        raise UserError(
            f"explain.layer={name}: the network has no such module.",
            f"Did you mean {near}?" if near else f"Its parts are {', '.join(n for n, _ in model.named_children())}.",
        )
    return modules[name]


def to_grid(model: nn.Module, features: Tensor, where: str) -> Tensor:
    """Features as [B, C, h, w]: from NCHW, from NHWC (Swin), or from tokens [B, prefix + h·w, C].

    Raises:
        UserError: the features are no grid of positions.
    """
    if features.ndim == 4:
        last = getattr(model, "output_fmt", "NCHW") == "NHWC" or (
            # a block of TinyViT works on NHWC inside a network whose output is NCHW
            features.shape[1] == features.shape[2] != features.shape[3]
            or _has_channels(model, features.shape[3]) > _has_channels(model, features.shape[1])
        )
        return features.permute(0, 3, 1, 2) if last else features
    if features.ndim == 3:
        prefix, height, width = token_grid(model, features.shape[1])
        return features[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
    raise UserError(f"Grad-CAM: {where} of this network has the shape {tuple(features.shape)}, no grid.", _LAYER_CURE)


def _has_channels(model: nn.Module, length: int) -> bool:
    """Whether a stage of the network has as many channels."""
    stages = getattr(model, "feature_info", None)
    return isinstance(stages, list) and any(stage["num_chs"] == length for stage in stages)


def network_maps(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """The maps [B, h, w] that the network itself declares (``attention_maps(image)``, see :mod:`vitlab.models`) by
    name, each the mean over the maps of that name; empty where it declares none. Its mode is restored.

    Raises:
        ValueError: a map that is not [B, N, h, w].
    """
    declare: Callable[[Tensor], dict[str, Tensor]] | None = getattr(model, "attention_maps", None)
    if declare is None:
        return {}
    with eval_mode(model):
        found = declare(image)
    for name, maps in found.items():
        if maps.ndim != 4 or len(maps) != len(image):
            raise ValueError(f"attention_maps()['{name}'] is {tuple(maps.shape)}, not [{len(image)}, N, h, w]")
    return {name: maps.float().mean(1) for name, maps in found.items()}


def token_grid(model: nn.Module, tokens: int) -> tuple[int, int, int]:
    """(prefix tokens, height, width) of ``tokens`` tokens in a row.

    Raises:
        UserError: they form no grid that can be determined.
    """
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    for before in (prefix, 0):  # some networks (CaiT, XCiT) add their class token only after the blocks
        if grid is not None and grid[0] * grid[1] == tokens - before:
            return before, int(grid[0]), int(grid[1])
    for before in (prefix, 0):
        side = math.isqrt(max(tokens - before, 0))
        if side > 0 and side * side == tokens - before:
            return before, side, side
    raise UserError(
        f"{type(model).__name__} has {tokens} tokens here, {prefix} of them not of the image: no square grid.",
        _LAYER_CURE,
    )


def upsample_maps(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps [B, h, w] resized bilinearly to [B, height, width], each scaled to [0, 1]; a constant map becomes zero."""
    big = functional.interpolate(maps[:, None].float(), (height, width), mode="bilinear", align_corners=False)[:, 0]
    low, high = big.amin(dim=(1, 2), keepdim=True), big.amax(dim=(1, 2), keepdim=True)
    flat = high - low <= 1e-6 * high.abs()
    return torch.where(flat, torch.zeros_like(big), (big - low) / (high - low).where(~flat, torch.ones_like(high)))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients for parameters; both are restored afterwards.

    ``train`` is called on leaving because some timm networks cache tables gathered from their parameters while in eval
    mode, and drop them only then: a table cached here must not be read by a later training.
    """
    modes = {module: module.training for module in model.modules()}
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.train()
    model.eval()
    try:
        for parameter, _ in required:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, grad in required:
            parameter.requires_grad_(grad)
        model.train()
        for module, mode in modes.items():
            module.training = mode
