"""``views.png``: the first batch of a training as the network sees it, crops, colours, mixing and all."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor

from vitlab.data.batch import Batch
from vitlab.files import atomic_write

MOST = 32  # images on the sheet
SIDE = 64  # pixels of one at least: smaller ones are enlarged without smoothing
GAP = 2  # pixels between two


class ViewGrid(Callback):
    """Writes ``path`` when a training begins; a continued one finds it there.

    Args:
        mean, std: per channel, what the views were normalised with.
    """

    def __init__(self, path: Path, mean: Sequence[float], std: Sequence[float]) -> None:
        self.path, self.mean, self.std = path, mean, std
        self.done = path.exists()

    def on_train_batch_start(self, trainer: L.Trainer, learner: L.LightningModule, batch: Batch, index: int) -> None:
        if not self.done:
            self.done = True
            atomic_write(self.path, grid(batch.image[:MOST], self.mean, self.std))


def grid(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> bytes:
    """Normalised images [N, 3, H, W] side by side as a PNG, about twice as wide as high."""
    scale, shift = (torch.tensor(one).view(3, 1, 1) for one in (std, mean))
    pixels = (image.detach().float().cpu() * scale + shift).clamp(0, 1).mul(255).round().to(torch.uint8)
    times = max(1, math.ceil(SIDE / pixels.shape[-1]))
    pixels = pixels.repeat_interleave(times, 2).repeat_interleave(times, 3)
    count, _, height, width = pixels.shape
    columns = min(count, math.ceil(math.sqrt(2 * count)))
    rows = math.ceil(count / columns)
    paper = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for number, one in enumerate(pixels):
        place = (number % columns * (width + GAP), number // columns * (height + GAP))
        paper.paste(Image.fromarray(one.permute(1, 2, 0).numpy()), place)
    buffer = io.BytesIO()
    paper.save(buffer, "PNG")
    return buffer.getvalue()
