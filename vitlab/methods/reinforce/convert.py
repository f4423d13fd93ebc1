"""Between Apple's released reinforcements and our packed store, both ways; no teacher is asked, no image is read."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
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
    load,
    save,
    stream,
)
from vitlab.distill.reinforce_draw import PROTOCOL
from vitlab.distill.reinforce_record import encode, record_fields
from vitlab.distill.reinforce_store import ReinforcedStore
from vitlab.distill.sparse import SparseTarget
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import StoreSpec, keys_digest
from vitlab.errors import UserError

Tell = Callable[[int, int], None]
"""Called with images done and images in all."""


def pack(
    released: Path,
    into: Path,
    keys: Sequence[str],
    classes: int,
    data_fingerprint: str,
    tell: Tell | None = None,
) -> ReinforcedStore:
    """Convert a released set, unpacked or still a ``.tar.gz``, to our store without loss; killed, the same call
    continues (an archive is then read from its start again).

    Args:
        keys, classes, data_fingerprint: of the training images that the set was made for.

    Raises:
        UserError: the set is of other images, or a parameter does not fit into a packed record.
    """
    config, files = _open(released, classes)
    pipeline = Pipeline(config, str(released))
    store: TargetStore | None = None
    done = 0
    with ExitStack() as stack:
        writers: list[Any] = []
        for image, thing in files:
            samples = check_samples(thing, image, pipeline, f"{released}: {image}{SUFFIX}")
            if image >= len(keys):
                raise UserError(f"{released} holds image {image}, the data set has {len(keys):,}.")
            prob = torch.tensor([one["prob"][0] for one in samples], dtype=torch.float32)
            index = torch.tensor([one["prob"][1] for one in samples])
            if store is None:
                store = TargetStore.create(
                    into, _spec(pipeline, len(keys), keys, classes, prob.shape[1], data_fingerprint), list(keys)
                )
                _allow_files(3 * pipeline.samples + 64)
                if all(store.is_sealed(slot) for slot in range(pipeline.samples)):
                    return ReinforcedStore(into)
                writers = [stack.enter_context(store.writer(slot, buffer=256)) for slot in range(pipeline.samples)]
            try:
                fields = encode(pipeline.views, [pipeline.draw(one["params"]) for one in samples])
            except (ValueError, TypeError, LookupError) as error:
                raise UserError(f"{released}: image {image} cannot be packed: {error}.") from error
            for slot, writer in enumerate(writers):
                row = slice(slot, slot + 1)
                target = SparseTarget(prob[row], index[row], classes)
                writer.write([image], None, target, **{name: values[row] for name, values in fields.items()})
            done += 1
            if tell is not None:
                tell(done, len(keys))
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


def unpack(folder: Path, into: Path, tell: Tell | None = None) -> int:
    """Write our store as a released set: the same Python objects as the one it came from; the number of files.

    Raises:
        UserError: the store was not packed from a released set, or holds probabilities that are not float32.
    """
    reader = ReinforcedStore(folder)
    config = reader.spec.teacher.get("official_config")
    if config is None or reader.spec.prob != "f4":
        raise UserError(f"{folder} was not converted from a released set, so it has nothing of that form to give.")
    pipeline = Pipeline(config, str(folder))
    into.mkdir(parents=True, exist_ok=True)
    slots = np.arange(reader.samples)
    for image in range(reader.images):
        draws, target = reader.read(slots, np.full(len(slots), image))
        samples = [
            {"params": pipeline.params(draw), "prob": (prob, index)}
            for draw, prob, index in zip(draws, target.prob.tolist(), target.index.tolist(), strict=True)
        ]
        save(into / f"{image}{SUFFIX}", (image, samples))
        if tell is not None:
            tell(image + 1, reader.images)
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


def _spec(
    pipeline: Pipeline, images: int, keys: Sequence[str], classes: int, k: int, data_fingerprint: str
) -> StoreSpec:
    return StoreSpec(
        images=images,
        slots=pipeline.samples,
        k=k,
        classes=classes,
        keys_sha256=keys_digest(keys),
        data_fingerprint=data_fingerprint,
        augmentation=pipeline.views.to_dict(),
        augmentation_fingerprint=pipeline.views.fingerprint(),
        teacher={"name": "as released", "official_config": pipeline.config},
        mean=(),
        std=(),
        base_seed=None,
        prob="f4",
        protocol=PROTOCOL,
        fields=record_fields(pipeline.views),
    )


def _allow_files(number: int) -> None:
    """Every sample of an image goes to a file of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number <= (hard if hard != resource.RLIM_INFINITY else number):
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
