"""Apple's released reinforcements (ImageNet+, CIFAR-100+, Food-101+, Flowers-102+), read unchanged, and written.

One ``<index>.pth.tar`` per training image holds ``(index, [sample] * NS)``, a sample being ``{"params": list | dict,
"prob": ([K probabilities], [K classes])}``; ``config.pth.tar`` holds the configuration that made them. The files are
pickles inside zip archives; :func:`load` accepts numbers, strings and containers, and the two numpy globals that CutMix
coordinates need, and refuses everything else, so that a file cannot execute code.

Source: section 5 of arXiv 2303.08983's appendix and the code that ships with it.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from vitlab.distill.draw import GRID, Draw, Erase, Mix
from vitlab.distill.reinforce_draw import OPS, Reinforcement
from vitlab.distill.sparse import SparseTarget
from vitlab.errors import UserError
from vitlab.files import atomic_write

CONFIG = "config.pth.tar"
SUFFIX = ".pth.tar"

STEPS = ("resize", "random_crop", "random_resized_crop", "random_horizontal_flip", "rand_augment", "random_erase")
"""Steps that have parameters, in the order in which they are stored, without mixing."""

_SCALARS = {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}
_NUMBERS = ("i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "f8", "f4")


class _Kind:
    """Placeholder for a numeric numpy dtype."""

    __slots__ = ("code",)

    def __init__(self, code: object, *_: object) -> None:
        if code not in _NUMBERS:
            raise pickle.UnpicklingError(f"it holds numpy values of type {code!r}")
        self.code = str(code)

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", "|")):
            raise pickle.UnpicklingError("it holds numpy values in another byte order")


class _Restricted(pickle.Unpickler):
    """Allows numpy scalars beside the types that pickle without a global."""

    def find_class(self, module: str, name: str) -> Any:
        # A new function each time: a file that sets attributes on it cannot affect the next file.
        if (module, name) in _SCALARS:
            return lambda kind, data: np.frombuffer(data, f"<{kind.code}", count=1)[0]
        if (module, name) == ("numpy", "dtype"):
            return lambda *args: _Kind(*args)
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("it refers to data outside of it")


def load(file: Path | IO[bytes], name: str = "") -> Any:
    """The object in one ``.pth.tar`` file, without running anything.

    Raises:
        UserError: it is no such file, or it refers to a global that these files do not need.
    """
    name = name or str(file)
    try:
        with zipfile.ZipFile(file) as archive:
            inside = [one for one in archive.namelist() if one == "data.pkl" or one.endswith("/data.pkl")]
            if len(inside) != 1:
                raise ValueError(f"it holds {len(inside)} data.pkl")
            return _Restricted(io.BytesIO(archive.read(inside[0]))).load()
    except FileNotFoundError:
        raise UserError(f"There is no {name}.", "Reinforcements are one file for each training image.") from None
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as e:
        raise UserError(
            f"{name} is no file of reinforcements, or an incomplete one: {e}.",
            "Nothing of it was run. Fetch it again from where it was published.",
        ) from e


def save(path: Path, thing: object) -> None:
    """Write one file as the official code does (``config.pth.tar`` with the older protocol)."""
    buffer = io.BytesIO()
    torch.save(thing, buffer, pickle_protocol=2 if path.name == CONFIG else 4)
    atomic_write(path, buffer.getvalue())


class Pipeline:
    """The steps whose parameters the files hold, from ``config.pth.tar``.

    Raises:
        UserError: the configuration is not one of a reinforcement, or has a step that is not known or is not replayed:
            crops of a resized image, and sizes and filters other than the published ones.
    """

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        try:
            self.config = dict(config)
            self.samples = int(config["reinforce"]["num_samples"])
            given = config["reinforce"]["image_augmentation"].items()
            steps = {k: v for k, v in given if v is not None and (not isinstance(v, Mapping) or v.get("enable", True))}
        except (LookupError, TypeError, ValueError, AttributeError):
            raise UserError(f"{name} does not describe how the reinforcements were made.") from None
        known = {*STEPS, "uint8", "center_crop", "to_tensor", "normalize", "mixup", "cutmix"}
        if unknown := set(steps) - known:
            raise UserError(f"{name} has the step {min(unknown)}, which is not supported.")
        self.stored = [one for one in STEPS if one in steps]
        self.mixes = [one for one in ("mixup", "cutmix") if one in steps]
        augments = "rand_augment" in steps or "random_erase" in steps
        if ("random_crop" in steps) == ("random_resized_crop" in steps):
            raise UserError(f"{name}: views are cut out by one of random_crop and random_resized_crop.")
        crop = "random_crop" if "random_crop" in steps else "random_resized_crop"
        # Both would move the origin of the stored crops, which replay counts in pixels of the image itself.
        if "center_crop" in steps or ("resize" in steps and crop == "random_resized_crop"):
            before = "center_crop" if "center_crop" in steps else "resize"
            raise UserError(f"{name} has {before} before {crop}, which is not supported.")
        try:
            self.resize = steps["resize"]["size"] if "resize" in steps else None
            randaug = steps.get("rand_augment") or {}
            for step in {"resize", crop} & steps.keys():
                _check_published(steps[step])
            pad = int(steps[crop].get("padding", 0)) if crop == "random_crop" else None
            ops, magnitude = int(randaug.get("num_ops", 2)), int(randaug.get("magnitude", 9))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{name} has a step that is not supported: {error}.") from None
        variant = {(0, 0): "rrc", (0, 1): "mixing", (1, 0): "randaug", (1, 1): "randaug_mixing"}
        chosen = variant[int(augments), int(bool(self.mixes))]
        self.views = Reinforcement(variant=chosen, pad=pad, ops=ops, magnitude=magnitude)

    def draw(self, params: Sequence[Any] | Mapping[str, Any]) -> Draw:
        """The Draw of one sample's parameters, list or dict."""
        by_step = dict(params) if isinstance(params, Mapping) else self._named(params)
        mixed = by_step.get("mixup") is not None or by_step.get("cutmix") is not None
        own = self._one(by_step, 0)
        if not mixed:
            return own
        ratio, cut = by_step.get("mixup"), by_step.get("cutmix")
        box = None if cut is None else tuple(int(v) for v in cut[1])
        assert box is None or len(box) == 4
        mix = Mix(
            ratio=None if ratio is None else float(ratio),
            box=box,
            grid=GRID,
            partner=int(by_step["id2"]),
            draw=self._one(by_step, 1),
            cut=None if cut is None else float(cut[0]),
        )
        return dataclasses.replace(own, mix=mix)

    def params(self, draw: Draw) -> list[Any]:
        """The list that the official code stores for a Draw; the inverse of :meth:`draw`."""
        mix = draw.mix
        out: list[Any] = []
        if self.mixes:
            out.append(None if mix is None else mix.partner)
        for step in self.stored:
            own = self._value(step, draw)
            out.append(own if mix is None or mix.draw is None else [own, self._value(step, mix.draw)])
        if "mixup" in self.mixes:
            out.append(None if mix is None else mix.ratio)
        if "cutmix" in self.mixes:
            cut = mix is not None and mix.box is not None
            out.append([mix.cut, *(np.int64(v) for v in mix.box)] if cut and mix and mix.box else None)
        return out

    def resizes(self, params: Sequence[Any] | Mapping[str, Any]) -> set[str]:
        """What a sample holds of the step ``resize``, of both images of a mixture, as Python literals; empty without
        that step. Replay does not use it: it is a constant of the configuration.

        Raises:
            ValueError: it is not an integer, or a list or tuple of integers.
        """
        if "resize" not in self.stored:
            return set()
        by_step = dict(params) if isinstance(params, Mapping) else self._named(params)
        found = [one for one in by_step.get("resize", ()) if one is not None]
        for one in found:
            parts = one if isinstance(one, (list, tuple)) else [one]
            if not all(type(part) is int for part in parts):
                raise ValueError(f"the size of a resize is {one!r}")
        return {repr(one) for one in found}

    def _named(self, params: Sequence[Any]) -> dict[str, Any]:
        values = list(params)
        partner = values.pop(0) if self.mixes else None
        if len(values) != len(self.stored) + len(self.mixes):
            raise ValueError(f"{len(values)} parameters for the steps {self.stored + self.mixes}")
        by_step: dict[str, Any] = {"id2": partner}
        for step, value in zip(self.stored, values, strict=False):
            by_step[step] = (value, None) if partner is None else tuple(value)
        for step, value in zip(self.mixes, values[len(self.stored) :], strict=True):
            cut = step == "cutmix" and value is not None
            by_step[step] = (value[0], value[1:]) if cut else value
        return by_step

    def _one(self, by_step: Mapping[str, Any], member: int) -> Draw:
        """The anchor's (0) or the partner's (1) own draw."""

        def value(step: str) -> Any:
            found = by_step.get(step, ())
            return found[member] if len(found) > member else None

        crop, shift = value("random_resized_crop"), None
        if self.views.pad is not None:
            top, left = value("random_crop")
            shift = self.views.pad, int(top), int(left)
        ops = value("rand_augment") or ()
        box = value("random_erase")
        erase = None
        if box is not None:
            y, x, height, width = (int(v) for v in box)
            erase = Erase(y, x, height, width, "black")
        return Draw(
            crop=None if crop is None else (int(crop[0]), int(crop[1]), int(crop[2]), int(crop[3])),
            shift=shift,
            flip=bool(value("random_horizontal_flip")),
            ops=tuple((_op(one), float(by)) for one, by in ops),
            erase=erase,
            op_set="torchvision",
        )

    def _value(self, step: str, draw: Draw) -> Any:
        """What is stored of one step of one image."""
        match step:
            case "resize":
                return self.resize
            case "random_crop":
                return None if draw.shift is None else draw.shift[1:]
            case "random_resized_crop":
                return draw.crop
            case "random_horizontal_flip":
                return draw.flip
            case "rand_augment":
                return [(OPS.index(name), by) for name, by in draw.ops] or None
        box = draw.erase
        return None if box is None else (box.top, box.left, box.height, box.width)


