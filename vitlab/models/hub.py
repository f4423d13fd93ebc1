"""The Hugging Face hub, from which timm loads weights: without a network that is noticed in seconds, and said once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

TIMEOUT = 5.0  # seconds that the first answer may take; the hub's own client tries six times, for every file


@cache
def unreachable() -> str:
    """Why the hub cannot be reached, tried once in a process; empty where it can, or where only the cache is wanted
    (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return ""
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:  # of whichever HTTP client the hub uses: no name, no route, no answer, a bad proxy
        why = f"{constants.ENDPOINT} cannot be reached ({str(error).splitlines()[0] if str(error) else repr(error)})"
        if os.environ.get("RANK", "0") == "0":  # every process tries, one reports
            print(f"{why}: weights are looked for in the cache alone", file=sys.stderr, flush=True)
        return why
    return ""


@contextmanager
def from_hub() -> Iterator[None]:
    """While weights are loaded: from the cache alone where the hub cannot be reached; the client's lines once."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    logging.disable_propagation()  # it writes them itself; a handler at the root would write them again
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(unreachable())
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
