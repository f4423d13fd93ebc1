"""One trained run with several labels an image, shared by all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.story import run_command, the_run

WORDS = (
    *("method=supervised", "task=multilabel", "dataset=digits_multi", "debug=none", "evaluation=default"),
    *("debug.max_images=640", "recipe.duration=10ep", "recipe.batch_size=32", "recipe.validate_every=5ep"),
    *("debug.max_steps=200", "recipe.lr=3e-3", "report.figures=true", "evaluation.latency=false"),
    *(f"model.args.{word}" for word in ("embed_dims=[16,32,64]", "depths=[1,1,1]", "num_heads=[1,1,2]")),
    *("model.args.window_sizes=[8,4,2]", "evaluation.batch_size=32", "evaluation.resamples=100"),
    *("export.formats=[safetensors,onnx,onnx_int8]",),
)
"""640 training, 300 validation and 300 test pictures; some seconds on a quiet machine."""


def with_words(*more: str) -> list[str]:
    """``WORDS``, with other values for the keys of ``more``."""
    given = {word.partition("=")[0] for word in more}
    return [*(word for word in WORDS if word.partition("=")[0] not in given), *more]


@pytest.fixture(scope="package")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the run is made."""
    yield tmp_path_factory.mktemp("multilabel")


@pytest.fixture(scope="package")
def run(output: Path) -> Path:
    """The folder of a finished run: supervised, stage ``train``."""
    assert run_command(output, *WORDS) == 0
    return the_run(output)
