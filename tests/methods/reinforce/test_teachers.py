"""The published ensemble: four networks, one of which timm lacks, and the names that are not what they seem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from vitlab.cli.main import main
from vitlab.compose.load import load
from vitlab.config import ModelConfig
from vitlab.data.batch import Batch
from vitlab.errors import UserError
from vitlab.models.build import pretrained_source
from vitlab.training.build import make_data
from vitlab.training.teacher import make_teacher, refuse_aliases

PARAMETERS = {"8d": 88_791_336, "16d": 194_026_792, "32d": 468_530_472, "48d": 828_411_176}


@pytest.mark.parametrize("width", PARAMETERS)
def test_parameters_of_the_members(width: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(f"resnext101_32x{width}")
    assert sum(one.numel() for one in network.parameters()) == PARAMETERS[width]


def test_the_published_ensemble_is_four_networks() -> None:
    members = load(["teacher=resnext_ensemble"]).config.teacher.members
    assert [one.name.partition(".")[0].removeprefix("resnext101_32x") for one in members] == list(PARAMETERS)
    assert len({pretrained_source(one.name) for one in members}) == 4
    refuse_aliases(members)


def test_old_names_that_stand_for_one_network_are_refused() -> None:
    """Before anything is fetched: timm answers all four with the smallest, and only a warning."""
    old = [ModelConfig(name=f"ig_resnext101_32x{width}", pretrained=True) for width in ("8d", "48d")]
    with pytest.raises(UserError, match="stand for the same weights"):
        refuse_aliases(old)
    with pytest.raises(UserError, match="stand for the same weights"):
        refuse_aliases([ModelConfig(name=n, pretrained=True) for n in ("resnet18", "resnet18.a1_in1k")])
    refuse_aliases([ModelConfig(name="resnet18") for _ in range(2)])  # without weights nothing can be compared


def test_a_network_named_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = "teacher.members=[{name:resnet18,pretrained:true},{name:resnet18,pretrained:true}]"
    words = ("method=reinforce", "dataset=digits", "teacher.train=false", twice, f"output={tmp_path}")
    assert main(list(words)) == 2
    assert "names resnet18 twice" in capsys.readouterr().err


def test_each_member_has_its_size_and_normalisation(tmp_path: Path) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    shape: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t", num_classes=10).state_dict(), tmp_path / "a.safetensors")
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=48, **shape)
    torch.nn.init.normal_(vit.get_parameter("head.weight"))
    save_file(vit.state_dict(), tmp_path / "b.safetensors")
    words = [
        "method=reinforce", "dataset=digits", "hardware=cpu", "debug=smoke", "teacher.train=false",
        f"teacher.members=[{{name:resnet10t,checkpoint:{tmp_path}/a.safetensors}},{{name:vit_tiny_patch16_224,"
        f"checkpoint:{tmp_path}/b.safetensors,mean:[0.5,0.4,0.3],std:[0.2,0.3,0.25],"
        "args:{patch_size:8,embed_dim:32,depth:1,num_heads:2}}]", "teacher.sizes=[24,48]", "recipe.batch_size=16",
    ]  # fmt: skip
    config = load(words).config
    data = make_data(config, config.recipe, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    teacher = make_teacher(config, None, data)
    seen: list[torch.Tensor] = []
    for member in teacher.members:  # type: ignore[union-attr]  # there are two
        member.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    level = 0.25
    view = (torch.full((2, 3, 32, 32), level) - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[
        :, None, None
    ]
    none = torch.zeros(2, dtype=torch.int64)
    prob = teacher(Batch(view, none, none, none))
    assert isinstance(prob, torch.Tensor)
    assert [tuple(one.shape[-2:]) for one in seen] == [(24, 24), (48, 48)]
    for image, (m, s) in zip(seen, ((config.dataset.mean, config.dataset.std), (mean, std)), strict=True):
        wanted = (level - torch.tensor(m)) / torch.tensor(s)
        torch.testing.assert_close(image.mean((0, 2, 3)), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prob.sum(1), torch.ones(2))
    config.teacher.sizes = [24]
    with pytest.raises(UserError, match="does not fit 2"):
        make_teacher(config, None, data)
