"""``mode=throughput``: images a second of a traced network, by the protocol of TinyViT's authors."""

from __future__ import annotations

from vitlab.config.composed import Composed

MEANING = "images a second of a traced network, TinyViT's protocol"
READS = ("run", "model", "dataset", "experiment", "debug", "evaluation")
ONE_DEVICE = True


def answer(composed: Composed) -> int:
    """Measure every selected model at the largest of ``evaluation.latency_batches``.

    Raises:
        UserError: no such model.
    """
    from vitlab.modes.select_model import find_subjects

    config = composed.config
    subjects = find_subjects(composed, trained=False)
    from vitlab.measure.throughput import AUTOCAST, measure_throughput
    from vitlab.training.distributed import configure_torch

    configure_torch(config)
    batch = max(config.evaluation.latency_batches, default=1)
    kind = AUTOCAST.get(config.trainer.precision, "32")
    seconds = 10.0 if config.debug.max_steps is None else 0.5
    print(
        f"{'model':<40} {'images/s':>12}   batch {batch}, traced, {seconds:g} s of warm-up and {6 * seconds:g} s timed"
    )
    for one in subjects:
        network = one.network().to(one.device)
        found = measure_throughput(network, one.meta.size, batch, seconds, 6 * seconds, kind)
        print(f"{one.title:<40} {found.images_per_second:>12,.1f}   {found.device}, {found.precision}", flush=True)
    return 0
