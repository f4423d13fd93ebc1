"""What evaluation=robust adds to every evaluation: the same test images under the corruptions of ImageNet-C.

    python -m vitlab evaluation=robust                                          closes the training
    python -m vitlab mode=evaluate run=RUN evaluation=robust evaluation.robust_images=500

Beside the other files of an evaluation: ``<model>-robust.json`` and ``.csv``. They are written as each corruption is
done, and carry the fingerprint of weights and images: what they hold already is not measured again.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitlab.config import Config, EvaluationConfig
from vitlab.files import atomic_write, read_as, write_json
from vitlab.measure.robustness_names import CORRUPTIONS, FAMILIES
from vitlab.modes import evaluation_files
from vitlab.modes.evaluation_files import folder_of, stem_of, weights_of
from vitlab.modes.select_model import SelectedModel
from vitlab.report.collect import MEASURE_AGAIN

if TYPE_CHECKING:
    from vitlab.measure.robustness import Robustness


def measure_robustness(subjects: Sequence[SelectedModel]) -> str:
    """Measure what the subjects' configuration requests beyond their test images; a text for the prompt.

    Args:
        subjects: models of one run, or one that no run made, all evaluated: their ``<model>.npz`` is there.

    Raises:
        UserError: a shifted set is not laid out as published, or of other classes than the model's.
        Interrupted: a stop was requested; what is measured is on disk.
    """
    spec, parts = subjects[0].config.evaluation, []
    if spec.corruptions:
        from vitlab.report.robust import robust_text

        found = under_corruptions(subjects)
        parts.append(robust_text([(one.title, state) for one, state in zip(subjects, found, strict=True)]))
    if spec.shifted:
        from vitlab.modes.shifted import on_shifted_sets
        from vitlab.report.robust import shifted_text

        parts.append(shifted_text([(one.title, on_shifted_sets(one)) for one in subjects]))
    return "\n\n".join(parts)


def estimate(config: Config) -> dict[str, object]:
    """How many corrupted images an evaluation has, and the seconds that it takes to make them, from one of each; the
    networks that look at them come on top."""
    import time

    from vitlab.data.build import open_splits
    from vitlab.data.loader import default_workers
    from vitlab.distill.views import EvalView
    from vitlab.measure.corruptions import corrupt

    spec, data = config.evaluation, config.dataset
    source = open_splits(data, config.seed, config.debug.max_images)["test"]
    view = EvalView(data.size, data.crop_pct, data.mean, data.std, crop=data.crop)
    image, names = view.cut(source[0][0]), corruptions_of(spec.corruptions)
    for name in names:
        corrupt(image, name, 1)  # the first time costs more
    begun = time.perf_counter()
    for name in names:
        for level in set(spec.severities):
            corrupt(image, name, level)
    each = time.perf_counter() - begun
    workers = default_workers(source, costly=True) if config.hardware.workers is None else config.hardware.workers
    images = min(len(source), spec.robust_images or len(source))
    return {"seconds": each * images / max(1, workers), "images": images * len(names) * len(set(spec.severities))}


def corruptions_of(requested: Sequence[str]) -> list[str]:
    """The corruptions that names, families and ``all`` mean, in the paper's order."""
    meant = {name for word in requested for name in (CORRUPTIONS if word == "all" else FAMILIES.get(word, (word,)))}
    return [name for name in CORRUPTIONS if name in meant]


def under_corruptions(subjects: Sequence[SelectedModel]) -> list[Robustness]:
    """Every model under every corruption; those with the same view are measured together, so that a corrupted image
    is made once for all of them."""
    groups: dict[str, list[SelectedModel]] = {}
    for one in subjects:
        meta = one.meta
        same = (meta.size, meta.crop_pct, meta.crop, meta.interpolation, list(meta.mean), list(meta.std))
        groups.setdefault(json.dumps(same), []).append(one)
    found: dict[str, Robustness] = {}
    for group in groups.values():
        states = [_begun(one) for one in group]
        _finish(group, states)
        found.update(zip((one.name for one in group), states, strict=True))
    return [_asked_for(found[one.name], one.config.evaluation) for one in subjects]


