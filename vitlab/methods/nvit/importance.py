"""Importance of prunable units: the squared first-order change of the loss (paper section 3.2; specification 5).

Removing a unit S sets its weights to zero; to first order the loss of batch t changes by -u_t(S), where u_t(S) is the
sum of w dL_t/dw over the weights of S. The importance is the mean of u_t(S)^2 over the batches of an interval,
w^T E[g g^T] w: a quadratic form in the empirical Fisher matrix, which stands for the Hessian. As every score estimates
the same thing, the squared change of one loss, one threshold serves all kinds of units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NORMS = {"embedding": 12, "head": 12, "qk": 2, "v": 2, "mlp": 1}
"""Divisors of u in the official code, by kind of unit. The 12 of the embedding is presumably the depth of DeiT-B; that
of the heads is 6 times 2, since the head's entry also matches the name test of Q and V."""


def unit_importance(sums: Tensor, norm: float = 1.0) -> Tensor:
    """I(S) = (u(S) / n)^2.

    Args:
        sums: u of each unit [units], the signed sum of weight times gradient.
        norm: n, of :data:`NORMS` or 1.
    """
    return (sums / norm).square()


class RunningImportance:
    """Means over the batches of an interval, and their exponential average over the intervals.

    With C_k the mean of interval k: A_1 = C_1 and A_k = m A_(k-1) + (1 - m) C_k where ``correct_bias`` is off, as in
    the official code; else the average starts at zero and is divided by 1 - m^k, so that every interval has the weight
    that its age gives it, the first too.

    Args:
        units: of each axis.
        momentum: m.
        correct_bias: see above.
        reset_after_first: set the average to zero after the first interval, once it was used, and go on without a
            correction: 0.1 C_2, then the 0.19-fold of the scale, and so on (official code).

    Attributes:
        intervals: that were closed.
        batches: in the open interval.
        non_finite: sums that were not finite and counted as 0, in all.

    Raises:
        ValueError: a momentum outside of [0, 1).
    """

    def __init__(
        self,
        units: Sequence[int],
        *,
        momentum: float = 0.9,
        correct_bias: bool = True,
        reset_after_first: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"a momentum is in [0, 1), got {momentum}")
        self.momentum, self.correct_bias, self.reset_after_first = momentum, correct_bias, reset_after_first
        self.units = list(units)
        self.total = torch.zeros(sum(units), dtype=torch.float64, device=device)  # of the open interval
        self.average = torch.zeros_like(self.total)
        self.intervals = self.batches = 0
        self._non_finite = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def non_finite(self) -> int:
        return int(self._non_finite)

    def add(self, importance: Sequence[Tensor]) -> None:
        """Add I_t of one batch, a tensor [units] for each axis. Nothing is copied to the host."""
        joined = torch.cat([one.detach().to(self.total) for one in importance])
        finite = joined.isfinite()
        self._non_finite += (~finite).sum()
        self.total += torch.where(finite, joined, 0)
        self.batches += 1

    def close_interval(self) -> list[Tensor]:
        """End the interval; A of every axis, float64 on the CPU.

        Raises:
            RuntimeError: no batch was added.
        """
        if not self.batches:
            raise RuntimeError("an interval without a batch has no mean")
        mean, m = self.total / self.batches, self.momentum
        self.intervals += 1
        if self.intervals == 1 and not self.correct_bias:
            self.average = mean
        else:
            self.average = m * self.average + (1 - m) * mean
        result = self.average / (1 - m**self.intervals) if self.correct_bias else self.average
        if self.intervals == 1 and self.reset_after_first:
            self.average = torch.zeros_like(mean)
        self.total, self.batches = torch.zeros_like(mean), 0
        return list(result.cpu().split(self.units))

    def to(self, device: torch.device | str) -> RunningImportance:
        """Move the sums there; returns itself."""
        for name in ("total", "average", "_non_finite"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: tensors and integers."""
        return {
            "total": self.total.cpu(),
            "average": self.average.cpu(),
            "intervals": self.intervals,
            "batches": self.batches,
            "non_finite": self.non_finite,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            ValueError: it is of other units.
        """
        if state["total"].shape != self.total.shape:
            raise ValueError(f"the state is of {len(state['total'])} units, not of {len(self.total)}")
        self.total, self.average = (state[name].to(self.total) for name in ("total", "average"))
        self.intervals, self.batches = state["intervals"], state["batches"]
        self._non_finite = torch.as_tensor(state["non_finite"], device=self.total.device)
