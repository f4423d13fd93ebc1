"""Top-K teacher probabilities: their sparse and dense forms, and the losses against them.

Sources: TinyViT (arXiv 2207.10666, eq. 1-2) for the recovered label and the cross-entropy, Dataset Reinforcement
(arXiv 2303.08983) for the KL divergence and its rules for rows whose stored mass exceeds one. All arithmetic is
float32 whatever the autocast state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SparseTarget:
    """The K largest of ``classes`` probabilities per row: prob [B, K] float32, index [B, K] int64.

    In descending order in vitlab's stores; in any order in the released reinforcements.
    """

    prob: Tensor
    index: Tensor
    classes: int

    def __post_init__(self) -> None:
        if self.prob.ndim != 2 or self.prob.shape != self.index.shape:
            raise ValueError(f"prob and index must both be [B, K], got {self.prob.shape} and {self.index.shape}")
        if not 0 < self.prob.shape[1] <= self.classes:
            raise ValueError(f"{self.prob.shape[1]} stored classes do not fit into {self.classes}")

    def __len__(self) -> int:
        return self.prob.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SparseTarget:
        """The same target on ``device``."""
        prob = self.prob.to(device, non_blocking=non_blocking)
        return SparseTarget(prob, self.index.to(device, non_blocking=non_blocking), self.classes)

    def pin_memory(self) -> SparseTarget:
        """The same target in page-locked memory, from which copies to a GPU can be asynchronous."""
        return SparseTarget(self.prob.pin_memory(), self.index.pin_memory(), self.classes)

    def argmax(self) -> Tensor:
        """The teacher's most probable class, [B] int64."""
        return self.index.gather(1, self.prob.argmax(1, keepdim=True))[:, 0]


def sparsify(prob: Tensor, k: int) -> SparseTarget:
    """The ``k`` largest of ``prob`` [B, C] (non-negative), sorted by (-probability, class): ties are deterministic.

    Raises:
        ValueError: if k does not fit into C, or a probability is negative or not a number.
    """
    prob = prob.detach().float() + 0.0  # -0.0 becomes 0.0, whose bits sort
    classes = prob.shape[1]
    if not 0 < k <= classes:
        raise ValueError(f"cannot keep {k} of {classes} classes")
    if not bool((prob >= 0).all()):
        raise ValueError("probabilities must be numbers >= 0")
    # Bits of non-negative floats sort like the floats; the class in the lower bits makes every key unique, so topk
    # has no ties to break, which it would do differently on each device.
    key = prob.contiguous().view(torch.int32).long() << 32
    key |= torch.arange(classes - 1, -1, -1, device=prob.device)
    index = key.topk(k, dim=1).indices
    return SparseTarget(prob.gather(1, index), index, classes)


def densify(target: SparseTarget, mode: str = "smooth", compat: str = "vitlab", clamp_minor: bool = False) -> Tensor:
    """The label over all classes, [B, C] float32.

    ``smooth``: each of the C - K classes that were not stored gets m = (1 - sum p) / (C - K) (TinyViT, eq. 1). The
    rounding of stored probabilities can make m slightly negative, which the official code keeps; with ``clamp_minor``
    the residue is raised to zero and the row divided by its sum. K = C has no such classes.
    ``zeros``: the stored probabilities over their sum, nothing elsewhere.
    ``compat="official"`` is Dataset Reinforcement's code: where the mode is ``zeros``, or the residue is negative,
    the stored classes get softmax(p), a softmax over probabilities, which flattens a confident label.

    Raises:
        ValueError: for another mode or compat.
    """
    if mode not in ("smooth", "zeros") or compat not in ("vitlab", "official"):
        raise ValueError(f"mode is smooth or zeros and compat vitlab or official, got {mode!r} and {compat!r}")
    prob = target.prob.float()
    others = target.classes - prob.shape[1]
    residue = 1 - prob.sum(1, keepdim=True)
    if compat == "official":
        flat = residue < 0 if mode == "smooth" else torch.ones_like(residue, dtype=torch.bool)
        prob = torch.where(flat, prob.softmax(1), prob)
        residue = torch.where(flat, 0.0, residue)
    elif mode == "zeros":
        prob, residue = prob / (1 - residue), torch.zeros_like(residue)
    elif clamp_minor:
        # Half-precision rounding can push the stored sum above 1; a negative rest has no logarithm.
        residue = residue.clamp(min=0) if others else torch.zeros_like(residue)
        total = prob.sum(1, keepdim=True) + residue
        prob, residue = prob / total, residue / total
    minor = residue / max(others, 1)
    return minor.expand(-1, target.classes).scatter(1, target.index, prob)


