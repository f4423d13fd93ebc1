"""What the fields of ``model.json`` may hold. A file of someone else is checked before a network is built from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vitlab.config.size import MOST_PIXELS

REFUSED_ARGS = (
    *("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"),
    *("num_classes", "cache_dir", "features_only", "scriptable", "exportable", "no_jit"),
)
"""Arguments of ``timm.create_model`` that read another file or build something that is no classifier."""


def check_meta(stored: Mapping[str, Any]) -> str:
    """The first field with a value that it cannot have, and what it takes; empty if there is none."""
    for name, (valid, takes) in SCHEMA.items():
        if name in stored and not valid(stored[name]):
            shown = repr(stored[name])
            return f"{name} is {shown if len(shown) <= 60 else shown[:57] + '...'}, not {takes}"
    if refused := sorted(set(REFUSED_ARGS) & set(stored["args"])):
        return f"args has {refused[0]}, which is not an argument of the network"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(isinstance(one, int) and not isinstance(one, bool) and 0 < one <= MOST_PIXELS for one in sides)


def _is_classes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_mean(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


SCHEMA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda value: _is_text(value) and bool(value), "the name of a timm model"),
    "args": (_is_object, "an object"),
    "classes": (_is_classes, "a list of names"),
    "size": (_is_size, f"a side in pixels up to {MOST_PIXELS}, or [height, width]"),
    "mean": (_is_mean, "three numbers"),
    "std": (lambda value: _is_mean(value) and min(value) > 0, "three numbers above 0"),
    "crop_pct": (lambda value: _is_number(value) and 0 < value <= 10, "a number in (0, 10]"),
    "interpolation": (lambda value: value in ("nearest", "bilinear", "bicubic"), "nearest, bilinear or bicubic"),
    "crop": (lambda value: value in ("auto", "center", "squash", "squash_crop"), "auto, center, squash or squash_crop"),
    "origin": (_is_text, "text"),
    "licence": (_is_text, "text"),
    "method": (_is_text, "text"),
    "metrics": (_is_object, "an object"),
    "vitlab": (_is_text, "text"),
    "sha256": (_is_text, "text"),
    "task": (_is_text, "text"),
    "fitted": (_is_object, "an object"),
}
