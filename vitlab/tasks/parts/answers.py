"""A network's logits on a set of images, computed on all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vitlab.data.batch import Batch
from vitlab.tasks.base import Answers


class GatheredLogits(Metric):
    """Logits, labels and positions of images, gathered from all ranks and put into the order of the images.

    Every rank holds all of them after :meth:`compute`: N x C float32 (200 MB for ImageNet's validation images).
    """

    full_state_update = False
    logits: list[Tensor]
    label: list[Tensor]
    index: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("logits", "label", "index"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, label: Tensor, index: Tensor) -> None:
        """Add a batch: logits [B, C], labels [B, ...] and positions [B]."""
        self.logits.append(logits)
        self.label.append(label)
        self.index.append(index)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [N, C], labels [N, ...] and positions [N], by position."""
        logits, label, index = (dim_zero_cat(one) for one in (self.logits, self.label, self.index))
        order = index.argsort(stable=True)
        return logits[order], label[order], index[order]


def gather_logits(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> Answers:
    """Run a network over this rank's share of a set, in evaluation mode and without gradients; the answers of all
    ranks, in the order of the images. Every rank calls this.

    The batches of a set are the same for any number of ranks (:class:`~vitlab.data.sampler.ShardSampler`), so the
    logits are too, bit for bit.

    Args:
        model: moved to ``device`` by the caller; left in the mode (train or eval) it came in.
        loader: yields batches with unmixed labels.
        progress: called after each batch with the number of images that this rank has done.

    Raises:
        ValueError: no rank has a batch.
    """
    training = model.training
    model.eval()
    gathered, done = GatheredLogits(), 0
    try:
        with torch.inference_mode():
            for batch in loader:
                output = model(batch.image.to(device, non_blocking=True))
                gathered.update(output.float().cpu(), batch.label.cpu(), batch.index.cpu())
                done += len(batch)
                if progress is not None:
                    progress(done)
    finally:
        model.train(training)
    logits, label, index = compute(gathered, device)
    return Answers(logits.numpy(), label.numpy(), index.numpy())


def compute(gathered: GatheredLogits, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The metric over all ranks, on the CPU; its tensors travel by ``device``, which the ranks' backend can reach."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        if not gathered.index:
            raise ValueError("the loader has no batches: nothing to evaluate")
        found: tuple[Tensor, Tensor, Tensor] = gathered.compute()
        return found
    # A rank without a batch of its own still takes part, with empty tensors of the right shape and type.
    mine = [(tuple(one.shape[1:]), one.dtype) for one in _first(gathered)] if gathered.index else None
    shapes: list[list[tuple[tuple[int, ...], torch.dtype]] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shapes, mine)
    known = next((one for one in shapes if one is not None), None)
    if known is None:
        raise ValueError("the loader has no batches: nothing to evaluate")
    if mine is None:
        gathered.update(*(torch.empty((0, *shape), dtype=dtype) for shape, dtype in known))
    gathered.to(device)
    logits, label, index = gathered.compute()
    return logits.cpu(), label.cpu(), index.cpu()


def _first(gathered: GatheredLogits) -> tuple[Tensor, Tensor, Tensor]:
    return gathered.logits[0], gathered.label[0], gathered.index[0]