def soft_cross_entropy(logits: Tensor, target: SparseTarget | Tensor, clamp_minor: bool = False) -> Tensor:
    """Mean over the batch of -sum_c y_c log softmax(z)_c (TinyViT, eq. 2), a scalar.

    ``target``: dense [B, C], or sparse, which stands for its ``smooth`` label without materialising it:
    T logsumexp(z) - sum_k (p_k - m) z_k - m sum_c z_c, T the label's sum. ``logits`` [B, C] of any float type.

    Raises:
        ValueError: if the shapes of logits and target differ.
    """
    _check_shapes(logits, target)
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        if isinstance(target, Tensor):
            return -(target.float() * logits.log_softmax(1)).sum(1).mean()
        # A row has only K + 1 distinct values, so the sums need no dense [B, C] label in memory.
        prob, minor = _parts(target, clamp_minor)
        total = prob.sum(1) + minor * (target.classes - prob.shape[1])
        major = ((prob - minor[:, None]) * logits.gather(1, target.index)).sum(1)
        return (total * logits.logsumexp(1) - major - minor * logits.sum(1)).mean()


def kl_divergence(
    logits: Tensor,
    target: SparseTarget | Tensor,
    temperature: float = 1.0,
    mode: str = "smooth",
    compat: str = "vitlab",
) -> Tensor:
    """KL(target || softmax(logits / T)) T^2, mean over the batch, 0 log 0 = 0 (Dataset Reinforcement), a scalar.

    ``target``: dense [B, C] or sparse, the teacher's probabilities at the same temperature. A sparse target is
    densified by ``mode`` and ``compat`` (see :func:`densify`; a negative residue is always clamped, since the logarithm
    needs it); with ``smooth`` and ``vitlab`` the dense label is never materialised.

    Raises:
        ValueError: if the shapes of logits and target differ.
    """
    _check_shapes(logits, target)
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float() / temperature
        if isinstance(target, SparseTarget) and (mode, compat) == ("smooth", "vitlab"):
            prob, minor = _parts(target, clamp_minor=True)
            others = target.classes - prob.shape[1]
            entropy = -(torch.special.xlogy(prob, prob).sum(1) + others * torch.special.xlogy(minor, minor))
            loss = soft_cross_entropy(logits, target, clamp_minor=True) - entropy.mean()
        else:
            dense = target if isinstance(target, Tensor) else densify(target, mode, compat, clamp_minor=True)
            dense = dense.float()
            loss = (torch.special.xlogy(dense, dense) - dense * logits.log_softmax(1)).sum(1).mean()
        return loss * temperature**2


def _parts(target: SparseTarget, clamp_minor: bool) -> tuple[Tensor, Tensor]:
    """Stored probabilities [B, K] and the probability [B] of each class that was not stored (smooth label)."""
    prob = target.prob.float()
    total = prob.sum(1)
    others = target.classes - prob.shape[1]
    residue = 1 - total
    if clamp_minor:
        # With K = C there is no class to carry a rest: the row is only divided by its sum.
        residue = residue.clamp(min=0) if others else torch.zeros_like(residue)
        total = total + residue
        prob, residue = prob / total[:, None], residue / total
    return prob, residue / others if others else torch.zeros_like(residue)


def _check_shapes(logits: Tensor, target: SparseTarget | Tensor) -> None:
    shape = target.shape if isinstance(target, Tensor) else (len(target), target.classes)
    if tuple(logits.shape) != tuple(shape):
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(shape)} must have the same shape [B, C]")
