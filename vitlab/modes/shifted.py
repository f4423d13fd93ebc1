"""What evaluation=imagenet_shift adds to every evaluation of an ImageNet model: the sets that shift away from it.

    python -m vitlab mode=evaluate run=RUN evaluation=imagenet_shift evaluation.shifted_root=/data

Beside the other files of an evaluation: ``<model>-shifted.json``, written as each set is done and read again where
weights and images are the same. A set that is not there is named; images of classes that the model does not know are
left out, and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitlab.data.paths import shifted_root
from vitlab.errors import UserError
from vitlab.files import read_as, write_json
from vitlab.measure.robustness_names import SHIFTED
from vitlab.modes import evaluation_files
from vitlab.modes.evaluation_files import folder_of, stem_of, weights_of
from vitlab.modes.select_model import SelectedModel
from vitlab.report.collect import MEASURE_AGAIN

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitlab.data.shifted import ShiftedImages
    from vitlab.data.sources import Source
    from vitlab.distill.views import EvalView
    from vitlab.measure.robustness import Cell, Robustness, Shifted, ShiftedSet


def on_shifted_sets(subject: SelectedModel) -> Shifted:
    """One model on all the sets that the configuration names and that are there.

    Raises:
        UserError: none of them is there, or the model knows none of a set's classes.
    """
    from vitlab.data.shifted import CORRUPTED, SETS, find_corrupted, find_set
    from vitlab.measure.robustness import Shifted

    spec, root = subject.config.evaluation, shifted_root(subject.config.evaluation.shifted_root)
    path = folder_of(subject) / f"{stem_of(subject)}-shifted.json"
    state = Shifted(weights_of(subject), str(subject.data.eval_view), spec.bins)
    known = read_as(path, Shifted.from_dict, MEASURE_AGAIN) if path.exists() else state
    if (known.model, known.view, known.bins) != (state.model, state.view, state.bins):
        known = state
    names = [name for name in SHIFTED if name in spec.shifted or "all" in spec.shifted]
    found = [one for name in names if name != "c" and (one := find_set(root, name)) is not None]
    cells = find_corrupted(root) if "c" in names else {}
    there = {one.name for one in found} | ({"c"} if cells else set())
    state.missing = [CORRUPTED if name == "c" else SETS[name][0] for name in names if name not in there]
    if not there:
        raise UserError(
            f"{root} holds none of {', '.join(state.missing)}.",
            f"Unpack them there as downloaded (for instance into {root / SETS['v2'][1][0]}), or give "
            "evaluation.shifted_root=PATH.",
        )
    reader = _Reader(subject)
    for one in found:
        old = next((each for each in known.sets if each.name == one.name), None)
        state.sets.append(reader.measure(one, old))
        write_json(path, state.to_dict())
    if cells:
        for state.corrupted in reader.corrupted(cells, known.corrupted):
            write_json(path, state.to_dict())
    return state


class _Reader:
    """A network that is measured on sets of images, with the classes that it has."""

    def __init__(self, subject: SelectedModel) -> None:
        from vitlab.data.sets.imagenet import wordnet_ids

        self.subject = subject
        self.place = {name: number for number, name in enumerate(subject.meta.classes) if name in set(wordnet_ids())}
        self.device = subject.device
        self.network = subject.network().to(self.device)

    def measure(self, found: ShiftedImages, old: ShiftedSet | None) -> ShiftedSet:
        """One set; ``old`` where that is the same."""
        from vitlab.data.sources import fingerprint
        from vitlab.measure.robustness import ShiftedSet

        images, left_out, right = self._known(found)
        digest = fingerprint(images)
        if old is not None and old.images == digest:
            return old
        full, part = self._answer(images, right, found, self.subject.data.eval_view)
        classes = int(right.any(0).sum())
        return ShiftedSet(found.name, found.title, digest, found.published, classes, left_out, full, part, found.absent)

    def corrupted(self, found: dict[tuple[str, int], ShiftedImages], old: Robustness | None) -> Iterator[Robustness]:
        """ImageNet-C as published, more of it each time."""
        from vitlab.data.sources import fingerprint
        from vitlab.distill.views import EvalView
        from vitlab.measure.robustness import Robustness

        meta, spec = self.subject.meta, self.subject.config.evaluation
        # The files are the middle 224 pixels of a short side of 256 already.
        view = EvalView(meta.size, 1.0, meta.mean, meta.std, meta.interpolation, "center")
        known = {key: self._known(one) for key, one in found.items()}
        digest = hashlib.sha256("".join(fingerprint(images) for images, *_ in known.values()).encode()).hexdigest()
        whole = max(len(one.source) for one in found.values())
        seed = self.subject.config.seed
        state = Robustness(weights_of(self.subject), digest, str(view), seed, spec.bins, whole, True, True)
        if old is not None and old.images == digest:
            state.cells = old.cells
        yield state
        for (name, severity), (images, _, right) in known.items():
            if state.at(name, severity) is None:
                full, _ = self._answer(images, right, found[name, severity], view)
                full.name, full.severity = name, severity
                state.cells.append(full)
                yield state

    def _known(self, found: ShiftedImages) -> tuple[Source, int, NDArray[np.bool_]]:
        """The images that are measured, how many are left out because the network knows no right answer, and for each
        class of the set which of the network's classes are right: [classes, C].

        Raises:
            UserError: the network knows no class of the set.
        """
        import numpy as np

        from vitlab.data.sources import Subset
        from vitlab.data.subsets import limit_images

        right = np.zeros((len(found.accepted), len(self.subject.meta.classes)), bool)
        for row, names in zip(right, found.accepted, strict=True):
            row[[self.place[name] for name in names if name in self.place]] = True
        labels = found.source.labels
        kept = np.asarray(right.any(1))[labels]
        if not kept.any():
            raise UserError(
                f"{self.subject.title} knows no class of {found.title}.",
                "evaluation=imagenet_shift is for models of ImageNet's classes, named by their WordNet ids.",
            )
        config = self.subject.config
        source: Source = found.source if kept.all() else Subset(found.source, np.flatnonzero(kept))
        most = [one for one in (config.evaluation.robust_images, config.debug.max_images) if one is not None]
        return limit_images(source, min(most, default=len(source)), config.seed), int((~kept).sum()), right

    def _answer(
        self, source: Source, right: NDArray[np.bool_], found: ShiftedImages, view: EvalView
    ) -> tuple[Cell, Cell | None]:
        """The answers among all classes, and among those of the set where these are fewer."""
        from vitlab.data.dataset import EvalViews
        from vitlab.data.loader import Loader, default_workers
        from vitlab.data.sampler import ShardSampler
        from vitlab.measure.robustness import Tally, nearest_accepted
        from vitlab.training.interrupt import stop_if_requested
        from vitlab.training.progress import Progress

        config = self.subject.config
        workers = default_workers(source) if config.hardware.workers is None else config.hardware.workers
        loader = Loader(EvalViews(source, view), ShardSampler(len(source), config.evaluation.batch_size), workers)
        among = right.any(0)
        full, part = Tally(), None if among.all() else Tally()
        with Progress(f"{found.title} for {self.subject.name}", len(source), unit="image") as progress:
            for batch in loader:
                logits, accepted = (
                    evaluation_files.evaluation_logits(self.network, batch, self.device),
                    right[batch.label.numpy()],
                )
                full.add(logits, nearest_accepted(logits, accepted))
                if part is not None:
                    part.add(logits[:, among], nearest_accepted(logits[:, among], accepted[:, among]))
                progress.update(progress.done + len(batch))
                stop_if_requested()
        bins = config.evaluation.bins
        return full.cell(found.name, bins=bins), part.cell(found.name, bins=bins) if part is not None else None
