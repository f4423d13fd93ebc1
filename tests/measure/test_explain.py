"""Maps: Grad-CAM against the cases where it has a closed form, and networks of every family."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitlab.errors import UserError
from vitlab.measure.explain import grad_cam, upsample_maps, usual_layer
from vitlab.measure.model_randomization import randomise_cascading, rank_correlation, sanity_check
from vitlab.measure.rollout import attention_rollout, catch_attention

VIT: dict[str, Any] = {"embed_dim": 24, "num_heads": 2, "depth": 3}
SWIN: dict[str, Any] = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
TINY_VIT: dict[str, Any] = {"embed_dims": [8, 16, 16, 32], "depths": [1, 1, 2, 1], "num_heads": [1, 1, 1, 2]}

NETWORKS: dict[str, tuple[str, dict[str, Any], int, tuple[int, int], tuple[int, int] | None]] = {
    # name, arguments, image side, Grad-CAM's grid, rollout's grid
    "vit": ("vit_tiny_patch16_224", {**VIT, "img_size": 64}, 64, (4, 4), (4, 4)),
    "vit, mean": ("vit_tiny_patch16_224", {**VIT, "img_size": 64, "global_pool": "avg"}, 64, (4, 4), (4, 4)),
    "deit": ("deit_tiny_distilled_patch16_224", {**VIT, "img_size": 64}, 64, (4, 4), (4, 4)),
    "beit": ("beit_base_patch16_224", {**VIT, "img_size": 64}, 64, (4, 4), (4, 4)),
    "swin": ("swin_tiny_patch4_window7_224", {**SWIN, "img_size": 40}, 40, (5, 5), (10, 10)),
    "tiny_vit": ("tiny_vit_5m_224", {**TINY_VIT, "window_sizes": [3, 3, 2, 2]}, 64, (4, 4), (8, 8)),
    "hybrid": ("vit_tiny_r_s16_p8_224", {"img_size": 128, **VIT}, 128, (4, 4), (4, 4)),
    "cnn": ("resnet10t", {"channels": (8, 8, 16, 16)}, 64, (4, 4), None),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make(family: str) -> tuple[nn.Module, Tensor]:
    name, args, side, _, _ = NETWORKS[family]
    torch.manual_seed(4 if family == "hybrid" else 0)  # its network of seed 0 has empty maps: all speaks against
    model = timm.create_model(name, num_classes=5, **args)
    for parameter in model.parameters():  # heads start at zero in some of them
        nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
    return model.eval(), torch.randn(2, 3, side, side)


@pytest.mark.parametrize("family", NETWORKS)
def test_every_family_has_maps(family: str) -> None:
    model, image = make(family)
    _, _, _, cam_grid, rollout_grid = NETWORKS[family]
    with torch.no_grad():
        before = model(image)
    cam = grad_cam(model, image, torch.tensor([1, 2]))
    assert cam.shape == (2, *cam_grid) and bool((cam >= 0).all()) and cam.sum() > 0
    assert not torch.equal(cam, grad_cam(model, image, torch.tensor([3, 4])))
    if rollout_grid is None:
        with pytest.raises(UserError, match=r"has no attention.*methods=\[gradcam\]"):
            attention_rollout(model, image)
    else:
        flow = attention_rollout(model, image)
        assert flow.shape == (2, *rollout_grid) and bool((flow >= 0).all())
        torch.testing.assert_close(flow.sum((1, 2)), torch.ones(2))
        assert float((flow[0] - flow[1]).abs().max()) > 0
    with torch.no_grad():
        torch.testing.assert_close(model(image), before)  # nothing is left behind


@pytest.mark.parametrize("family", NETWORKS)
def test_gradcam_depends_on_the_weights_in_every_family(family: str) -> None:
    """With all weights permuted a map of sixteen places or more is another: the image alone does not make it."""
    model, image = make(family)
    first, found = sanity_check(grad_cam, model, image, torch.tensor([1, 2]), steps=2)
    assert found.blank == 0 and found.passed, found.correlation
    assert all(one.shape == first.shape and not torch.equal(one, first) for one in found.maps)


@pytest.mark.parametrize(
    ("name", "args", "side", "why"),
    [
        ("maxvit_pico_rw_256", {"embed_dim": (32, 32), "depths": (1, 1)}, 64, "attends inside windows"),
        (
            "levit_128s",
            {"embed_dim": (16,) * 3, "num_heads": (2,) * 3, "depth": (1,) * 3, "key_dim": 8},
            224,
            "between",
        ),
        ("cait_xxs24_224", {"embed_dim": 16, "num_heads": 2, "depth": 2, "img_size": 64}, 64, "between"),
        (
            "xcit_nano_12_p16_224",
            {"embed_dim": 16, "num_heads": 2, "depth": 2, "img_size": 64},
            64,
            "between the tokens",
        ),
    ],
)
def test_rollout_refuses_other_attention_and_gradcam_does_not(
    name: str, args: dict[str, Any], side: int, why: str
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **args).eval()
    image = torch.randn(1, 3, side, side)
    with pytest.raises(UserError, match=rf"Rollout: .*{type(model).__name__}.*{why}.*methods=\[gradcam\]"):
        attention_rollout(model, image)
    cam = grad_cam(model, image, torch.tensor([1]))
    assert cam.ndim == 3 and min(cam.shape[1:]) >= 4 and float(cam.max()) >= 0


def test_gradcam_of_a_linear_head_is_cam() -> None:
    """With mean pooling and a linear head, dy/dA = w / (h·w): the class activation map of Zhou et al."""
    model, image = make("cnn")
    with torch.no_grad():
        features = model.forward_features(image)  # type: ignore[operator]
        weight = model.get_classifier().weight  # type: ignore[operator]
    target = torch.tensor([0, 3])
    expected = functional.relu(torch.einsum("bc,bchw->bhw", weight[target], features) / (2 * 2))
    torch.testing.assert_close(grad_cam(model, image, target, "layer4"), expected)
    large = torch.nn.functional.interpolate(image, (128, 128))  # 4 x 4 final features: read without being named
    assert torch.equal(grad_cam(model, large, target), grad_cam(model, large, target, "layer4"))


def test_gradcam_leaves_the_network_as_it_was() -> None:
    model, image = make("tiny_vit")
    model.train()
    next(model.parameters()).requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grad_cam(model, image, torch.tensor([0, 1]))
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_can_be_named() -> None:
    model, image = make("vit")
    assert usual_layer(model, image) == "blocks.2.norm1"
    target = torch.tensor([1, 1])
    assert torch.equal(grad_cam(model, image, target), grad_cam(model, image, target, "blocks.2.norm1"))
    assert grad_cam(model, image, target, "blocks.0").shape == (2, 4, 4)
    with pytest.raises(UserError, match=r"explain\.layer=blocks\.9\.norm1.*Did you mean blocks\.\d\.norm1"):
        grad_cam(model, image, target, "blocks.9.norm1")
    with pytest.raises(UserError, match=r"layer 'head'.*no grid"):
        grad_cam(model, image, target, "head")


def test_rollout_of_two_layers_is_the_product() -> None:
    """Equation of the paper, with full matrices: the class token's row of (A2 + I)/2 · (A1 + I)/2 · (A0 + I)/2."""
    model, image = make("vit")
    one = torch.eye(17)
    product = one
    for layer in catch_attention(model, image):
        product = (layer.weight + one) / 2 @ product
    row = product[:, 0, 1:]
    torch.testing.assert_close(attention_rollout(model, image), (row / row.sum(1, keepdim=True)).unflatten(1, (4, 4)))


