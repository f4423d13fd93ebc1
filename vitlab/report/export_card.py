"""The model card: what the network is, what it was measured to do, where it comes from, what not to use it for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vitlab.config.size import sides_text
from vitlab.config.words import describe_network
from vitlab.files import readable_json
from vitlab.report.markdown import block, plain
from vitlab.report.snippets import LOAD_CODE, ONNX_CODE, TIMM_CODE
from vitlab.report.task import ReportTask

if TYPE_CHECKING:
    from vitlab.models.artifact import ModelMeta

SHOWN = 20  # classes that the card lists before it counts the rest


@dataclass
class Facts:
    """What the card states beyond the model's own description."""

    title: str
    dataset: str = ""  # its name
    described: str = ""  # the data in one line
    images: int = 0  # measured on
    split: str = ""
    synthetic: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)  # top1, top5, nll, ece, ... as shares
    repository: str = "USER/NAME"  # on the hub
    imports: str | None = None  # module that timm needs first
    extra: tuple[str, ...] = ()  # further sentences
    code: str = ""  # Python that uses the model where it lies; "": from the hub, with timm
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of the metrics, 95 %
    held: str = ""  # which model of its run it is, and whether another one of it is better
    params: int = 0  # of the network; 0: not counted
    origin: str = ""  # who made the data, and under which licence, as far as it is stated


def squashed(meta: ModelMeta) -> bool:
    """Whether the view of the model resizes both sides instead of cutting; see vitlab.distill.views.EvalView."""
    return meta.crop == "squash" or (meta.crop == "auto" and meta.crop_pct >= 1)


def crop_of(meta: ModelMeta) -> str:
    """How the view of the model is cut, with ``auto`` resolved: center, squash or squash_crop."""
    return "squash" if squashed(meta) else "squash_crop" if meta.crop == "squash_crop" else "center"


def model_card(meta: ModelMeta, facts: Facts, task: ReportTask) -> str:
    """README.md of the hub layout: YAML head for the hub, then prose for people."""
    head: dict[str, object] = {
        "library_name": "vitlab" if facts.code else "timm",
        "pipeline_tag": task.pipeline,
        "tags": [task.pipeline, "timm", "vitlab", *([meta.method] if meta.method else [])],
    }
    if meta.licence:
        head["license"] = meta.licence
    yaml = "\n".join(f"{key}: {readable_json(value)}" for key, value in head.items())
    names = _classes(meta) + (f" and {len(meta.classes) - SHOWN} more" if len(meta.classes) > SHOWN else "")
    lines = [
        f"---\n{yaml}\n---",
        f"# {plain(facts.title)}",
        f"{_network(meta, facts)} {task.card_purpose(len(meta.classes))} ({names}), "
        + (
            f"trained with vitlab {meta.vitlab}, method {meta.method}."
            if meta.method
            else f"exported by vitlab {meta.vitlab}."
        )
        + (f" {plain(facts.held)}" if facts.held else ""),
        "## Use",
        _code(meta, facts, task),
        f"Input: RGB, {sides_text(meta.size)} px, scaled to [0, 1], minus {_list(meta.mean)}, divided by "
        f"{_list(meta.std)}." + ("" if facts.code else " The order of the logits is `label_names` in config.json."),
        "## Measured",
        _measured(facts, task),
        "## Origin and licence",
        _origin(meta, facts),
        "## Limits",
        "\n".join(f"- {one}" for one in _limits(meta, facts, task)),
    ]
    return "\n\n".join(lines) + "\n"


def _code(meta: ModelMeta, facts: Facts, task: ReportTask) -> str:
    return block(facts.code or timm_code(meta, facts, task), "python")


def timm_code(meta: ModelMeta, facts: Facts, task: ReportTask, source: str = "") -> str:
    """Python that predicts one picture with timm: from ``source`` as timm names it, by default the hub."""
    return TIMM_CODE.format(
        repository=source or f"hf-hub:{facts.repository}",
        imports=f"import {facts.imports}  # registers the architecture with timm\n" if facts.imports else "",
        activation=task.activation_code(meta.fitted),
    )


