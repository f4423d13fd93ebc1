"""What can be done with a model besides training it: one file a mode, ``answer(composed) -> exit code``.

The command line asks here which groups and keys a mode reads, so nothing here imports torch.
"""

from __future__ import annotations

FRAME = frozenset({"hardware", "trainer", "mode", "seed", "output", "local"})
"""What every mode may be told."""

SUBJECT = frozenset({"run", "model", "dataset", "experiment", "debug", "evaluation"})
"""What says which model is meant, on which data: see :mod:`vitlab.modes.subject`."""

STORE = frozenset({"method", "run", "dataset", "teacher", "recipe", "experiment", "debug"})
"""What says which stored labels are meant."""

READS: dict[str, frozenset[str]] = {
    "evaluate": FRAME | SUBJECT,
    "benchmark": FRAME | SUBJECT | {"benchmark"},
    "predict": FRAME | SUBJECT | {"input", "predict"},
    "explain": FRAME | SUBJECT | {"input", "explain"},
    "export": FRAME | SUBJECT | {"export"},
    "audit": FRAME | {"dataset", "experiment", "audit"},
    "report": FRAME | {"run", "report"},
    "verify": FRAME | STORE | {"evaluation"},
    "convert": FRAME | STORE,
    "stats": FRAME | STORE,
    "merge": FRAME | STORE,
    "subset": FRAME | STORE,
    "contract": FRAME | {"method", "model", "dataset", "recipe", "experiment", "debug", "name", "fresh"},
    "throughput": FRAME | SUBJECT,
}
"""Mode to the groups and top-level keys that it reads. The other modes (train, check, list) have no file here."""


ALONE = frozenset({"evaluate", "benchmark", "predict", "explain", "export", "verify", "contract", "throughput"})
"""Modes that work on one device even where ``trainer.devices`` names several: every image is seen once, and times are
those of one device."""


def reads(mode: str, run: object, chosen: set[str]) -> set[str]:
    """What ``mode`` reads, nothing for a mode that follows a method. ``chosen``: groups and keys typed at the prompt.

    A run knows its data set: it is read from the prompt only where one is typed.
    """
    read = set(READS.get(mode, ()))
    return read - {"dataset"} if run is not None and "dataset" not in chosen else read