def _begun(subject: SelectedModel) -> Robustness:
    """What is known of a model already, or a new record with its logits on the same images without corruption."""
    import numpy as np

    from vitlab.data.sources import Subset, fingerprint
    from vitlab.data.subsets import limit_images
    from vitlab.measure.robustness import Robustness, Tally

    data, spec = subject.data, subject.config.evaluation
    split = data.sources["test"]
    part = limit_images(split, spec.robust_images or len(split), subject.config.seed)
    folder, stem = folder_of(subject), stem_of(subject)
    kept = np.load(folder / f"{stem}.npz", allow_pickle=False)
    chosen = np.isin(kept["index"], part.indices) if part is not split and isinstance(part, Subset) else slice(None)
    clean = Tally()
    clean.add(kept["logits"][chosen], kept["label"][chosen])
    state = Robustness(
        model=weights_of(subject),
        images=fingerprint(part),
        view=str(data.eval_view),
        seed=subject.config.seed,
        bins=spec.bins,
        whole=len(split),
        alexnet=subject.config.dataset.name == "imagenet",
        clean=clean.cell("none", bins=spec.bins),
    )
    path = folder / f"{stem}-robust.json"
    known = read_as(path, Robustness.from_dict, MEASURE_AGAIN) if path.exists() else state
    if replace(known, cells=[], clean=None) == replace(state, clean=None):
        state.cells = known.cells
    return state


def _finish(group: Sequence[SelectedModel], states: Sequence[Robustness]) -> None:
    """Measure what a state lacks, a corruption in all its severities at a time."""
    from vitlab.data.corrupted import STRIDE, CorruptedViews
    from vitlab.data.loader import Loader, default_workers
    from vitlab.data.subsets import limit_images
    from vitlab.measure.robustness import Tally
    from vitlab.training.interrupt import stop_if_requested
    from vitlab.training.progress import Progress

    config, data, device = group[0].config, group[0].data, group[0].device
    spec, split = config.evaluation, data.sources["test"]
    lacking = {
        name: [level for level in sorted(set(spec.severities)) if any(one.at(name, level) is None for one in states)]
        for name in corruptions_of(spec.corruptions)
    }
    lacking = {name: levels for name, levels in lacking.items() if levels}
    if not lacking:
        return
    source = limit_images(split, spec.robust_images or len(split), config.seed)
    step = max(1, spec.batch_size // max(map(len, lacking.values())))
    starts = range(0, len(source), step)
    batches = [
        [(index, c) for index in range(start, min(start + step, len(source)))]
        for c in range(len(lacking))
        for start in starts
    ]
    workers = config.hardware.workers
    views = CorruptedViews(source, data.eval_view, list(lacking), list(lacking.values()), config.seed)
    loader = iter(Loader(views, batches, default_workers(source, costly=True) if workers is None else workers))
    networks = [one.network().to(device) for one in group]
    total = len(source) * sum(map(len, lacking.values()))
    with Progress(f"corrupted for {', '.join(one.name for one in group)}", total, unit="image") as progress:
        for c, (name, levels) in enumerate(lacking.items()):
            tallies = [Tally() for _ in group]
            for _ in starts:
                batch = next(loader)
                for one, network, tally in zip(group, networks, tallies, strict=True):
                    label = one.task.match_classes(batch.label.numpy(), data.classes, one.meta.classes, one.title)
                    tally.add(evaluation_files.evaluation_logits(network, batch, device), label, batch.slot.numpy())
                progress.update(progress.done + len(batch))
                stop_if_requested()
            for one, state, tally in zip(group, states, tallies, strict=True):
                state.cells = [cell for cell in state.cells if (cell.name, cell.severity) not in _cells(name, levels)]
                state.cells += [tally.cell(name, level, state.bins, STRIDE * c + level) for level in levels]
                folder, stem = folder_of(one), stem_of(one)
                write_json(folder / f"{stem}-robust.json", state.to_dict())
                atomic_write(folder / f"{stem}-robust.csv", as_csv(state))


def _cells(name: str, levels: Sequence[int]) -> set[tuple[str, int]]:
    return {(name, level) for level in levels}


def _asked_for(state: Robustness, spec: EvaluationConfig) -> Robustness:
    """``state`` with the cells of this command alone; the file keeps all."""
    names = corruptions_of(spec.corruptions)
    return replace(state, cells=[one for one in state.cells if one.name in names and one.severity in spec.severities])


def as_csv(state: Robustness) -> str:
    """A row for each corruption and severity."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    metrics = ("n", "top1", "top5", "nll", "brier", "ece", "max_ece", "mean_confidence")
    table.writerow(["corruption", "severity", *metrics])
    order: dict[str, Any] = {name: place for place, name in enumerate(("none", *CORRUPTIONS))}
    every = [state.clean, *state.cells] if state.clean is not None else state.cells
    for one in sorted(every, key=lambda one: (order[one.name], one.severity)):
        table.writerow([one.name, one.severity, *(getattr(one, metric) for metric in metrics)])
    return text.getvalue()
