"""The authors' teacher file, against a CLIP tower put together from torch's own layers."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from vitlab.config import ModelConfig
from vitlab.measure.cost import count_params
from vitlab.models.build import build_model

WIDTH, HEADS, DEPTH, EMBEDDING, CLASSES, PATCH, SIZE = 64, 2, 3, 24, 70, 8, 32
NAMES = {
    "self_attn.in_proj_weight": "attn.in_proj_weight", "self_attn.in_proj_bias": "attn.in_proj_bias",
    "self_attn.out_proj.weight": "attn.out_proj.weight", "self_attn.out_proj.bias": "attn.out_proj.bias",
    "linear1.weight": "mlp.c_fc.weight", "linear1.bias": "mlp.c_fc.bias",
    "linear2.weight": "mlp.c_proj.weight", "linear2.bias": "mlp.c_proj.bias",
    "norm1.weight": "ln_1.weight", "norm1.bias": "ln_1.bias", "norm2.weight": "ln_2.weight", "norm2.bias": "ln_2.bias",
}  # fmt: skip
"""torch's names within a block to CLIP's."""


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class Tower(nn.Module):
    """Patches, class token, positions, norm, blocks, norm of the class token, projection, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.token = nn.Parameter(torch.randn(WIDTH))
        self.positions = nn.Parameter(torch.randn((SIZE // PATCH) ** 2 + 1, WIDTH))
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation=quick_gelu, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.projection = nn.Parameter(torch.randn(WIDTH, EMBEDDING) / 8)
        self.classifier = nn.Linear(EMBEDDING, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, -1), x], 1) + self.positions
        x = self.blocks(self.before(x))
        out: Tensor = self.classifier(self.after(x[:, 0]) @ self.projection)
        return out

    def file(self) -> dict[str, Tensor]:
        """The state under the names of the authors' file."""
        state = {
            "visual.conv1.weight": self.patches.weight,
            "visual.class_embedding": self.token,
            "visual.positional_embedding": self.positions,
            "visual.proj": self.projection,
            "head.weight": self.classifier.weight,
            "head.bias": self.classifier.bias,
        }
        for name, norm in (("pre", self.before), ("post", self.after)):
            state |= {f"visual.ln_{name}.weight": norm.weight, f"visual.ln_{name}.bias": norm.bias}
        for number, block in enumerate(self.blocks.layers):
            own = block.state_dict()
            state |= {f"visual.transformer.resblocks.{number}.{new}": own[old] for old, new in NAMES.items()}
        return {name: value.detach().clone() for name, value in state.items()}


def test_the_file_gives_the_towers_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = Tower().eval()
    for parameter in tower.parameters():  # norms and biases begin at 1 and 0: let every tensor count
        nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.2)
    path = tmp_path / "clip_vit_large_patch14_22k.pth"
    torch.save({"model": tower.file()}, path)
    args = {
        "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "img_size": SIZE,
    }  # fmt: skip
    cfg = ModelConfig(name="vit_large_patch14_clip_quickgelu_224", args=args, checkpoint=str(path))
    network = build_model(cfg, CLASSES, SIZE).eval()
    image = torch.randn(4, 3, SIZE, SIZE)
    with torch.no_grad():
        wanted, found = tower(image), network(image)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_published_teacher_has_the_published_size() -> None:
    """Section 6.3: 320,761,937 parameters; folded, the projection and the classifier become one layer."""
    network = timm.create_model("vit_large_patch14_clip_quickgelu_224", num_classes=21_841, device="meta")
    two, one = 768 * (1024 + 21_841) + 21_841, 1024 * 21_841 + 21_841
    assert count_params(network) - one + two == 320_761_937
