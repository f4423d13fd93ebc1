"""``mode=subset``: a smaller store of reinforcements, its first ``method.samples`` samples, ``method.topk`` classes.

A key that is not given on the command line keeps the value of the store.
"""

from __future__ import annotations

from vitlab.config.composed import Composed
from vitlab.errors import UserError

MEANING = "fewer of them: method.store=A method.samples=10 method.topk=5 method.convert_to=B"
READS = ("method", "run", "dataset", "teacher", "recipe", "experiment", "debug")


def answer(composed: Composed) -> int:
    """Write the part of ``method.store`` (or of ``run=``) to ``method.convert_to``.

    Raises:
        UserError: no store, no folder to write to, nothing to leave out, or more requested than the store has.
    """
    from vitlab.distill.store_edit import subset
    from vitlab.methods.reinforce.named_stores import describe_store, source_and_target
    from vitlab.modes.find_runs import typed_keys
    from vitlab.training.progress import progress_bar

    (folder,), into = source_and_target(composed, several=False)
    options, typed = composed.config.method, typed_keys(composed, "method")
    samples, topk = (getattr(options, key) if key in typed else None for key in ("samples", "topk"))
    if samples is None and topk is None:
        raise UserError("mode=subset needs a smaller size.", "Give method.samples=N, method.topk=K, or both.")
    with progress_bar("subset", "sample") as progress:
        found = subset(folder, into, samples, topk, progress)
    print(f"{into}: {describe_store(found)}")
    return 0
