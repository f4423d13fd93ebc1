"""``mode=explain``: where a network looks, and whether that depends on what it learned."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config import ExplainConfig
from vitlab.config.composed import Composed
from vitlab.errors import UserError, nearest
from vitlab.files import atomic_write, write_json
from vitlab.modes.evaluation_files import folder_of
from vitlab.modes.export import is_result
from vitlab.modes.find_runs import writing
from vitlab.modes.input_images import expand, read_all
from vitlab.modes.predict import fitted_of, readable, view_of
from vitlab.modes.select_model import SelectedModel, find_subject

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from vitlab.distill.views import EvalView, ViewBox
    from vitlab.measure.model_randomization import SanityResult
    from vitlab.report.saliency_figures import Shown

MEANING = "where a model looks: run=FOLDER input=cat.jpg"
READS = ("run", "model", "dataset", "experiment", "debug", "evaluation", "input", "explain")
ONE_DEVICE = True

BATCH = 16  # images whose maps are computed at once
CHECKED = 4  # images that the check by randomised weights looks at
TITLES = {"gradcam": "Grad-CAM", "rollout": "attention rollout"}
LARGEST = 640  # pixels of the longer side of a picture as it is drawn


@dataclass
class Seen:
    """One image as the network saw it, and its prediction."""

    name: str
    view: Tensor  # [3, H, W], normalised
    picture: Image.Image  # from which the view was cut, upright, at most LARGEST pixels long
    box: ViewBox  # the part of ``picture`` that the view shows
    labels: list[str] | None = None  # None: not known
    predicted: str = ""
    probability: float = 0.0
    target: int = 0

    @property
    def label(self) -> str | None:
        """In words."""
        return None if self.labels is None else ", ".join(self.labels)

    @property
    def wrong(self) -> bool:
        """Whether the prediction is known to be no label of the image."""
        return self.labels is not None and self.predicted not in self.labels


def answer(composed: Composed) -> int:
    """Draw Grad-CAM and attention rollout over the pictures of ``input=``, or over test images of the data set.

    The maps are in ``explain/`` of the run, or beside it (:func:`folder_for`); 2 where a picture could not be read.

    Raises:
        UserError: no model, no pictures, an unknown class or layer, no map that this network allows.
    """
    subject = find_subject(composed)
    spec = composed.config.explain
    pictures = expand(composed.config.input) if composed.config.input is not None else None
    from vitlab.training.distributed import configure_torch

    configure_torch(composed.config)
    images, bad = _from_files(subject, list(pictures)) if pictures is not None else (_from_data(subject), 0)
    if not images:
        raise UserError("None of the pictures could be read.", "The lines above say why.")
    network = subject.network().to(subject.device)
    _ask(network, subject, images)
    methods, notes = _methods(network, subject, images)
    maps = {name: _maps(method, subject, network, images) for name, method in methods.items()}
    folder = folder_for(subject, images)
    with writing(subject.run, composed):
        for stale in [*folder.glob("image-*.png"), *folder.glob("sanity-*.png")]:  # of the command before
            stale.unlink()
        checks = _check(network, subject, images, methods, folder) if spec.sanity else {}
        _draw(subject, images, maps, folder)
        write_json(folder / "explain.json", _record(subject, images, checks, notes))
    _print(subject, images, checks, notes, folder)
    return 2 if bad else 0


def folder_for(subject: SelectedModel, images: list[Seen]) -> Path:
    """``explain/`` of the run for its own images; beside it, for other images or pictures of ``input=``, a folder named
    by them, and in either a folder for a model that is not the run's result: no map replaces that of another picture.
    """
    if subject.run is None:
        return subject.folder
    if subject.config.input is None:
        folder = folder_of(subject, "explain")
    else:
        seen = hashlib.sha256()
        for one in images:
            seen.update(os.path.abspath(one.name).encode("utf-8", "surrogateescape") + b"\0" + one.picture.tobytes())
        folder = subject.folder / f"explain-input-{seen.hexdigest()[:8]}"
    assert subject.stage is not None
    return folder if is_result(subject) else folder / subject.stage.name


# ------------------------------------------------------------------------------------------------------------- images


def _from_files(subject: SelectedModel, paths: list[str]) -> tuple[list[Seen], int]:
    """The named pictures, and how many of them could not be read (each is reported)."""
    view, seen, bad = view_of(subject.meta), [], 0
    for path, image in read_all(paths, subject.config.hardware.workers or subject.config.hardware.threads):
        if isinstance(image, UserError):
            print(image.what, file=sys.stderr)
            bad += 1
        else:
            seen.append(_seen(path, image, view))
    return seen, bad


def _from_data(subject: SelectedModel) -> list[Seen]:
    """``explain.images`` test images, of the classes in turn, the same every time."""
    from vitlab.data.subsets import limit_images

    data = subject.data
    source = limit_images(data.sources["test"], subject.config.explain.images, subject.config.seed)
    pairs: list[tuple[Image.Image, Any]] = [source[position] for position in range(len(source))]
    keys = list(source.keys)
    return [
        _seen(keys[position], image, data.eval_view, subject.task.label_names(label, data.classes))
        for position, (image, label) in enumerate(pairs)
    ]


def _seen(name: str, image: Image.Image, view: EvalView, labels: list[str] | None = None) -> Seen:
    seen = view(image)
    picture = image.copy()
    picture.thumbnail((LARGEST, LARGEST))
    return Seen(name, seen, picture, view.box(*picture.size), labels)


def _ask(network: nn.Module, subject: SelectedModel, images: list[Seen]) -> None:
    """Fill in the predictions, calibrated as in mode=predict, and the class that is to be explained."""
    import torch

    classes, fitted = subject.meta.classes, fitted_of(subject)
    wanted = subject.config.explain.target
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        with torch.inference_mode():
            logits = network(torch.stack([one.view for one in part]).to(subject.device))
            prob = subject.task.probabilities(logits, fitted)
        for one, (value, which) in zip(part, zip(*[x.tolist() for x in prob.max(1)], strict=True), strict=True):
            one.predicted, one.probability = classes[which], value
            if wanted == "label" and not subject.task.one_label:
                raise UserError(
                    f"explain.target=label: images have several labels with task={subject.task.name}.",
                    "Give a label's name, or predicted.",
                )
            name = one.predicted if wanted == "predicted" else one.label if wanted == "label" else wanted
            if name is None:
                raise UserError(
                    "explain.target=label: the pictures of input= have no labels.", "Give a class's name, or predicted."
                )
            if name not in classes:
                near = nearest(name, classes)
                raise UserError(
                    f"explain.target={name}: the model has no such class.",
                    f"Did you mean {near}?" if near else "It is predicted, label, or the name of a class.",
                )
            one.target = classes.index(name)


# --------------------------------------------------------------------------------------------------------------- maps


def _methods(
    network: nn.Module, subject: SelectedModel, images: list[Seen]
) -> tuple[dict[str, Callable[..., Tensor]], list[str]]:
    """The requested maps that this network allows, and a line for each that it does not.

    Raises:
        UserError: it allows none of them.
    """
    import torch

    from vitlab.measure.explain import grad_cam, network_maps
    from vitlab.measure.rollout import attention_rollout

    layer = subject.config.explain.layer

    def cam(model: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        return grad_cam(model, image, target, layer)

    def rollout(model: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        return attention_rollout(model, image)

    def declared(name: str) -> Callable[..., Tensor]:
        return lambda model, image, target: network_maps(model, image)[name]

    first = images[0].view[None].to(subject.device)
    known: dict[str, Callable[..., Tensor]] = {"gradcam": cam, "rollout": rollout}
    known |= {name: declared(name) for name in network_maps(network, first)}
    allowed, notes = {}, []
    requested = subject.config.explain.methods
    if requested == ExplainConfig().methods:  # nothing was chosen: what the network declares is shown too
        requested = list(known)
    for name in dict.fromkeys(requested):
        if name not in known:
            near = nearest(name, known)
            raise UserError(
                f"explain.methods: {subject.title} has no map '{name}'; it has {', '.join(known)}.",
                f"Did you mean {near}?" if near else "Choose among them.",
            )
        try:
            known[name](network, first, torch.tensor([images[0].target], device=subject.device))
            allowed[name] = known[name]
        except UserError as error:
            if len(requested) == 1 or (name == "gradcam" and layer is not None):
                raise
            notes.append(error.what)
    if not allowed:
        raise UserError(" ".join(notes) or "explain.methods names none.", "Give explain.methods=[gradcam].")
    return allowed, notes


def _maps(method: Callable[..., Tensor], subject: SelectedModel, network: nn.Module, images: list[Seen]) -> Tensor:
    """[N, H, W] on the CPU, each in [0, 1]."""
    import torch

    from vitlab.measure.explain import upsample_maps

    found = []
    for start in range(0, len(images), BATCH):
        image, target = _stack(images[start : start + BATCH], subject.device)
        found.append(upsample_maps(method(network, image, target), *image.shape[2:]).cpu())
    return torch.cat(found)


def _stack(images: list[Seen], device: torch.device) -> tuple[Tensor, Tensor]:
    import torch

    image = torch.stack([one.view for one in images]).to(device)
    return image, torch.tensor([one.target for one in images], device=device)


def _check(
    network: nn.Module,
    subject: SelectedModel,
    images: list[Seen],
    methods: dict[str, Callable[..., Tensor]],
    folder: Path,
) -> dict[str, SanityResult]:
    """Each method's maps as the weights are randomised, as numbers and as a picture."""
    from vitlab.measure.explain import upsample_maps
    from vitlab.measure.model_randomization import sanity_check
    from vitlab.report import saliency_figures, style

    checked = images[:CHECKED]
    image, target = _stack(checked, subject.device)
    side = (int(image.shape[2]), int(image.shape[3]))
    checks = {}
    for name, method in methods.items():
        first, check = sanity_check(method, network, image, target, subject.config.seed)
        checks[name] = check
        steps = [("", 1.0, list(upsample_maps(first, *side).cpu().numpy()))]
        steps += [
            (part, correlation, list(upsample_maps(one, *side).cpu().numpy()))
            for part, correlation, one in zip(check.parts, check.correlation, check.maps, strict=True)
        ]
        title = f"{_named(name)} as the weights are made random, from the head down"
        with style.themed(style.LIGHT):
            drawing = saliency_figures.sanity_sheet(
                [_pixels(subject, one) for one in checked], steps, style.LIGHT, title
            )
            if subject.on_data and subject.data.synthetic:
                style.mark_synthetic(drawing, style.LIGHT)
            atomic_write(folder / f"sanity-{name}.png", style.png(drawing))
    return checks


