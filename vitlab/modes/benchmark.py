"""mode=benchmark: what models cost, side by side in one process, so that ratios hold on a machine that is not quiet.

    python -m vitlab mode=benchmark run=[RUN_A,RUN_B] benchmark.backends=[eager,compile,onnxruntime]
    python -m vitlab mode=benchmark model=deit_small benchmark.models=[swin_tiny,tiny_vit_5m] hardware.threads=1

Batch sizes and repeats are evaluation.latency_batches and evaluation.latency_repeats. The costs that stand in the
report of a run, and in the picture of all runs below output=, are those of the eager network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.compose.load import load
from vitlab.config.catalogue import choices, conf_dir
from vitlab.config.composed import Composed
from vitlab.config.size import hw, size_text
from vitlab.errors import UserError
from vitlab.files import atomic_write, write_json
from vitlab.modes.find_runs import writing
from vitlab.modes.select_model import SelectedModel, find_subject, find_subjects
from vitlab.run.environment import now
from vitlab.run.run import Run

if TYPE_CHECKING:
    from vitlab.measure.cost_record import Cost
    from vitlab.measure.timing import Contender, Timing

MEANING = "parameters, multiply-adds, latency, memory side by side; run='*' draws all runs"
READS = ("run", "model", "dataset", "experiment", "debug", "evaluation", "benchmark")
ONE_DEVICE = True


@dataclass
class Costed:
    """One model with what it costs."""

    subject: SelectedModel
    cost: Cost
    skipped: dict[str, str]  # backend: why it did not run


def answer(composed: Composed) -> int:
    """Count, time, write and print; the exit code."""
    from vitlab.measure.backends import missing_packages

    config = composed.config
    for backend in config.benchmark.backends:
        if absent := missing_packages(backend):
            raise UserError(
                f"benchmark.backends: {backend} needs the package {absent[0]}, which is not installed.",
                f"pip install {' '.join(absent)}, or leave {backend} out.",
            )
    subjects = _subjects(composed)
    from vitlab.training.distributed import configure_torch

    configure_torch(config)
    found, timings = measure(subjects, config.benchmark.backends, config.trainer.accelerator)
    session = now()
    for run in dict.fromkeys(one.run for one in subjects if one.run is not None):
        with writing(run, composed):
            _record(run, [one for one in found if one.subject.run is run], session)
    text = summary(found, timings)
    print(text)
    folder = write_timings(found, timings, text, Path(config.output))
    print(f"\nwritten  {folder}")
    from vitlab.report.accuracy_latency import write_accuracy_latency
    from vitlab.tasks.base import find_task

    for path in write_accuracy_latency(Path(config.output), find_task):
        print(f"written  {path}")
    return 0


def costs(subjects: Sequence[SelectedModel]) -> dict[str, Any]:
    """Parameters, multiply-adds, memory, size and latency of the models of one run, by stage."""
    found, _ = measure(subjects, ("eager",), subjects[0].config.trainer.accelerator)
    return {_key(one.subject): one.cost.to_dict() for one in found}


def measure(
    subjects: Sequence[SelectedModel], backends: Sequence[str], accelerator: str
) -> tuple[list[Costed], list[Timing]]:
    """Count every model, then time all models in all backends round by round, one batch size after the other."""
    import torch

    from vitlab.measure.cost import measure_cost
    from vitlab.measure.cost_record import Latency
    from vitlab.measure.timing import core_count, describe_load, load_average, time_interleaved
    from vitlab.training.progress import Progress, print_line

    print_line(f"benchmark: {', '.join(subject.name for subject in subjects)}")
    spec = subjects[0].config.evaluation
    batches = list(spec.latency_batches) if spec.latency else []
    device = subjects[0].device
    found = []
    for subject in subjects:
        weights = subject.artifact / "model.safetensors" if subject.artifact is not None else None
        network = subject.network().to(device)
        found.append(
            Costed(subject, measure_cost(network, subject.meta.size, file=weights, memory=spec.latency_batches), {})
        )
    timings: list[Timing] = []
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="vitlab-benchmark-") as place:
        files = {}
        if {"onnxruntime", "openvino"} & set(backends) and batches:
            files = {one.subject.name: _onnx(one, Path(place) / str(i)) for i, one in enumerate(found)}
        for batch in batches:
            contenders = [c for one in found for c in _contenders(one, backends, batch, files, device)]
            with Progress(f"benchmark, batch {batch}", spec.latency_repeats, unit="round") as progress:
                timings += time_interleaved(contenders, spec.latency_repeats, progress=progress.update)
            load = max(load, load_average())
            torch._dynamo.reset()
    for one in found:
        own = [t for t in timings if (t.name, t.backend) == (one.subject.name, "eager")]
        latency = [Latency(t.batch, t.median_ms, t.p10_ms, t.p90_ms, t.repeats) for t in own]
        busy = describe_load(load, core_count()) if latency else ""
        one.cost = dataclasses.replace(one.cost, latency=latency, busy=busy)
    return found, timings


def _contenders(
    one: Costed, backends: Sequence[str], batch: int, files: Mapping[str, Path | None], device: Any
) -> list[Contender]:
    """The model in each backend that it runs in; why not in the others is noted in ``one.skipped``."""
    import numpy as np

    from vitlab.measure import backends as ways
    from vitlab.measure.timing import Contender

    name, shape = one.subject.name, (batch, 3, *hw(one.subject.meta.size))
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    made = []
    for backend in backends:
        if backend in one.skipped:
            continue
        file = files.get(name)
        if backend in ("onnxruntime", "openvino") and file is None:
            one.skipped.setdefault(backend, "the network does not export to ONNX")
            continue
        if backend in ("onnxruntime", "openvino"):
            assert file is not None
            run = (ways.onnxruntime_pass if backend == "onnxruntime" else ways.openvino_pass)(file, images)
        elif backend == "compile":
            run = ways.compiled_pass(one.subject.network().to(device), images)
            try:
                run()
            except Exception as error:  # whatever the compiler of this machine cannot do
                one.skipped[backend] = _first_line(error)
                continue
        else:
            run = ways.eager_pass(one.subject.network().to(device), images)
        made.append(Contender(name, backend, batch, run))
    return made


def _onnx(one: Costed, folder: Path) -> Path | None:
    """The network as an ONNX file; None where it cannot be written, with the reason in ``one.skipped``."""
    import torch

    from vitlab.report.export import export

    sample = torch.randn(3, 3, *hw(one.subject.meta.size), generator=torch.Generator().manual_seed(0))
    folder.mkdir()
    try:
        subject = one.subject
        (file,) = export(subject.network(), subject.meta, folder, ["onnx"], sample, float("inf"), subject.task)
    except UserError as error:
        for backend in ("onnxruntime", "openvino"):
            one.skipped[backend] = error.what
        return None
    return Path(file["path"])


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def _record(run: Run, found: Sequence[Costed], session: str) -> None:
    """Note the costs of a run's models. What was timed before stays where nothing was timed now, or where that was on
    another device or number of threads: the report's latency is of one of them, benchmark.json has the new one."""
    before = run.read_done("benchmark").get("costs") if run.is_done("benchmark") else None
    every = dict(before) if isinstance(before, Mapping) else {}
    for one in found:
        new = one.cost.to_dict() | {"session": session}
        old = every.get(_key(one.subject), {})
        timed_elsewhere = bool(old.get("latency")) and any(
            old.get(key) != new.get(key) for key in ("device", "threads")
        )
        if new["latency"] and timed_elsewhere:
            was, now_on = (f"{each.get('device')}, {each.get('threads')} thread(s)" for each in (old, new))
            print(f"\n{run.name}: its report keeps the latency on {was}; this one is on {now_on}", file=sys.stderr)
        if old and (not new["latency"] or timed_elsewhere):
            new.pop("busy", None)
            new |= {name: old[name] for name in ("latency", "device", "threads", "session", "busy") if name in old}
        every[_key(one.subject)] = new
    run.mark_done("benchmark", {"costs": every, "session": session})


