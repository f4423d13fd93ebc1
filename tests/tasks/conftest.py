"""One trained run with several labels an image, shared by all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.story import tell, the_run

WORDS = (
    *("method=supervised", "task=multilabel", "dataset=digits_multi", "debug=none", "evaluation=default"),
    *("debug.max_images=330", "recipe.duration=4ep", "recipe.batch_size=32", "recipe.validate_every=2ep"),
    *("evaluation.batch_size=32", "evaluation.resamples=100", "export.formats=[safetensors,onnx,onnx_int8]"),
)
"""330 training, 300 validation and 300 test pictures; some seconds."""


@pytest.fixture(scope="package")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the run is made."""
    yield tmp_path_factory.mktemp("multilabel")


@pytest.fixture(scope="package")
def run(output: Path) -> Path:
    """The folder of a finished run: supervised, stage ``train``."""
    assert tell(output, *WORDS) == 0
    return the_run(output)
