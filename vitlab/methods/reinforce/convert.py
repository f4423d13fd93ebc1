"""Conversion between Apple's released reinforcements and our packed store, without teacher or images."""

from __future__ import annotations

import ast
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitlab.distill.formats.imagenet_plus import (
    CONFIG,
    SUFFIX,
    ImagenetPlus,
    Pipeline,
    check_samples,
    damage_of,
    label_of,
    load,
    save,
    stream,
)
from vitlab.distill.reinforce_draw import OPS, PROTOCOL, SIGNED, Reinforcement, magnitudes
from vitlab.distill.reinforce_record import NO_OP, ODD, OddMagnitude, encode, record_fields
from vitlab.distill.reinforce_store import ReinforcedStore
from vitlab.distill.sparse import SparseTarget
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import SPEC, StoreSpec, keys_digest, refuse_foreign
from vitlab.errors import UserError
from vitlab.files import sha256

ARCHIVE = "archive_sha256"
"""Name of an archive's checksum among a store's ``versions``."""

RESIZE = "official_resize"
"""Name of the object that every sample holds of the step ``resize``, as a Python literal, in a store's ``teacher``."""

Progress = Callable[[int, int], None]
"""Called with the images done and their total."""


def pack(
    released: Path,
    into: Path,
    keys: Sequence[str],
    classes: int,
    data_fingerprint: str,
    progress: Progress | None = None,
) -> ReinforcedStore:
    """Convert a released set, unpacked or still a ``.tar.gz``, to our store without loss; after a kill the same
    call continues (an archive is then read from its start again). An archive's SHA-256, of which none is published, is
    recorded in the store (``versions``).

    Where an op's magnitude is not in the table, all files are read once more to collect such magnitudes.

    Args:
        keys, classes, data_fingerprint: of the training images that the set was made for.

    Raises:
        UserError: the set is of other images, a parameter does not fit into a packed record, or the archive is not the
            one that ``into`` was begun with.
    """
    odd = Reinforcement.from_dict(StoreSpec.load(into).augmentation).odd if (into / SPEC).is_file() else ()
    try:
        return _pack(released, into, keys, classes, data_fingerprint, progress, odd)
    except OddMagnitude:
        odd = _odd_magnitudes(released, classes)
        if (into / SPEC).is_file():
            refuse_foreign(into, StoreSpec.load(into).slots)
            shutil.rmtree(into)
        return _pack(released, into, keys, classes, data_fingerprint, progress, odd)


def _pack(
    released: Path,
    into: Path,
    keys: Sequence[str],
    classes: int,
    data_fingerprint: str,
    progress: Progress | None,
    odd: tuple[tuple[str, float], ...],
) -> ReinforcedStore:
    config, files = _open(released, classes)
    pipeline = Pipeline(config, str(released))
    pipeline.views = replace(pipeline.views, odd=odd)
    archive = {ARCHIVE: sha256(released)} if released.is_file() else {}
    store: TargetStore | None = None
    resizes: set[str] = set()
    done = 0
    with ExitStack() as stack:
        writers: list[Any] = []
        for image, thing in files:
            samples = check_samples(thing, image, pipeline, f"{released}: {image}{SUFFIX}")
            if image >= len(keys):
                raise UserError(f"{released} holds image {image}, the data set has {len(keys):,}.")
            with damage_of(f"{released}: {image}{SUFFIX}"):
                labels = [label_of(one["prob"], classes) for one in samples]
                prob, index = torch.stack([one for one, _ in labels]), torch.stack([one for _, one in labels])
                resizes |= set().union(*(pipeline.resizes(one["params"]) for one in samples))
            if len(resizes) > 1:
                raise UserError(
                    f"{released}: image {image} cannot be packed: its samples hold {' and '.join(sorted(resizes))} of "
                    "the step resize, and a packed store holds one of it.",
                    "Train from the released files: method.store takes them as they are.",
                )
            if store is None:
                spec = _spec(pipeline, len(keys), keys, classes, prob.shape[1], data_fingerprint, resizes)
                store = TargetStore.create(into, replace(spec, versions=archive), list(keys))
                if archive and store.spec.versions.get(ARCHIVE, archive[ARCHIVE]) != archive[ARCHIVE]:
                    raise UserError(
                        f"{into} was begun with another archive than {released}: their SHA-256 differ.",
                        "Delete the folder, or name another.",
                    )
                _allow_files(3 * pipeline.samples + 64)
                if all(store.is_sealed(slot) for slot in range(pipeline.samples)):
                    return ReinforcedStore(into)
                writers = [stack.enter_context(store.writer(slot, buffer=256)) for slot in range(pipeline.samples)]
            try:
                fields = encode(pipeline.views, [pipeline.draw(one["params"]) for one in samples])
            except OddMagnitude:
                raise
            except (ValueError, TypeError, LookupError) as error:
                raise UserError(f"{released}: image {image} cannot be packed: {error}.") from error
            for slot, writer in enumerate(writers):
                row = slice(slot, slot + 1)
                target = SparseTarget(prob[row], index[row], classes)
                writer.write([image], None, target, **{name: values[row] for name, values in fields.items()})
            done += 1
            if progress is not None:
                progress(done, len(keys))
    if store is None:
        raise UserError(f"{released} holds no reinforcements.")
    for slot in range(pipeline.samples):
        if lacking := len(store.missing(slot)):
            raise UserError(
                f"{released} lacks {lacking:,} of the {len(keys):,} images of the data set.",
                "Give the data set that it was made for, or unpack the archive again.",
            )
        store.seal(slot)
    return ReinforcedStore(into)