def test_both_ways_of_attending_give_the_same_weights() -> None:
    model, image = make("vit")
    fused = catch_attention(model, image)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]  # torch types it as a Tensor or a Module
    plain = catch_attention(model, image)
    assert len(fused) == len(plain) == 3
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a.weight, b.weight)
        torch.testing.assert_close(a.weight.sum(-1), torch.ones(2, 17))


def test_rollout_in_windows_is_the_product_over_the_whole_grid() -> None:
    """Each layer's attention as a matrix over all 100 (25) tokens, built from the definition of shifted windows."""
    model, image = make("swin")
    layers = catch_attention(model, image[:1])
    assert [layer.grid for layer in layers] == [(10, 10), (10, 10), (5, 5), (5, 5)]
    assert any(any(layer.shift) for layer in layers)
    matrices = []
    for layer in layers:
        assert layer.grid is not None
        height, width = layer.grid
        (rows, columns), (down, right) = layer.window, layer.shift
        wide = -(-width // columns)
        full = torch.zeros(height * width, height * width)
        for a in range(height * width):
            for b in range(height * width):
                # where the two tokens stand after the shift, and in which window
                (ya, xa), (yb, xb) = (((t // width - down) % height, (t % width - right) % width) for t in (a, b))
                if (ya // rows, xa // columns) == (yb // rows, xb // columns):
                    window = (ya // rows) * wide + xa // columns
                    inside_a, inside_b = ((y % rows) * columns + x % columns for y, x in ((ya, xa), (yb, xb)))
                    full[a, b] = layer.weight[window, inside_a, inside_b]
        matrices.append((full + torch.eye(height * width)) / 2)
    merge = torch.zeros(25, 100)
    for token in range(100):
        merge[(token // 10 // 2) * 5 + token % 10 // 2, token] = 1 / 4
    row = torch.full((1, 25), 1 / 25) @ matrices[3] @ matrices[2] @ merge @ matrices[1] @ matrices[0]
    expected = (row / row.sum()).reshape(1, 10, 10)
    torch.testing.assert_close(attention_rollout(model, image[:1]), expected)


def test_attention_of_another_form_is_refused() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_siglip_224", img_size=32, num_classes=3, **VIT)
    with pytest.raises(UserError, match=r"an attention of VisionTransformer is not between the tokens .*1 × 2 × 1 × 4"):
        attention_rollout(model, torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("family", "layer", "grid"), [("cnn", "layer3", (4, 4)), ("tiny_vit", "stages.2", (4, 4)), ("swin", None, (5, 5))]
)
def test_small_images_are_read_where_there_is_a_grid(family: str, layer: str | None, grid: tuple[int, int]) -> None:
    """The last features are 2 x 2 in the first two."""
    model, image = make(family)
    name = usual_layer(model, image)
    assert name is not None and name.startswith(layer) if layer else name is None
    assert grad_cam(model, image, torch.tensor([0, 1])).shape == (2, *grid)


def test_maps_are_stretched() -> None:
    maps = torch.stack([torch.arange(4.0).reshape(2, 2) + 7, torch.zeros(2, 2), torch.full((2, 2), 3.0)])
    big = upsample_maps(maps, 8, 6)
    assert big.shape == (3, 8, 6) and big[0].max() == 1 and big[0].min() == 0 and not big[1:].any()


def test_rank_correlation_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(0)
    a, b = torch.randn(9, 11).round(decimals=1).numpy(), torch.randn(9, 11).round(decimals=1).numpy()
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a.ravel(), b.ravel()).statistic)
    assert rank_correlation(a, a) == pytest.approx(1) and rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(a, a * 0) == 0
    with pytest.raises(ValueError, match="99 and 9 values"):
        rank_correlation(a, b[0, :9])


def test_randomising_goes_from_the_head_down_and_keeps_the_distribution() -> None:
    model, _ = make("vit")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    changed: set[str] = set()
    reached = []
    for name, random in randomise_cascading(model, steps=4):
        reached.append(name)
        now = {key for key, value in random.state_dict().items() if not torch.equal(value, state[key])}
        assert now > changed
        changed = now
        for key, value in random.state_dict().items():
            torch.testing.assert_close(value.flatten().sort().values, state[key].flatten().sort().values)
    assert len(reached) == 4 and reached[-1] == "cls_token"
    assert {"head.weight", "patch_embed.proj.weight"} <= changed
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_map_of_the_image_alone_fails_the_sanity_check() -> None:
    model, image = make("tiny_vit")
    target = torch.tensor([0, 1])
    first, edges = sanity_check(lambda _model, image, _target: image.abs().mean(1), model, image, target)
    assert edges.correlation == pytest.approx([1.0] * len(edges.correlation)) and not edges.passed
    torch.testing.assert_close(first, image.abs().mean(1))
    _, nothing = sanity_check(lambda _m, image, _t: image[:, 0, :2, :2] * 0, model, image, target)
    assert nothing.blank == 2 and not nothing.passed
    first, cam = sanity_check(grad_cam, model, image, target, steps=3)
    assert torch.equal(first, grad_cam(model, image, target))
    assert len(cam.parts) == len(cam.maps) == 3 and cam.maps[0].shape == first.shape
    assert cam.correlation[-1] < 1
