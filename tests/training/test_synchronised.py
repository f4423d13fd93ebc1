"""BatchNorm over several processes: the same names and numbers, whatever kind of layer it was."""

from __future__ import annotations

import copy

import timm
import torch
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from vitlab.training.build import synchronised


def test_every_kind_of_batchnorm_is_converted_and_loads_back() -> None:
    network = timm.create_model("mobilenetv4_conv_small", num_classes=3)  # timm's own layers, with activations inside
    plain = copy.deepcopy(network)
    converted = synchronised(network)
    norms = [module for module in converted.modules() if isinstance(module, _BatchNorm)]
    assert norms and all(isinstance(module, SyncBatchNorm) for module in norms)
    plain.load_state_dict(converted.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(converted.eval()(images), plain.eval()(images))
