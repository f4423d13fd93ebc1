"""The names of the files that a network can be exported as, for the prompt too: no torch here."""

from __future__ import annotations

FORMATS = ("safetensors", "timm", "hub", "onnx", "onnx_int8", "torch_export")
"""What ``export.formats`` accepts: see :mod:`vitlab.report.export`."""

ONNX_NEEDS = ("onnx", "onnxruntime", "onnxscript")
"""Packages without which neither of the two ONNX formats can be written and checked."""