# -------------------------------------------------------------------------------------------------------------- words


def _subjects(composed: Composed) -> list[SelectedModel]:
    """The models of run= or model=, then those of benchmark.models, under different names."""
    more = composed.config.benchmark.models
    named = composed.config.run is not None or {"model", "experiment"} & composed.chosen
    found = find_subjects(composed, trained=False) if named or not more else []
    for word in more:
        found.append(_another(word, composed, found))
    seen: dict[str, int] = {}
    for one in found:
        seen[one.name] = seen.get(one.name, 0) + 1
        if seen[one.name] > 1:
            one.name, one.title = f"{one.name} ({seen[one.name]})", f"{one.title} ({seen[one.name]})"
    return found


def _another(word: str, composed: Composed, found: Sequence[SelectedModel]) -> SelectedModel:
    """A model of benchmark.models: a name in conf/model, a model folder, or a name of timm's; seen at the size of the
    first model when that is one of a run and no size was typed."""
    ours = ("run", "model", "benchmark", "experiment")
    words = [one for one in composed.overrides if one.lstrip("+").partition("=")[0].partition(".")[0] not in ours]
    if word in choices(conf_dir(), "model"):
        words.append(f"model={word}")
    elif (Path(word).expanduser() / "model.json").is_file():
        words.append(f"model.checkpoint={word}")
    else:
        words += [f"model.name={word}", "model.pretrained=false"]
    sized = any(one.startswith("dataset.size=") for one in words)
    if found and found[0].artifact is not None and not sized and "model.json" not in word:
        words.append(f"dataset.size={found[0].meta.size}".replace(" ", ""))
    return find_subject(load(words), trained=False)


