"""Statistics of a store of reinforcements: entropy and agreement of the labels, kinds of views, partners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitlab.distill.reinforce_draw import OPS
from vitlab.distill.reinforce_record import CUTMIX, ERASE, FLIP, MIXED, MIXUP, NO_OP
from vitlab.distill.reinforce_store import ReinforcedStore
from vitlab.distill.sparse import densify
from vitlab.distill.store_spec import BLOCK

ROWS = 1 << 22
"""Probabilities densified at a time."""


@dataclass
class Statistics:
    """Means over records; shares are of all records but for ``agreement``."""

    images: int
    samples: int
    record_bytes: int
    entropy: float = 0.0  # of the label over all classes (section 6, smooth), nats
    confidence: float = 0.0  # the largest stored probability
    mass: float = 0.0  # sum of the stored probabilities
    agreement: float | None = None  # unmixed views whose most probable class is the image's; None: labels unknown
    agreement_mixed: float | None = None  # mixed views whose most probable class is the image's or the partner's
    shares: dict[str, float] = field(default_factory=dict)  # flip, erase, mixup, cutmix, both, unmixed
    ops: dict[str, float] = field(default_factory=dict)  # RandAugment's op to its share of all drawn ops
    own_partner: float | None = None  # mixed views whose partner is the image itself
    partners: list[int] = field(default_factory=list)  # how often an image is a partner: least, median, most

    def __str__(self) -> str:
        lines = [
            f"{self.images:,} images x {self.samples} samples, {self.record_bytes} bytes each, "
            f"{self.images * self.samples * self.record_bytes / 2**20:,.1f} MiB",
            f"label    entropy {self.entropy:.4f} nats, largest probability {self.confidence:.4f}, stored mass "
            f"{self.mass:.6f}",
        ]
        if self.agreement is not None:
            lines.append(f"teacher  {self.agreement:.2%} of the unmixed views predicted as the image's class")
        if self.agreement_mixed is not None:
            lines.append(f"         {self.agreement_mixed:.2%} of the mixed views as the image's or the partner's")
        lines.append("views    " + ", ".join(f"{name} {share:.2%}" for name, share in self.shares.items()))
        if self.ops:
            lines.append("ops      " + ", ".join(f"{name} {share:.2%}" for name, share in self.ops.items()))
        if self.partners:
            low, middle, high = self.partners
            lines.append(
                f"partners an image is one {low} to {high} times, median {middle}; {self.own_partner:.3%} of the mixed "
                "views are mixed with their own image"
            )
        return "\n".join(lines)


def statistics(
    store: ReinforcedStore,
    labels: NDArray[np.int64] | None,
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Read every record (of the first ``samples`` samples) once; images are not read.

    Args:
        labels: of the images [N]; None: agreement is not computed.
        progress: called with the samples read and their total.
    """
    spec, views = store.spec, store.views
    samples = min(samples or store.samples, store.samples)
    out = Statistics(store.images, samples, spec.record.itemsize)
    total = store.images * samples
    sums = dict.fromkeys(("entropy", "confidence", "mass"), 0.0)
    flagged = dict.fromkeys(("flip", "erase", "mixup", "cutmix", "both", "unmixed"), 0)
    right = {False: [0, 0], True: [0, 0]}  # mixed: [right, all]
    drawn = np.zeros(256, np.int64)
    partner, own = np.zeros(store.images if views.mixes else 0, np.int64), 0
    block = min(BLOCK, max(1, ROWS // spec.classes))
    for slot in range(samples):
        for begin in range(0, store.images, block):
            index = np.arange(begin, min(begin + block, store.images))
            records, target = store.store.read(np.full(len(index), slot), index)
            dense = densify(target, clamp_minor=True).double()
            sums["entropy"] -= float((dense * dense.clamp(min=1e-300).log()).sum())
            sums["confidence"] += float(target.prob.max(1).values.double().sum())
            sums["mass"] += float(target.prob.double().sum())
            flags = records["flags"][:, 0]
            mixed = (flags & MIXED) > 0
            for name, bit in (("flip", FLIP), ("erase", ERASE), ("mixup", MIXUP), ("cutmix", CUTMIX)):
                flagged[name] += int(((flags & bit) > 0).sum())
            flagged["both"] += int(((flags & (MIXUP | CUTMIX)) == MIXUP | CUTMIX).sum())
            flagged["unmixed"] += int((~mixed).sum())
            other = records["partner"][:, 0].astype(np.int64) if views.mixes else index
            if views.mixes:
                partner += np.bincount(other[mixed], minlength=store.images)
                own += int((other[mixed] == index[mixed]).sum())
            if views.augments:
                drawn += np.bincount(records["ops"].ravel(), minlength=256)
                if views.mixes:
                    drawn += np.bincount(records["partner_ops"][mixed].ravel(), minlength=256)
            if labels is not None:
                best = target.argmax().numpy()
                good = (best == labels[index]) | (mixed & (best == labels[other]))
                for kind in (False, True):
                    right[kind][0] += int(good[mixed == kind].sum())
                    right[kind][1] += int((mixed == kind).sum())
        if progress is not None:
            progress(slot + 1, samples)
    out.entropy, out.confidence, out.mass = (sums[name] / total for name in ("entropy", "confidence", "mass"))
    if labels is not None:
        out.agreement, out.agreement_mixed = (one / of if of else None for one, of in right.values())
    hidden = set() if views.augments else {"erase"}
    hidden |= set() if views.mixes else {"mixup", "cutmix", "both", "unmixed"}
    out.shares = {name: count / total for name, count in flagged.items() if name not in hidden}
    drawn[NO_OP] = 0
    if drawn.any():
        out.ops = {name: float(drawn[2 * i] + drawn[2 * i + 1]) / int(drawn.sum()) for i, name in enumerate(OPS)}
    if partner.any():
        out.own_partner = own / int(partner.sum())
        out.partners = [int(partner.min()), int(np.median(partner)), int(partner.max())]
    return out
