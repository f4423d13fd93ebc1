"""2:4 sparsity (A8): masks, eligibility, and that they survive training."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import vitlab.models  # noqa: F401
from vitlab.errors import UserError
from vitlab.models.pruning.sparsity import Sparsity, count_nonzeros, is_eligible, linear_weights, mask_2_4


def test_the_two_largest_of_four() -> None:
    weight = torch.tensor([[1.0, -3, 2, 0, 5, 5, 5, 5], [0, 0, 0, 0, -1, 2, -4, 3]])
    expected = [[0, 1, 1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 1, 1]]
    assert torch.equal(mask_2_4(weight), torch.tensor(expected).bool())
    assert torch.equal(mask_2_4(weight.view(2, 2, 2, 2)).flatten(1), torch.tensor(expected).bool())
    with pytest.raises(ValueError, match=r"\(2, 6\) has no groups of four"):
        mask_2_4(torch.ones(2, 6))


def test_eligible_layers() -> None:
    assert is_eligible(torch.ones(8, 16)) and is_eligible(torch.ones(8, 4, 2, 2))
    assert not is_eligible(torch.ones(4, 16)) and not is_eligible(torch.ones(8, 8)) and not is_eligible(torch.ones(16))
    with pytest.raises(UserError, match="no linear layer for 2:4"):
        Sparsity(nn.Linear(16, 4))


def test_masks_survive_training() -> None:
    torch.manual_seed(0)
    structure = {"embed": 32, "heads": [2, 1], "qk": [8, 16], "v": 16, "mlp": [48, 16]}
    model = timm.create_model("pruned_vit", structure=structure, img_size=16, patch_size=8, num_classes=5)
    sparsity = Sparsity(model)
    assert sparsity.left_out == ["head.weight"]
    kept = {name: weight.detach().clone() for name, weight in linear_weights(model).items()}
    sparsity.apply_to(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
        sparsity.apply_to(model)
    for name, weight in linear_weights(model).items():
        if name in sparsity.masks:
            fours = (weight != 0).flatten(1).unflatten(1, (-1, 4)).sum(-1)
            assert bool((fours == 2).all()), name
            assert torch.equal(weight != 0, mask_2_4(kept[name])) and not torch.equal(weight, kept[name])
    nonzero = sum(int((value != 0).sum()) for value in model.parameters())
    assert count_nonzeros(model).nonzero == nonzero < count_nonzeros(model).total


def test_masks_in_a_checkpoint() -> None:
    first, second = Sparsity(nn.Linear(16, 8)), Sparsity(nn.Linear(16, 8))
    assert not torch.equal(first.masks["weight"], second.masks["weight"])
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.masks["weight"], second.masks["weight"])
    with pytest.raises(ValueError, match="of another network"):
        second.load_state_dict({"weight": torch.ones(16, 16)})


@pytest.mark.slow
def test_the_stand_in_for_nvit_b() -> None:
    model = timm.create_model("nvit_ref_base")
    sparsity = Sparsity(model)
    sparsity.apply_to(model)
    assert not sparsity.left_out
    counted = count_nonzeros(model)
    largest = sum(int((value != 0).sum()) for value in linear_weights(model).values())
    dense = sum(value.numel() for value in model.parameters()) - sum(v.numel() for v in linear_weights(model).values())
    assert counted.nonzero == largest + dense < 17_000_000 and 87_338_192 / counted.nonzero >= 5.1
