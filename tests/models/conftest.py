from __future__ import annotations

import pytest
import torch

from vitlab.config import ModelConfig


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> ModelConfig:
    """A TinyViT for 32 px that builds and runs in milliseconds."""
    return ModelConfig(
        name="tiny_vit_5m_224",
        args={
            "embed_dims": [8, 16, 16, 32],
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 1, 1, 2],
            "window_sizes": [8, 4, 2, 1],
        },
    )