def export_readme(meta: ModelMeta, facts: Facts, task: ReportTask, files: Mapping[str, str]) -> str:
    """README.md of the folder of exported ``files`` (name: what it is): input, classes and a snippet for each kind.

    A code block stands for what is there: onnxruntime alone, timm, vitlab.
    """
    steps = (
        f"resized to {sides_text(meta.size)} px, nothing cut"
        if squashed(meta)
        else f"both sides resized to the centre crop of {sides_text(meta.size)} px divided by {meta.crop_pct:g}"
        if crop_of(meta) == "squash_crop"
        else f"resized by {meta.crop_pct:g} around the centre crop of {sides_text(meta.size)} px"
    )
    names = _classes(meta) + (
        f" and {len(meta.classes) - SHOWN} more (all of them: `classes` in the metadata of the ONNX file, `classes` "
        "in model.json, `label_names` in config.json)"
        if len(meta.classes) > SHOWN
        else ""
    )
    lines = [
        f"# {plain(facts.title)}",
        f"{_network(meta, facts)} {task.card_purpose(len(meta.classes))}. "
        + (f"{plain(facts.held)} " if facts.held else "")
        + f"In the order of the outputs: {names}.",
        "\n".join(f"- `{name}`: {what}" for name, what in files.items()),
        "## Input",
        "The EXIF orientation of a picture is applied, transparent pixels lie on white, 16-bit grey keeps its upper "
        f"byte. The RGB picture is {steps} ({meta.interpolation}), scaled to [0, 1], minus {_list(meta.mean)}, divided "
        f"by {_list(meta.std)}: float32 [batch, 3, height, width].",
    ]
    onnx = next((name for name in files if name.endswith(".onnx")), None)
    if onnx is not None:
        lines += ["## With onnxruntime", f"```python\n{ONNX_CODE.format(file=onnx).rstrip()}\n```"]
    if "timm" in files:
        code = timm_code(meta, facts, task, "local-dir:timm")
        lines += ["## With timm", f"```python\n{code.rstrip()}\n```"]
    if "model.safetensors" in files:
        lines += ["## With vitlab", f"```python\n{LOAD_CODE.format(folder='.').rstrip()}\n```"]
    return "\n\n".join(lines) + "\n"


def _measured(facts: Facts, task: ReportTask) -> str:
    if not facts.metrics:
        return "Nothing was measured before this export."
    rows = [
        (name, f"{scale * facts.metrics[key]:.4g}", _interval(facts, key, scale))
        for key, (name, scale) in task.card_metrics.items()
        if key in facts.metrics
    ]
    head = f"On {facts.images:,} images of the {facts.split} split of {plain(facts.dataset)}"
    head += " (synthetic data: the numbers mean nothing for photographs)" if facts.synthetic else ""
    table = "\n".join(
        [
            "| Measure | Value |",
            "| --- | ---: |",
            *(f"| {name} | {value}{interval} |" for name, value, interval in rows),
        ]
    )
    return f"{head}:\n\n{table}"


def _interval(facts: Facts, key: str, scale: float) -> str:
    ends = facts.intervals.get(key)
    return f" ({scale * ends[0]:.4g} to {scale * ends[1]:.4g}, 95 % bootstrap)" if ends else ""


def _origin(meta: ModelMeta, facts: Facts) -> str:
    start = f"The weights started from {plain(meta.origin)}" if meta.origin else "The weights were trained from scratch"
    licence = (
        f"; their licence is {meta.licence}."
        if meta.licence
        else ("; their licence is not known to vitlab: ask whoever published them." if meta.origin else ".")
    )
    data = f" Data: {plain(facts.described or facts.dataset).rstrip('.')}." if facts.dataset else ""
    origin = f" {plain(facts.origin).rstrip('.')}." if facts.origin else ""
    return f"{start}{licence}{data}{origin} The licence of the data is that of their publisher and is not checked here."


def _limits(meta: ModelMeta, facts: Facts, task: ReportTask) -> list[str]:
    lines = [
        *task.card_limits(),
        f"It was measured on images like those of {plain(facts.dataset)}; on others it may be worse, and overconfident."
        if facts.dataset
        else "It was not measured here.",
        f"It sees {sides_text(meta.size)} px: what is smaller than a few pixels of that is lost.",
    ]
    return [*lines, *map(plain, facts.extra)]


def _network(meta: ModelMeta, facts: Facts) -> str:
    """What it is: timm's name, what of it was changed, its size."""
    name, _, changed = describe_network(meta.name, meta.args).partition(" ")
    size = f", {facts.params:,} parameters," if facts.params else ""
    return f"A `{name}`" + (f" {changed}" if changed else "") + size


def _classes(meta: ModelMeta) -> str:
    return ", ".join(map(plain, meta.classes[:SHOWN]))


def _list(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
