"""Peak memory of a forward pass, without the weights."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitlab.config.size import Size, hw
from vitlab.models.eval_mode import eval_mode


def peak_memory(model: nn.Module, size: Size, batch: int) -> int:
    """Peak bytes of one forward pass of [batch, 3, H, W], with the images and without the weights.

    On a CUDA device this is the statistic of the allocator. Elsewhere the tensors that exist between two operations are
    counted; scratch space inside an operation is not.
    """
    like = next(model.parameters())
    images = torch.zeros(batch, 3, *hw(size), dtype=like.dtype, device=like.device)
    with eval_mode(model):
        model(images)  # a first pass, since some networks cache tables in it
        if like.device.type == "cuda":
            before = torch.cuda.memory_allocated(like.device)
            torch.cuda.reset_peak_memory_stats(like.device)
            model(images)
            torch.cuda.synchronize(like.device)
            return torch.cuda.max_memory_allocated(like.device) - before + images.nbytes
        with LiveStorage() as live:
            model(images)
        return live.peak + images.nbytes


class LiveStorage(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make inside this context; each storage once, until it is freed.

    Attributes:
        now, peak: bytes alive at present, and their maximum so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given: Mapping[str, Any] = kwargs or {}
        before = {one.untyped_storage()._cdata for one in tree_leaves((args, given)) if isinstance(one, Tensor)}
        out = func(*args, **given)
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                self._count(one.untyped_storage(), before)
        return out

    def _count(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = storage._cdata
        if key in self._seen or key in before:  # counted already, or a view of a weight or of the images
            return
        self._seen.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        # Python frees a storage with its last tensor; there is no hook in torch for it.
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size