def unpack(folder: Path, into: Path, progress: Progress | None = None) -> int:
    """Write our store as a released set: the same Python objects as the one it came from, with the parameters of every
    sample in the compressed form (lists); the number of files.

    Raises:
        UserError: the store was not packed from a released set, or holds probabilities that are not float32.
    """
    reader = ReinforcedStore(folder)
    config = reader.spec.teacher.get("official_config")
    if config is None or reader.spec.prob != "f4":
        raise UserError(f"{folder} was not converted from a released set, so it cannot be written as one.")
    pipeline = Pipeline(config, str(folder))
    if (stored := reader.spec.teacher.get(RESIZE)) is not None:
        pipeline.resize = ast.literal_eval(stored)
    into.mkdir(parents=True, exist_ok=True)
    slots = np.arange(reader.samples)
    for image in range(reader.images):
        draws, target = reader.read(slots, np.full(len(slots), image))
        samples = [
            {"params": pipeline.params(draw), "prob": (prob, index)}
            for draw, prob, index in zip(draws, target.prob.tolist(), target.index.tolist(), strict=True)
        ]
        save(into / f"{image}{SUFFIX}", (image, samples))
        if progress is not None:
            progress(image + 1, reader.images)
    save(into / CONFIG, config)
    return reader.images


def _open(released: Path, classes: int) -> tuple[dict[str, Any], Iterator[tuple[int, Any]]]:
    """The configuration, and (image, content) of every file."""
    if released.is_dir():
        folder = ImagenetPlus([released], classes).folders[0]
        count = sum(1 for _ in folder.glob(f"*{SUFFIX}")) - 1
        return load(folder / CONFIG), ((image, load(folder / f"{image}{SUFFIX}")) for image in range(count))
    config = next((thing for name, thing in stream(released) if name == CONFIG), None)
    if config is None:
        raise UserError(f"{released} holds no {CONFIG}.", "Fetch the archive again.")
    files = ((int(name.removesuffix(SUFFIX)), thing) for name, thing in stream(released) if name != CONFIG)
    return config, files


def _odd_magnitudes(released: Path, classes: int) -> tuple[tuple[str, float], ...]:
    """The ops of all files whose argument is not in the table, sorted.

    Raises:
        UserError: more than the codes of a record.
    """
    config, files = _open(released, classes)
    pipeline = Pipeline(config, str(released))
    table = dict(zip(OPS, magnitudes(pipeline.views.magnitude), strict=True))
    found: set[tuple[str, float]] = set()
    for image, thing in files:
        for one in check_samples(thing, image, pipeline, f"{released}: {image}{SUFFIX}"):
            drawn = pipeline.draw(one["params"])
            for part in (drawn, drawn.mix.draw if drawn.mix is not None else None):
                for name, value in part.ops if part is not None else ():
                    number = OPS.index(name)
                    if abs(value) != table[name] or (value < 0 and number not in SIGNED):
                        found.add((name, value))
    if len(found) > NO_OP - ODD:
        raise UserError(
            f"{released} holds {len(found)} magnitudes that are not in the table; a record can code {NO_OP - ODD}.",
            "Train from the released files: method.store takes them as they are.",
        )
    return tuple(sorted(found))


def _spec(
    pipeline: Pipeline,
    images: int,
    keys: Sequence[str],
    classes: int,
    k: int,
    data_fingerprint: str,
    resizes: set[str],
) -> StoreSpec:
    # JSON has no tuples: an object that is not the configuration's is kept as a literal.
    other = {RESIZE: next(iter(resizes))} if resizes - {repr(pipeline.resize)} else {}
    return StoreSpec(
        images=images,
        slots=pipeline.samples,
        k=k,
        classes=classes,
        keys_sha256=keys_digest(keys),
        data_fingerprint=data_fingerprint,
        augmentation=pipeline.views.to_dict(),
        augmentation_fingerprint=pipeline.views.fingerprint(),
        teacher={"name": "as released", "official_config": pipeline.config, **other},
        mean=(),
        std=(),
        base_seed=None,
        prob="f4",
        protocol=PROTOCOL,
        fields=record_fields(pipeline.views),
    )


def _allow_files(number: int) -> None:
    """Raise the limit of open files: every sample of an image goes to a slot, hence to files of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number <= (hard if hard != resource.RLIM_INFINITY else number):
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
