"""How much memory a forward pass needs beside the weights."""

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
    """Bytes that one forward pass of [batch, 3, H, W] holds at its worst moment, the images among them and the
    weights not.

    On a CUDA device it is the allocator's own account. Elsewhere the tensors are counted that exist between two
    operations; scratch space inside an operation is not.
    """
    like = next(model.parameters())
    images = torch.zeros(batch, 3, *hw(size), dtype=like.dtype, device=like.device)
    with eval_mode(model):
        model(images)  # tables that a network keeps from its first pass are not part of the next
        if like.device.type == "cuda":
            before = torch.cuda.memory_allocated(like.device)
            torch.cuda.reset_peak_memory_stats(like.device)
            model(images)
            torch.cuda.synchronize(like.device)
            return torch.cuda.max_memory_allocated(like.device) - before + images.nbytes
        with Live() as live:
            model(images)
        return live.peak + images.nbytes


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make inside this context; each storage once, until it is freed.

    Attributes:
        now, peak: bytes alive at this moment, and at the worst.
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
        if key in self._seen or key in before:  # an own tensor again, or a view of a weight or of the images
            return
        self._seen.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size
