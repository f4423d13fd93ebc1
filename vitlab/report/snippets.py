"""Code that is handed over with a model: each prepares a picture as ``mode=predict`` does, and predicts the same.

The three differ in what they need: vitlab, timm, or onnxruntime alone. The first calls ``model.predict``; the other two
repeat the steps of :func:`vitlab.data.decode.to_rgb` and :class:`vitlab.distill.views.EvalView` in plain Pillow.
"""

from __future__ import annotations

LOAD_CODE = """\
import vitlab

model = vitlab.load_model("{folder}")
for name, probability in model.predict("picture.png"):
    print(name, probability)
"""
"""Python with vitlab: ``folder`` is that of the model."""

RGB_CODE = """\
image = ImageOps.exif_transpose(Image.open(open("picture.png", "rb")))
if image.mode.startswith("I;16"):  # 16-bit grey: the upper byte
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
if image.has_transparency_data:  # transparent pixels lie on white
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
image = image.convert("RGB")
"""
"""A picture as upright 8-bit RGB; needs ``numpy as np``, ``Image`` and ``ImageOps``."""

TIMM_CODE = (
    """\
import numpy as np
import timm
import torch
{imports}from PIL import Image, ImageOps

model = timm.create_model("{repository}", pretrained=True).eval()
"""
    + RGB_CODE
    + """\
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    logits = model(transform(image)[None])[0]
probability = {activation}
for index in probability.argsort(descending=True)[:5].tolist():
    print(model.pretrained_cfg["label_names"][index], float(probability[index]))
"""
)
"""Python with timm: ``repository`` as timm names it (hf-hub:USER/NAME), ``imports`` a line that registers the
architecture, ``activation`` an expression of ``logits`` [classes]."""

ONNX_CODE = (
    """\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
meta = session.get_modelmeta().custom_metadata_map
"""
    + RGB_CODE
    + """\
size, crop_pct = json.loads(meta["size"]), float(meta["crop_pct"])
height, width = (size, size) if isinstance(size, int) else size
across, down = image.size
if meta["crop"] == "squash":  # both sides resized, nothing cut
    wide, high = width, height
elif meta["crop"] == "squash_crop":  # both sides to size / crop_pct
    wide, high = int(width / crop_pct), int(height / crop_pct)
elif height == width:  # short side to size / crop_pct
    short = int(width / crop_pct)
    wide, high = (short, int(short * down / across)) if across <= down else (int(short * across / down), short)
else:  # covers both sides / crop_pct
    scale = min(down / int(height / crop_pct), across / int(width / crop_pct))
    wide, high = round(across / scale), round(down / scale)
image = image.resize((wide, high), Image.Resampling[meta["interpolation"].upper()])
left, top = round((wide - width) / 2), round((high - height) / 2)
pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32).transpose(2, 0, 1) / 255
mean, std = (np.array(json.loads(meta[key]), np.float32)[:, None, None] for key in ("mean", "std"))
(logits,) = session.run(None, {{"image": ((pixels - mean) / std)[None]}})
logits = logits[0].astype(np.float64) / float(meta.get("temperature", 1))
if meta.get("activation") == "sigmoid":
    probability = 1 / (1 + np.exp(-logits))
else:
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
classes = json.loads(meta["classes"])
for index in (-probability).argsort()[:5]:
    print(classes[index], float(probability[index]))
"""
)
"""Python with onnxruntime, NumPy and Pillow: ``file`` is the ONNX file."""
