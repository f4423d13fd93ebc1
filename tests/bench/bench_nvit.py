"""What pruning a ViT to half of its latency keeps, beside other ways to the same latency. A table over seeds.

Every row starts from the same dense network of its seed and ends with the same finetuning (divergence from the dense
network and labels), but for the structure trained from scratch, which takes as many steps as all stages together. NViT,
random and magnitude pruning share one latency table and one target; Torch-Pruning (its own criterion and schedule) is
given the multiply-adds that NViT reached in that seed. Latency is measured with the dense network in turns.

Run as a script: ``bench_nvit.py [FILE] [seeds=0,1,2] [jobs=1] [KEY=VALUE ...]``; further words are overrides of every
run, such as ``dataset=fashion_mnist dataset.root=PATH model=vit_digits``. It prints the table and writes it to FILE.
What was run before is not run again: the runs lie in ``outputs/nvit_bench``.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vitlab.cli.main import main as vitlab
from vitlab.compose.load import load
from vitlab.config import Config
from vitlab.files import read_json, write_json
from vitlab.measure.cost import count_macs
from vitlab.methods.nvit.method import NViT
from vitlab.methods.nvit.stages import TABLE, speed_up
from vitlab.methods.nvit.training import DenseTeacher, prepare_pruned, set_objective
from vitlab.models.artifact import load_model
from vitlab.run.recorder import Recorder
from vitlab.stage import Context
from vitlab.sweep.statistics import paired
from vitlab.training.train import prepare

COMMON = (
    *("method=nvit", "dataset=digits", "hardware=cpu", "hardware.threads=1", "export=none", "report.figures=false"),
    *("evaluation.latency=false", "evaluation.resamples=0"),
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "nvit": ("recipe@method.scratch=digits",),
    "nvit, importance alone": ("method.prune.eta=0",),
    "magnitude": ("method.prune.criterion=magnitude", "method.prune.eta=0"),
    "random": ("method.prune.criterion=random", "method.prune.eta=0"),
}
TITLES = {
    "dense": "dense network",
    "nvit": "NViT",
    "nvit, importance alone": "NViT without the latency term",
    "magnitude": "magnitude",
    "random": "random",
    "torch-pruning": "Torch-Pruning (global, Taylor)",
    "scratch": "NViT's structure from scratch",
}

Row = dict[str, float]


def command(output: Path, seed: int, words: Sequence[str], name: str) -> Path:
    """Run a command; the folder of its run.

    Raises:
        RuntimeError: it failed.
    """
    label = f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
    line = [*COMMON, *words, f"seed={seed}", f"name={label}", f"output={output}"]
    if vitlab(line) != 0:
        raise RuntimeError(f"failed: {' '.join(line)}")
    (run,) = output.glob(f"nvit/{label}-*")
    return run


def measure_seed(output: Path, seed: int, words: Sequence[str]) -> dict[str, Row]:
    """Every row of one seed."""
    torch.set_num_threads(1)
    cache = output / f"seed{seed}.json"
    if cache.exists():
        return dict(read_json(cache))
    first = command(output, seed, [*words, "only=latency"], "dense")
    command(output, seed, [*words, "only=dense"], "dense")
    dense, table = first / "dense", first / "latency" / TABLE
    start = [*words, f"model.checkpoint={dense}", f"method.latency.table={table}"]
    scratch = _steps(words, seed)
    rows: dict[str, Row] = {}
    for name, own in VARIANTS.items():
        more = [f"method.scratch.duration={scratch}st"] if name == "nvit" else []
        run = command(output, seed, [*start, *own, *more], name)
        rows[name] = describe(run, "finetune", dense)
        if name == "nvit":
            rows["dense"], rows["scratch"] = describe(run, "dense", dense), describe(run, "scratch", dense)
    config = load([*COMMON, *start, f"seed={seed}"]).config
    try:
        import torch_pruning  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except ImportError:
        print("torch-pruning is not installed: its row is left out")
    else:
        rows["torch-pruning"] = torch_pruning_row(config, dense, rows["nvit"]["macs"], output / f"tp-seed{seed}")
    write_json(cache, rows)
    return rows


def _steps(words: Sequence[str], seed: int) -> int:
    """Optimiser steps of the dense training, of pruning at most, and of finetuning together."""
    from vitlab.training.build import full_steps

    config = load([*COMMON, *words, f"seed={seed}"]).config
    recipes = (config.method.dense, config.recipe, config.method.finetune)
    return sum(full_steps(config, recipe)[0] for recipe in recipes)


def describe(run: Path, stage: str, dense: Path) -> Row:
    """Accuracy and cost of one model of a run."""
    metrics = read_json(run / "evaluation" / "done.json")["metrics"][stage]
    small = load_model(run / stage)
    cost = read_json(run / "benchmark" / "done.json")["costs"][stage]
    predicted = read_json(run / "prune" / "pruning.json")["target"]["reached"] if stage != "dense" else 1.0
    ratio = speed_up(load_model(dense), small, 32)[0]
    return {
        "top1": metrics["top1"],
        "nll": metrics["nll"],
        "params": cost["params"],
        "macs": cost["macs"],
        "speed_up": ratio,
        "predicted": 1 / predicted,
    }


def torch_pruning_row(config: Config, dense: Path, macs: float, folder: Path) -> Row:
    """Torch-Pruning's global Taylor pruning of the dense network to ``macs``, then the same finetuning.

    As its own example for timm's ViTs: heads keep one size each in a block, and are pruned apart from widths.
    """
    import torch_pruning as tp  # type: ignore[import-not-found, unused-ignore]

    folder.mkdir(parents=True, exist_ok=True)
    stage = next(one for one in NViT.stages(config) if one.name == "finetune")
    context = Context(config, stage, {"finetune": folder}, Recorder(folder / "metrics.jsonl"))
    options = config.method
    training = prepare_pruned(context, options.finetune, dense, None, options)
    network: Any = training.learner.student
    side = config.dataset.size
    example = torch.randn(1, 3, side, side)
    heads = {block.attn.qkv: block.attn.num_heads for block in network.blocks}
    for block in network.blocks:
        block.attn.fused_attn = False  # its tracer follows the unfused products

    def pruner(share: float) -> Any:
        return tp.pruner.MetaPruner(
            *(network, example),
            importance=tp.importance.GroupTaylorImportance(),
            global_pruning=True,
            pruning_ratio=share,
            num_heads=heads,
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=share,
            ignored_layers=[network.head],
            round_to=2,
        )

    batches = training.data.train_loader(0, 8)
    for batch in batches:
        loss = nn.functional.cross_entropy(network(batch.image), batch.label)
        loss.backward()
    original = network
    for share in torch.linspace(0.05, 0.9, 35).tolist():
        network = copy.deepcopy(original)
        for mine, theirs in zip(network.parameters(), original.parameters(), strict=True):
            mine.grad = None if theirs.grad is None else theirs.grad.clone()
        heads = {block.attn.qkv: block.attn.num_heads for block in network.blocks}
        one = pruner(share)
        one.step()
        for block in network.blocks:
            block.attn.num_heads = one.num_heads[block.attn.qkv]
            block.attn.head_dim = block.attn.qkv.out_features // (3 * block.attn.num_heads)
            block.attn.attn_dim = block.attn.num_heads * block.attn.head_dim
        if count_macs(network, side) <= macs:
            break
    network.zero_grad()
    tuned = prepare(context, config.model, options.finetune, network=lambda data: network)
    tuned.learner.teachers["dense"] = DenseTeacher(dense, torch.device("cpu"))
    divergence = {"kl_weight": options.loss.kl_weight, "kl_tau": options.loss.finetune_kl_tau, "kl_pairs": "each"}
    set_objective(tuned.learner, options, **divergence)
    tuned.learner.student_eval = True
    tuned.run()
    result = tuned.learner.student.eval()
    correct, total, nll = 0, 0, 0.0
    for batch in tuned.data.test_dataloader():
        with torch.inference_mode():
            logits = result(batch.image)
        correct += int((logits.argmax(1) == batch.label).sum())
        nll += float(nn.functional.cross_entropy(logits, batch.label, reduction="sum"))
        total += len(batch.label)
    return {
        "top1": correct / total,
        "nll": nll / total,
        "params": sum(p.numel() for p in result.parameters()),
        "macs": count_macs(result, side),
        "speed_up": speed_up(load_model(dense), result, 32)[0],
        "predicted": float("nan"),
    }


def table(found: Sequence[dict[str, Row]]) -> str:
    """Markdown: means ± standard deviations over the seeds; top-1 against NViT's seed by seed, with the paired 95 % t
    interval."""
    lines = [
        "| Network | Top-1 % | NLL | Params k | MACs M | Speed-up measured | predicted | Top-1 minus NViT's |",
        "| --- |" + " ---: |" * 7,
    ]
    for name, title in TITLES.items():
        rows = [one[name] for one in found if name in one]
        if not rows:
            continue
        cells = [
            _mean([100 * row["top1"] for row in rows], ".2f"),
            _mean([row["nll"] for row in rows], ".3f"),
            _mean([row["params"] / 1e3 for row in rows], ".1f"),
            _mean([row["macs"] / 1e6 for row in rows], ".2f"),
            _mean([row["speed_up"] for row in rows], ".2f"),
            _mean([row["predicted"] for row in rows], ".2f"),
        ]
        pairs = [(100 * one[name]["top1"], 100 * one["nvit"]["top1"]) for one in found if name in one]
        gain = paired([own for own, _ in pairs], [theirs for _, theirs in pairs])
        cells.append("–" if name == "nvit" else f"{gain.mean:+.2f} [{gain.lo:+.2f}, {gain.hi:+.2f}]")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float], how: str) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{how}} ± {spread:{how}}"


def run(output: Path, seeds: Sequence[int], words: Sequence[str], jobs: int) -> str:
    """The table over ``seeds``, ``jobs`` of them at a time."""
    output.mkdir(parents=True, exist_ok=True)
    if jobs == 1:
        return table([measure_seed(output, seed, words) for seed in seeds])
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return table(list(pool.map(measure_seed, *zip(*((output, seed, words) for seed in seeds), strict=True))))


@pytest.mark.slow
def test_every_way_is_a_row(tmp_path: Path) -> None:
    short = (
        *("debug=smoke", "debug.max_steps=4", "recipe.batch_size=16", "method.target.latency=0.9"),
        *("method.prune.interval=2", "method.prune.units_per_event=64", "method.latency.rounds=1"),
        *("method.dense.batch_size=16", "method.finetune.batch_size=16"),
    )
    lines = run(tmp_path, [0, 1], short, 1).splitlines()
    assert len(lines) >= 2 + len(TITLES) - 1 and "NViT" in lines[3]


if __name__ == "__main__":
    files = [word for word in sys.argv[1:] if "=" not in word]
    given = dict(word.split("=", 1) for word in sys.argv[1:] if word.startswith(("seeds=", "jobs=")))
    overrides = [word for word in sys.argv[1:] if "=" in word and word.partition("=")[0] not in given]
    chosen = [int(one) for one in given.get("seeds", "0,1,2").split(",")]
    text = run(Path("outputs/nvit_bench"), chosen, overrides, int(given.get("jobs", "1")))
    print(text)
    if files:
        Path(files[0]).write_text(text)
