"""Model randomisation test of saliency maps (Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018).

The network's weights are randomised layer by layer from the head down ("cascading"), and after each step the map is
compared with the first one by Spearman's rank correlation. A method whose maps do not change is an edge detector: its
maps depend on the image and not on the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitlab.measure.explain import Map


@dataclass
class SanityResult:
    """Similarity between the maps of a network and those of its randomised copies."""

    parts: list[str]  # the layer down to which all are randomised, at each step
    correlation: list[float]  # mean over the images of Spearman's rank correlation with the first maps, in [-1, 1]
    maps: list[Tensor]  # [B, h, w] after each step
    blank: int = 0  # of the first maps, how many are the same everywhere and show nothing

    @property
    def passed(self) -> bool:
        """Whether no map is blank, and the mean correlation with the maps of the completely random network is below
        0.5."""
        return self.blank == 0 and self.correlation[-1] < 0.5


def sanity_check(
    method: Map, model: nn.Module, image: Tensor, target: Tensor, seed: int = 0, steps: int = 6
) -> tuple[Tensor, SanityResult]:
    """The maps of ``method`` for ``image``, and their similarity to those of ever more randomised copies.

    Args:
        method: e.g. :func:`vitlab.measure.explain.grad_cam`.
        model: not changed; a copy is randomised.
        image: [B, 3, H, W]; target: [B], the same for the random networks, whatever they predict.
        steps: at most so many parts, about equal in layers.

    Returns:
        The maps [B, h, w] of the network as it is, and the comparison.
    """
    first = method(model, image, target)
    parts, correlation, maps = [], [], []
    for name, random in randomise_cascading(model, seed, steps):
        again = method(random, image, target)
        parts.append(name)
        maps.append(again)
        pairs = zip(first.cpu().numpy(), again.cpu().numpy(), strict=True)
        correlation.append(float(np.mean([rank_correlation(a, b) for a, b in pairs])))
    blank = int((first.amax(dim=(1, 2)) == first.amin(dim=(1, 2))).sum())
    return first, SanityResult(parts, correlation, maps, blank)


def randomise_cascading(model: nn.Module, seed: int = 0, steps: int = 6) -> Iterator[tuple[str, nn.Module]]:
    """Copies of ``model`` with ever more layers randomised, from the last to the first; (layer reached, copy).

    The entries of each tensor are permuted, so that a random layer has the distribution of the trained one; a tensor of
    equal entries stays. The same copy is changed again at each step: use it before taking the next.
    """
    random = copy.deepcopy(model)
    layers = [
        (name or next(own for own, _ in module.named_parameters(recurse=False)), module)
        for name, module in random.named_modules()
        if any(parameter.numel() > 1 for parameter in module.parameters(recurse=False))
    ]
    generator = torch.Generator().manual_seed(seed)
    for part in np.array_split(np.arange(len(layers))[::-1], min(steps, len(layers))):
        for position in part:
            for parameter in layers[position][1].parameters(recurse=False):
                flat = parameter.data.flatten()
                order = torch.randperm(len(flat), generator=generator).to(flat.device)
                parameter.data.copy_(flat[order].view_as(parameter))
        random.train()  # drops tables that timm's networks gathered from the old weights
        random.eval()
        yield layers[int(part[-1])][0], random


def rank_correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Spearman's: Pearson's correlation of the ranks, equal values sharing their mean rank; 0 where one is constant.

    Raises:
        ValueError: arrays of different sizes.
    """
    if a.size != b.size:
        raise ValueError(f"{a.size} and {b.size} values")
    first, second = _ranks(a.ravel()), _ranks(b.ravel())
    first, second = first - first.mean(), second - second.mean()
    length = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / length) if length > 0 else 0.0


def _ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    mean: NDArray[np.float64] = (last - (count - 1) / 2)[place]
    return mean
