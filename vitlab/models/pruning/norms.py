"""Layer norm whose statistics cover another number of channels than it has.

Pruned channels are zero in a masked network and absent from the exported one. Where the masked network takes mean and
variance over all channels (``norm_stats: full``, as the official code), the exported one must count the absent zeros;
where a stock attention pads its heads with zeros, they must not count (nvit.md, sections 4 and 9).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WidthLayerNorm(nn.LayerNorm):
    """LayerNorm over the last dimension, of n channels, with the statistics of ``width`` channels.

    mean = sum x / width, var = (sum (x - mean)^2 + (width - n) mean^2) / width: for width > n those of x with width - n
    zeros more, for width < n those of x without n - width of its zeros. Equal to LayerNorm for width = n.
    """

    def __init__(self, num_channels: int, width: int | None = None, eps: float = 1e-6) -> None:
        super().__init__(num_channels, eps=eps)
        self.width = width or num_channels

    def forward(self, x: Tensor) -> Tensor:
        if self.width == self.normalized_shape[0]:
            return super().forward(x)
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean = values.sum(-1, keepdim=True) / self.width
        centred = values - mean
        absent = self.width - self.normalized_shape[0]
        # Negative only by rounding, where channels are taken away.
        var = (centred.square().sum(-1, keepdim=True) + absent * mean.square()).clamp_min(0) / self.width
        return (centred * torch.rsqrt(var + self.eps) * self.weight + self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, width={self.width}"


def gated_layer_norm(x: Tensor, gate: Tensor, live: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of the live channels; the others become 0.

    Args:
        x: [..., n].
        gate: [n], true where a channel is live; no gradient flows into it.
        live: number of live channels.

    Returns:
        [..., n], in the dtype of ``x``; the statistics of half precision are taken in float32.
    """
    values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mask = gate.to(values.dtype)
    values = values * mask
    centred = (values - values.sum(-1, keepdim=True) / live) * mask
    var = centred.square().sum(-1, keepdim=True) / live
    return ((centred * torch.rsqrt(var + eps) * weight + bias) * mask).to(x.dtype)