# -------------------------------------------------------------------------------------------------------------- files


def _pixels(subject: SelectedModel, one: Seen):  # type: ignore[no-untyped-def]  # numpy is not imported above
    """The view as a picture again, [H, W, 3] uint8."""
    import torch

    mean, std = (torch.tensor(list(x)).reshape(3, 1, 1) for x in (subject.meta.mean, subject.meta.std))
    return ((one.view * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _draw(subject: SelectedModel, images: list[Seen], found: dict[str, Tensor], folder: Path) -> None:
    """``maps.png`` with every image, and one PNG for each."""
    from vitlab.report import saliency_figures, style
    from vitlab.report.compare import clip

    names = dict(zip(subject.meta.classes, readable(subject.meta.classes), strict=True))
    shown = []
    for position, one in enumerate(images):
        explained = subject.meta.classes[one.target]
        lines = [f"probability {100 * one.probability:.1f} %"]
        lines += [f"label {clip(names.get(one.label, one.label), 20)}"] if one.label is not None else []
        lines += (
            [f"Grad-CAM for {clip(names[explained], 14)}"] if explained != one.predicted and "gradcam" in found else []
        )
        shown.append(
            saliency_figures.Shown(
                _pixels(subject, one),
                {_title(name): heat[position].numpy() for name, heat in found.items()},
                names[one.predicted],
                "\n".join(
                    [*lines, f"test image {one.name}" if one.name.isdecimal() else clip(Path(one.name).name, 24)]
                ),
                one.wrong,
            )
        )
    title = f"Where it looks: {subject.title}"
    with style.themed(style.LIGHT):
        both = zip(shown, (_on_picture(one, view) for one, view in zip(images, shown, strict=True)), strict=True)
        pages = [("maps", shown), *((f"image-{number}", list(two)) for number, two in enumerate(both, 1))]
        for name, part in pages:
            drawing = saliency_figures.sheet(part, style.LIGHT, title)
            if subject.on_data and subject.data.synthetic:
                style.mark_synthetic(drawing, style.LIGHT)
            atomic_write(folder / f"{name}.png", style.png(drawing))


def _on_picture(one: Seen, view: Shown) -> Shown:
    """The maps of a view on the picture that it was cut from, zero where the view shows nothing of it."""
    import numpy as np
    from PIL import Image

    from vitlab.report.saliency_figures import Shown

    pixels = np.asarray(one.picture.convert("RGB"))
    high, wide = pixels.shape[:2]
    (left, top), (right, bottom) = one.box.to_view(0, 0), one.box.to_view(wide, high)

    def spread(heat: np.ndarray) -> np.ndarray:
        placed = Image.fromarray(heat.astype(np.float32))
        across, down = (right - left) / wide, (bottom - top) / high
        matrix = (across, 0, left, 0, down, top)  # from a pixel of the picture to its place in the view
        return np.asarray(placed.transform((wide, high), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))

    maps = {name: np.clip(spread(heat), 0, 1) for name, heat in view.maps.items()}
    cut = "all of it is seen" if left >= 0 and top >= 0 else "the border is cut off"
    return Shown(pixels, maps, "on the picture", cut)


def _title(method: str) -> str:
    return TITLES.get(method, method)


def _named(method: str) -> str:
    """A method's name where a sentence begins."""
    return _title(method)[0].upper() + _title(method)[1:]


def _record(
    subject: SelectedModel, images: list[Seen], checks: dict[str, SanityResult], notes: list[str]
) -> dict[str, object]:
    return {
        "model": str(subject.artifact or subject.title),
        "images": [
            {
                "number": number,
                "name": one.name,
                "label": one.label,
                "predicted": one.predicted,
                "probability": one.probability,
                "explained": subject.meta.classes[one.target],
            }
            for number, one in enumerate(images, 1)
        ],
        "sanity": {
            name: {
                "random_from": check.parts,
                "rank_correlation": check.correlation,
                "blank": check.blank,
                "passed": check.passed,
            }
            for name, check in checks.items()
        },
        "notes": notes,
    }


def _print(
    subject: SelectedModel, images: list[Seen], checks: dict[str, SanityResult], notes: list[str], folder: Path
) -> None:
    width = min(max(len(one.name) for one in images), 60)
    for number, one in enumerate(images, 1):
        label = f"   label {one.label}" if one.wrong else ""
        print(f"{number:>3}  {one.name[-60:]:<{width}}  {one.predicted}  {100 * one.probability:.1f} %{label}")
    for name, check in checks.items():
        verdict = "they depend on what was learned." if check.passed else "THEY HARDLY DEPEND on what was learned."
        if check.blank:
            verdict = f"BUT {check.blank} of {len(check.maps[0])} maps looked at are the same everywhere."
        print(
            f"\n{_named(name)}: with random weights the maps correlate {check.correlation[-1]:.2f} with these (1: they "
            f"would not depend on the weights at all); {verdict}"
        )
    for note in notes:
        print(f"\nleft out: {note}")
    print(f"\nwritten  {folder}: maps.png, image-1.png ..., explain.json")
