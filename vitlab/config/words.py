"""Networks and data sets of a configuration in words: for the plan, the report and the model card. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitlab.config.tree import DatasetConfig

SAME_NETWORK = ("drop", "img_size", "pretrained", "checkpoint", "num_classes")
"""How arguments begin, or end, that leave a network what its name says."""


def describe_network(name: str, args: Mapping[str, Any]) -> str:
    """timm's name, and which arguments make it another network than that of the name.

    ``tiny_vit_5m_224 with embed_dims, depths of its own``.
    """
    own = [
        key
        for key, value in args.items()
        if value is not None and not key.startswith(SAME_NETWORK) and not key.endswith("drop_rate")
    ]
    return f"{name} with {', '.join(own)} of its own" if own else name


def dataset_title(name: str, root: str | None, csv: str | None) -> str:
    """What a data set is called on a page: ``dataset=folder`` by its CSV or its folder, others by their name."""
    path = csv or root
    if name != "folder" or not path:
        return name
    return Path(path).expanduser().resolve().name if not csv else Path(csv).name


def describe_own_images(cfg: DatasetConfig) -> str:
    """The images of ``dataset=folder`` in a sentence."""
    title = dataset_title(cfg.name, cfg.root, cfg.csv)
    return f"The images that {title} lists." if cfg.csv else f"The images in the folder {title}."
