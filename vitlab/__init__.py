"""vitlab: experiments on small, fast vision models. ``python -m vitlab --help`` is the way in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitlab._version import __version__

__all__ = ["__version__", "load_model"]

if TYPE_CHECKING:
    from vitlab.models.artifact import load_model


def __getattr__(name: str) -> Any:
    # The command line must answer without torch, so the one heavy name here is imported when asked for.
    if name == "load_model":
        from vitlab.models.artifact import load_model

        return load_model
    raise AttributeError(f"module 'vitlab' has no attribute '{name}'")