def _check_published(step: Mapping[str, Any]) -> None:
    """Refuse a size or filter that replay does not have: boxes and translations are counted on views of 224 pixels.

    Raises:
        ValueError: naming it.
    """
    size = step.get("size", GRID)
    if size != GRID and (not isinstance(size, (list, tuple)) or set(size) != {GRID}):
        raise ValueError(f"views of {size} px, not {GRID}")
    if (filter := step.get("interpolation", "bilinear")) not in ("bilinear", 2):  # 2: Pillow's number of it
        raise ValueError(f"resizing with {filter}, not bilinear")


def _op(stored: Any) -> str:
    """The name of a stored operation, a name or a number."""
    if stored in OPS:
        return str(stored)
    if isinstance(stored, str) or not 0 <= stored < len(OPS):
        raise ValueError(f"there is no operation {stored!r}")
    return OPS[stored]


class ImagenetPlus:
    """A released set: a folder of files, or several whose samples are numbered consecutively.

    ``parts`` are the samples of each folder: a folder is drawn first, then one of its samples, as in the official code.

    The official code makes the teacher's views on tensors and trains on PIL images; replay follows the latter.

    Raises:
        UserError: there is no such set, files are missing, or the folders have different configurations.
    """

    backend = "pil"
    interpolation = "bilinear"

    def __init__(self, folders: Sequence[Path], classes: int) -> None:
        self.folders = [_root(folder) for folder in folders]
        self.pipelines = [Pipeline(load(folder / CONFIG), str(folder / CONFIG)) for folder in self.folders]
        self.views = self.pipelines[0].views
        counts = []
        for folder, pipeline in zip(self.folders, self.pipelines, strict=True):
            if pipeline.views != self.views:
                raise UserError(f"{folder} and {self.folders[0]} were made with different augmentations.")
            names = {one.name for one in os.scandir(folder) if one.name.endswith(SUFFIX)} - {CONFIG}
            wanted = (f"{index}{SUFFIX}" for index in range(len(names)))
            if absent := next((one for one in wanted if one not in names), None):
                raise UserError(f"{folder} lacks {absent}.", "Every training image has a file: unpack it again.")
            counts.append(len(names))
        if len(set(counts)) != 1:
            raise UserError(f"The folders of reinforcements hold {counts} images.", "They must be of the same images.")
        self.images, self.classes = counts[0], classes
        self._ends = np.cumsum([pipeline.samples for pipeline in self.pipelines])
        self.samples = int(self._ends[-1])
        self.parts = tuple(pipeline.samples for pipeline in self.pipelines)

    def read(self, slot: ArrayLike, index: ArrayLike) -> tuple[list[Draw], SparseTarget]:
        """Draws and targets of these (sample, image) pairs, both integers [B].

        Raises:
            UserError: a file cannot be read, or does not match its name.
        """
        draws: list[Draw] = []
        prob: list[torch.Tensor] = []
        classes: list[torch.Tensor] = []
        for number, image in zip(np.asarray(slot).tolist(), np.asarray(index).tolist(), strict=True):
            which = int(np.searchsorted(self._ends, number, side="right"))
            first = 0 if which == 0 else int(self._ends[which - 1])
            path = self.folders[which] / f"{image}{SUFFIX}"
            samples = check_samples(load(path), image, self.pipelines[which], str(path))
            with damage_of(f"{path}, sample {number - first}"):
                one = samples[number - first]
                draws.append(self.pipelines[which].draw(one["params"]))
                label = label_of(one["prob"], self.classes)
                if prob and len(label[0]) != len(prob[0]):
                    raise ValueError(f"{len(label[0])} probabilities, other samples have {len(prob[0])}")
            prob.append(label[0])
            classes.append(label[1])
        return draws, SparseTarget(torch.stack(prob), torch.stack(classes), self.classes)


