"""``mode=merge``: several stores of reinforcements, of the same images and teacher but other seeds, in one."""

from __future__ import annotations

from vitlab.config.composed import Composed

MEANING = "reinforcements of several seeds in one: method.store=[A,B] method.convert_to=C"
READS = ("method", "run", "dataset", "teacher", "recipe", "experiment", "debug")


def answer(composed: Composed) -> int:
    """Write all samples of ``method.store=[A,B]`` to ``method.convert_to``.

    Raises:
        UserError: stores that cannot be merged, or no folder to write to.
    """
    from vitlab.distill.store_edit import merge
    from vitlab.methods.reinforce.named_stores import describe_store, source_and_target
    from vitlab.training.progress import progress_bar

    folders, into = source_and_target(composed, several=True)
    with progress_bar("merge", "sample") as progress:
        found = merge(folders, into, progress)
    print(f"{into}: {describe_store(found)}")
    return 0
