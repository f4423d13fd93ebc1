"""Teachers behind one interface: called with a batch, they return its soft labels.

They are plain objects, not modules: a teacher must never end up in a student's checkpoint, weight average or
gradient buckets. Each has its own normalisation and input size, and accepts batches normalised for the student.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlab.config.size import Size, hw, plain_size
from vitlab.distill.sparse import SparseTarget
from vitlab.errors import UserError

PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Views(Protocol):
    """The fields of a batch that a teacher reads: image [B, 3, H, W], normalised for the student, and its targets."""

    image: Tensor
    target: SparseTarget | None


class Teacher(Protocol):
    """Maps a batch to probabilities [B, C] float32, or to the K largest of them; without gradients."""

    def __call__(self, batch: Views) -> Tensor | SparseTarget: ...

    def to(self, device: torch.device | str) -> Teacher: ...

    def describe(self) -> dict[str, Any]: ...


class OnlineTeacher:
    """A network that labels batches as they come: softmax(logits / temperature) in float32, eval mode, no gradient.

    ``mean`` and ``std``: of the network's training; ``batch_mean`` and ``batch_std``: of the batch. Where they differ
    the image is converted by one multiply-add; where they are equal it stays bit-identical. ``size``: input of the
    network, a side or (height, width); other views are resized (antialiased ``interpolation``). ``precision`` of the
    forward pass: fp32, tf32 (fp32 whose products are rounded to 10 bits, on GPUs that support it), bf16 or fp16; the
    softmax is always float32.
    ``name``: for :meth:`describe`.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        size: Size,
        batch_mean: Sequence[float],
        batch_std: Sequence[float],
        temperature: float = 1.0,
        precision: str = "fp32",
        name: str = "",
        interpolation: str = "bicubic",
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"a temperature is above 0, got {temperature}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.size = plain_size(size)
        self.temperature = temperature
        self.precision = precision
        self.interpolation = interpolation
        self._affine: tuple[Tensor, Tensor] | None = None
        if (tuple(mean), tuple(std)) != (tuple(batch_mean), tuple(batch_std)):
            # (x s_batch + m_batch - m) / s as one scale and shift, composed in float64.
            own, theirs = (torch.tensor([m, s], dtype=torch.float64) for m, s in ((mean, std), (batch_mean, batch_std)))
            scale, shift = theirs[1] / own[1], (theirs[0] - own[0]) / own[1]
            self._affine = scale.float().reshape(-1, 1, 1), shift.float().reshape(-1, 1, 1)
        self._sha256: str | None = None

    def __call__(self, batch: Views) -> Tensor:
        """Probabilities [B, C] float32."""
        self.model.eval()  # another holder of the network may have set training mode
        dtype = PRECISIONS[self.precision]
        with torch.no_grad():
            image = self.prepare(batch.image)
            kind = image.device.type
            autocast = torch.autocast(kind, dtype) if dtype is not None else torch.autocast(kind, enabled=False)
            with autocast, _allow_tf32(kind, self.precision == "tf32"):
                logits = self.model(image)
            # Outside autocast: half precision would lose the small probabilities.
            with torch.autocast(kind, enabled=False):
                return (logits.float() / self.temperature).softmax(1)

    def prepare(self, image: Tensor) -> Tensor:
        """``image`` resized and renormalised to the input of this network."""
        if tuple(image.shape[-2:]) != hw(self.size):
            antialias = self.interpolation in ("bilinear", "bicubic")
            image = F.interpolate(image, hw(self.size), mode=self.interpolation, antialias=antialias)
        if self._affine is not None:
            scale, shift = (t.to(image.device) for t in self._affine)
            image = torch.addcmul(shift, image, scale)
        return image

    def to(self, device: torch.device | str) -> OnlineTeacher:
        """Move the network there; returns the teacher itself."""
        self.model.to(device)
        if self._affine is not None:
            self._affine = self._affine[0].to(device), self._affine[1].to(device)
        return self

    @property
    def networks(self) -> list[nn.Module]:
        """The network, as a list of one."""
        return [self.model]

    @property
    def sha256(self) -> str:
        """Hash of the network's state, computed once."""
        if self._sha256 is None:
            self._sha256 = state_hash(self.model)
        return self._sha256

    def describe(self) -> dict[str, Any]:
        """Everything that determines the labels; part of a store's description."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "size": self.size,
            "temperature": self.temperature,
            "precision": self.precision,
        }


@contextlib.contextmanager
def _allow_tf32(kind: str, allowed: bool) -> Iterator[None]:
    """Whether products of float32 may be rounded (TF32); a setting of CUDA alone."""
    if kind != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class Ensemble:
    """The weighted mean of its members' probabilities (Dataset Reinforcement, section 3); never of their logits.

    ``weights``: one per member, any scale; None: equal. Each member has its own temperature, size and normalisation.

    Raises:
        UserError: if two members have the same weights: some model names are aliases of one another.
    """

    def __init__(self, members: Sequence[OnlineTeacher], weights: Sequence[float] | None = None) -> None:
        if not members:
            raise ValueError("an ensemble needs a member")
        weights = [1.0] * len(members) if weights is None else list(weights)
        if len(weights) != len(members):
            raise UserError(f"teacher.weights has {len(weights)} numbers for {len(members)} teacher.members.")
        if min(weights) < 0 or sum(weights) == 0:
            raise UserError(f"teacher.weights={weights} must not be negative, nor all zero.")
        seen: dict[str, str] = {}
        for member in members:
            if member.sha256 in seen:
                raise UserError(
                    f"teacher.members '{seen[member.sha256]}' and '{member.name}' have the same weights.",
                    "Name each network once; an old timm name may stand for another model.",
                )
            seen[member.sha256] = member.name
        self.members = list(members)
        self.weights = [weight / sum(weights) for weight in weights]

    def __call__(self, batch: Views) -> Tensor:
        """Probabilities [B, C] float32."""
        mean = self.members[0](batch) * self.weights[0]
        for member, weight in zip(self.members[1:], self.weights[1:], strict=True):
            mean += member(batch) * weight
        return mean

    @property
    def networks(self) -> list[nn.Module]:
        """Those of the members."""
        return [member.model for member in self.members]

    def to(self, device: torch.device | str) -> Ensemble:
        """Move every member there; returns the ensemble itself."""
        for member in self.members:
            member.to(device)
        return self

    def describe(self) -> dict[str, Any]:
        """The members' descriptions and their weights."""
        return {"members": [member.describe() for member in self.members], "weights": self.weights}


class StoredTeacher:
    """Returns the targets that the loader read from a TargetStore; no network. ``description``: the store's."""

    def __init__(self, description: dict[str, Any] | None = None) -> None:
        self._description = description or {}

    def __call__(self, batch: Views) -> SparseTarget:
        """The batch's stored targets.

        Raises:
            RuntimeError: if the batch was loaded without a store.
        """
        if batch.target is None:
            raise RuntimeError("the batch carries no stored targets: its loader was not given a store")
        return batch.target

    def to(self, device: torch.device | str) -> StoredTeacher:
        """Returns itself: targets are moved with their batch."""
        return self

    def describe(self) -> dict[str, Any]:
        """The description of the teacher that filled the store."""
        return dict(self._description)


def state_hash(module: nn.Module) -> str:
    """sha256 hex of a module's state: names, types, shapes and bytes of parameters and buffers, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
