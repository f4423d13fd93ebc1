"""``mode=subset``: a smaller store of reinforcements, its first ``method.samples`` samples, ``method.topk`` classes."""

from __future__ import annotations

from vitlab.compose import Composed


def answer(composed: Composed) -> int:
    """Write the part of ``method.store`` (or of ``run=``) to ``method.convert_to``.

    Raises:
        UserError: no store, or no place to write to.
    """
    from vitlab.distill.store_edit import subset
    from vitlab.modes.stores import source_and_target, told, watched

    (folder,), into = source_and_target(composed, several=False)
    options = composed.config.method
    with watched("subset", "sample") as tell:
        found = subset(folder, into, options.samples, options.topk, tell)
    print(f"{into}: {told(found)}")
    return 0
