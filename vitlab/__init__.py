"""vitlab: experiments on small, fast vision models; see ``python -m vitlab --help``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitlab._version import __version__

__all__ = ["__version__", "load_model"]

if TYPE_CHECKING:
    from vitlab.modes.predictor import load_model


def __getattr__(name: str) -> Any:
    # Imported on access: the command line must not import torch for --help.
    if name == "load_model":
        from vitlab.modes.predictor import load_model

        return load_model
    raise AttributeError(f"module 'vitlab' has no attribute '{name}'")
