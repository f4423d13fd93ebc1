"""Objectives on the labels alone, and the metrics of a training step: pure functions of logits and labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.distill.sparse import SparseTarget


def label_cross_entropy(
    logits: Tensor,
    label: Tensor,
    target: SparseTarget | Tensor | None = None,
    *,
    smoothing: float = 0.0,
    class_weight: Tensor | None = None,
    log_prior: Tensor | None = None,
) -> dict[str, Tensor]:
    """Cross-entropy with the labels, computed in fp32.

    Args:
        logits: [B, C].
        label: class ids [B], or mixed labels [B, C] whose rows sum to 1.
        target: not used: there is no teacher.
        smoothing: share s of the label spread evenly over all C classes, in the mixed label too.
        class_weight: w [C]; the loss is the batch's mean of ``sum_c w_c y_c (-log p_c)``, y the smoothed label. It is
            not divided by the batch's own weights, as torch does for class ids: the step would then depend on which
            micro-batch or rank a rare class falls into.
        log_prior: log of the class priors [C], added to the logits (logit-adjusted softmax cross-entropy with tau = 1;
            Menon et al., Long-tail learning via logit adjustment, ICLR 2021, Eq. 10); what is measured later are the
            plain logits.
    """
    scores = logits.float()
    if log_prior is not None:
        scores = scores + log_prior.to(scores.device)
    if class_weight is None:
        return {"loss": F.cross_entropy(scores, label, label_smoothing=smoothing)}
    share = label if label.ndim == 2 else F.one_hot(label, scores.shape[1]).to(scores.dtype)
    # With rows of probabilities torch weighs each class's term and divides by the number of rows alone.
    weight = class_weight.to(scores.device)
    return {"loss": F.cross_entropy(scores, share.to(scores.dtype), weight=weight, label_smoothing=smoothing)}


def binary_cross_entropy(
    logits: Tensor,
    label: Tensor,
    target: SparseTarget | Tensor | None = None,
    *,
    pos_weight: Tensor | None = None,
    smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """Mean over images and labels of ``-w y log s(z) - (1 - y) log(1 - s(z))`` with the sigmoid s, computed in fp32.

    Args:
        logits: [B, K].
        label: rows [B, K] in [0, 1]; of mixed images, rows mixed alike.
        target: not used: there is no teacher.
        pos_weight: w of each label [K]; None: 1.
        smoothing: labels move by half of it towards 1/2.
    """
    wanted = label.float() * (1 - smoothing) + smoothing / 2
    weight = None if pos_weight is None else pos_weight.to(logits.device)
    return {"loss": F.binary_cross_entropy_with_logits(logits.float(), wanted, pos_weight=weight)}


def label_accuracy(logits: Tensor, label: Tensor) -> Tensor:
    """Share of (image, label) pairs that are decided right at probability 1/2, mixed labels rounded; scalar."""
    return ((logits > 0) == (label > 0.5)).to(torch.float32).mean()


def accuracy(logits: Tensor, label: Tensor) -> Tensor:
    """Share of rows whose arg-max is the label's, mixed labels [B, C] counting by their largest entry; scalar."""
    truth = label if label.ndim == 1 else label.argmax(1)
    return (logits.argmax(1) == truth).to(torch.float32).mean()