def _key(subject: SelectedModel) -> str:
    return subject.artifact.name if subject.artifact is not None else subject.name


def write_timings(found: Sequence[Costed], timings: Sequence[Timing], text: str, output: Path) -> Path:
    """``benchmark.json``, ``benchmark.txt`` and a picture of the times; in the run's folder, or for several models in
    one of their own."""
    from vitlab.report import style
    from vitlab.report.backend_figure import latency_bars
    from vitlab.run.environment import environment

    folders = list(dict.fromkeys(one.subject.folder for one in found))
    if len(folders) == 1:
        folder = folders[0] / "benchmark" if found[0].subject.run is not None else folders[0]
    else:
        names = "|".join(str(one) for one in folders)
        folder = output / "benchmark" / f"{len(found)}-models-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    titles = {one.subject.name: one.subject.title for one in found}
    write_json(
        folder / "benchmark.json",
        {
            "machine": {k: v for k, v in environment("").items() if k in ("time", "cpu", "cores", "packages")},
            "models": [
                {"name": one.subject.name, "title": one.subject.title, **one.cost.to_dict(), "skipped": one.skipped}
                for one in found
            ],
            "timings": [{**asdict(one), "images_per_second": one.images_per_second} for one in timings],
        },
    )
    atomic_write(folder / "benchmark.txt", text + "\n")
    with style.themed(style.LIGHT):
        for batch in dict.fromkeys(one.batch for one in timings):
            drawing = latency_bars([one for one in timings if one.batch == batch], titles, style.LIGHT)
            atomic_write(folder / f"latency-{batch}.png", style.png(drawing))
    return folder


def summary(found: Sequence[Costed], timings: Sequence[Timing]) -> str:
    """What stands at the prompt."""
    from vitlab.report.compare import DASH, count, file_size, milliseconds, si
    from vitlab.report.text_tables import text_table
    from vitlab.run.environment import environment

    first = found[0].cost
    machine = environment("")
    where = f"{machine['cpu']}, {count(first.threads or 1, 'thread')}" if first.device == "cpu" else first.device
    lines = [f"machine  {where}"]
    if first.busy:
        lines.append(f"busy     {first.busy}: milliseconds are too long, ratios hold (models take turns)")
    memory = sorted({each.batch for one in found for each in one.cost.memory})
    extra = list(dict.fromkeys(name for one in found for name in one.cost.extra_macs))
    counts = ["MACs", *(f"MACs, {name}" for name in extra)]
    rows = [["model", "px", "Params", *counts, "Weights", *(f"Memory, batch {b}" for b in memory)]]
    for one in found:
        c = one.cost
        held = {each.batch: file_size(each.bytes) for each in c.memory}
        macs = [c.macs, *(c.extra_macs.get(name) for name in extra)]
        cells = [DASH if each is None else si(each) for each in (c.params, *macs)]
        cells += [DASH if c.bytes is None else file_size(c.bytes), *(held.get(b, DASH) for b in memory)]
        rows.append([one.subject.title, size_text(one.subject.meta.size), *cells])
    lines += ["", text_table(rows)]
    lines.append(
        "MACs of one image: 1 = one multiplication with its addition, in convolutions, linear layers and both products"
    )
    lines.append(
        "of attention (torch's counter, attention written out). Memory: one forward pass, without the weights."
    )
    titles = {one.subject.name: one.subject.title for one in found}
    for batch in dict.fromkeys(one.batch for one in timings):
        here = [one for one in timings if one.batch == batch]
        rows = [[f"batch {batch}", "backend", "ms", "10–90 %", "images/s", "× first", "95 % bootstrap"]]
        for t in here:
            spread = f"{milliseconds(t.p10_ms)}–{milliseconds(t.p90_ms)}"
            ratio = [f"{t.ratio:.2f}", f"{t.ratio_lo:.2f}–{t.ratio_hi:.2f}"] if t is not here[0] else ["1", "–"]
            rate = f"{t.images_per_second:,.0f}" if t.images_per_second >= 10 else f"{t.images_per_second:.2g}"
            rows.append([titles[t.name], t.backend, milliseconds(t.median_ms), spread, rate, *ratio])
        lines += ["", text_table(rows)]
    if timings:
        lines.append(f"Median of {timings[0].repeats} rounds, in each of which every line ran once, in random order.")
    for one in found:
        lines += [f"{one.subject.title} did not run in {way}: {why}" for way, why in one.skipped.items()]
    return "\n".join(lines)