@contextmanager
def damage_of(what: str) -> Iterator[None]:
    """Answer a sample that is not made as the format has it with its file and number."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError, RuntimeError) as error:
        raise UserError(
            f"{what} is damaged: {error or type(error).__name__}.", "Fetch it again from where it was published."
        ) from error


def label_of(stored: Any, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and classes [K] of one sample.

    Raises:
        ValueError: a probability outside [0, 1], a class that there is not, or one that is named twice.
    """
    prob, index = torch.tensor(stored[0], dtype=torch.float32), torch.tensor(stored[1])
    if prob.ndim != 1 or prob.shape != index.shape or not len(prob) or index.is_floating_point():
        raise ValueError(f"{list(prob.shape)} probabilities for {list(index.shape)} classes")
    if not bool(((prob >= 0) & (prob <= 1.001)).all()):
        raise ValueError("a probability is outside [0, 1]")
    if int(index.min()) < 0 or int(index.max()) >= classes:
        raise ValueError(f"class {int(index.min() if index.min() < 0 else index.max())} of {classes}")
    if len(index.unique()) < len(index):
        raise ValueError("a class is named twice")
    return prob, index.long()


def check_samples(thing: Any, image: int, pipeline: Pipeline, name: str) -> list[dict[str, Any]]:
    """The samples of a file that was loaded.

    Raises:
        UserError: it is of another image, or holds another number of samples.
    """
    if not (isinstance(thing, tuple) and len(thing) == 2 and isinstance(thing[1], list)) or thing[0] != image:
        raise UserError(f"{name} is not the reinforcement of image {image}.", "Files must keep their published names.")
    if len(thing[1]) != pipeline.samples:
        raise UserError(f"{name} holds {len(thing[1])} samples, {CONFIG} has {pipeline.samples}.")
    return thing[1]


def is_imagenet_plus(folder: Path) -> bool:
    """Whether a folder, or the one folder inside it, holds a released set."""
    return (folder / CONFIG).is_file() or (folder.is_dir() and bool(list(folder.glob(f"*/{CONFIG}"))))


def _root(folder: Path) -> Path:
    if (folder / CONFIG).is_file():
        return folder
    inside = sorted(folder.glob(f"*/{CONFIG}"))
    if len(inside) != 1:
        raise UserError(f"There are no reinforcements in {folder} ({CONFIG} is missing).", "Unpack the archive there.")
    return inside[0].parent


def stream(archive: Path) -> Iterator[tuple[str, Any]]:
    """The files of a ``.tar.gz`` as (name, object), in the archive's order and without unpacking it.

    Raises:
        UserError: a member is no file of reinforcements.
    """
    try:
        with tarfile.open(archive, "r|*") as members:
            for member in members:
                if member.isfile() and member.name.endswith(SUFFIX):
                    content = members.extractfile(member)
                    assert content is not None
                    name = Path(member.name).name
                    yield name, load(io.BytesIO(content.read()), f"{archive}: {member.name}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} cannot be read: {error}.", "Fetch it again.") from error
