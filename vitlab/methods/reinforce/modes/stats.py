"""``mode=stats``: statistics of a store of reinforcements, without teacher or images."""

from __future__ import annotations

from vitlab.config.composed import Composed
from vitlab.errors import UserError

MEANING = "what reinforcements hold: entropy, agreement with the labels, partners, bytes"
READS = ("method", "run", "dataset", "teacher", "recipe", "experiment", "debug")


def answer(composed: Composed) -> int:
    """Print statistics of ``method.store`` or of the store of ``run=``; agreement needs its own ``dataset=``.

    Raises:
        UserError: no store, or one of other images than those of the data set.
    """
    from vitlab.data.build import open_splits
    from vitlab.data.sources import fingerprint
    from vitlab.distill.reinforce_store import ReinforcedStore
    from vitlab.distill.store_stats import statistics
    from vitlab.methods.reinforce.named_stores import named_stores
    from vitlab.training.progress import progress_bar

    config, folders = named_stores(composed)
    if len(folders) != 1:
        raise UserError("mode=stats takes one store of reinforcements.", "Give run=FOLDER, or method.store=FOLDER.")
    source = open_splits(config.dataset, config.seed, config.debug.max_images)["train"]
    store = ReinforcedStore(folders[0], {"data_fingerprint": fingerprint(source)})
    with progress_bar("stats", "sample") as progress:
        found = statistics(store, source.labels, config.debug.max_slots, progress)
    teacher = store.spec.teacher
    members = teacher.get("members", [teacher])
    print(f"store    {folders[0]}")
    print(f"variant  {store.views.variant}, K={store.spec.k} of {store.classes} classes, as {store.spec.prob}")
    print(f"teacher  {', '.join(str(one.get('name')) for one in members)}")
    print(found)
    return 0
