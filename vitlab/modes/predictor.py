"""``vitlab.load_model``: a network that predicts pictures as ``mode=predict`` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.models.artifact import load_model as load_network
from vitlab.models.eval_mode import eval_mode
from vitlab.modes.predict import prepare, readable, view_of
from vitlab.tasks.base import Top, find_task

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn


@dataclass(frozen=True)
class Predictor:
    """The ``predict`` of a loaded network.

    An object and not a closure or a bound method, so that the network can be copied and pickled with it.
    """

    network: nn.Module

    def __call__(self, picture: str | Path | Image.Image, topk: int = 5) -> Top:
        """What the task of the network predicts for one picture, as ``mode=predict`` gives it.

        Args:
            picture: a file, or an image of Pillow in any mode: the EXIF orientation is applied, transparent pixels lie
                on white, 16-bit grey keeps its upper byte; then the view that the network was measured with.
            topk: classes in the result; of a multi-label network every label at or above its threshold is given.

        Returns:
            (name, probability) pairs, the most probable first; temperature or thresholds are those in ``model.json``.

        Raises:
            UserError: naming the file, if it is missing or does not decode.
        """
        meta: Any = self.network.meta
        image = prepare(picture, view_of(meta)).to(next(self.network.parameters()).device)
        with eval_mode(self.network):
            logits = self.network(image[None])
        return find_task(meta.task).predict(logits, readable(meta.classes), topk, meta.fitted)[0]


def load_model(folder: str | Path) -> nn.Module:
    """Rebuild the network of a model folder, in eval mode, with ``.meta`` and ``.predict``.

    ``model.predict("a.jpg")`` gives (name, probability) pairs (see :class:`Predictor`); ``model.meta`` is the
    :class:`~vitlab.models.artifact.ModelMeta`. The logits [B, classes] for an image [B, 3, H, W], normalised with
    ``meta.mean`` and ``meta.std``, are those of the network that was saved, bit for bit on the same machine.

    Raises:
        UserError: files missing, not belonging together, or of an architecture that is not registered here.
    """
    network = load_network(folder)
    network.predict = Predictor(network)  # type: ignore[assignment]  # torch types an attribute as Tensor or Module
    return network
