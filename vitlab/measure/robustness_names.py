"""The names of corruptions, shifted sets and backends, for the prompt too: no numpy here."""

from __future__ import annotations

FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""The corruptions of ImageNet-C."""

CORRUPTIONS = tuple(name for names in FAMILIES.values() for name in names)
SEVERITIES = (1, 2, 3, 4, 5)

SHIFTED = ("val", "v2", "v2_threshold", "v2_top", "a", "r", "sketch", "objectnet", "c")
"""ImageNet's validation images and the sets that shift away from them: see :mod:`vitlab.data.shifted`."""

BACKENDS = ("eager", "compile", "onnxruntime", "openvino")
"""Ways in which a network is timed: see :mod:`vitlab.measure.backends`."""
