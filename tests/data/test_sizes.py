"""Views that are no squares: [height, width] from the configuration to the pixels, and squares as they were."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.compose.load import load
from vitlab.config.size import hw, plain_size, same_size, sides_text, size_text
from vitlab.data.build import open_splits
from vitlab.data.dataset import EvalViews, TrainViews
from vitlab.distill.draw import GRID, Augmentation, Draw, Erase, Mix, draw, draw_mix
from vitlab.distill.teachers import OnlineTeacher
from vitlab.distill.views import CROPS, EvalView, View, mix_weight, scale_box
from vitlab.errors import UserError

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
WIDE = (24, 40)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right and green downwards, so that a pixel says where it comes from."""
    x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)
    pixels = np.stack([np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))], -1)
    return Image.fromarray(np.dstack([pixels, np.zeros((height, width))]).round().astype(np.uint8))


def test_what_a_size_is() -> None:
    assert hw(224) == (224, 224) and hw([24, 40]) == hw((24, 40)) == (24, 40)
    assert plain_size((32, 32)) == 32 and plain_size((24, 40)) == [24, 40]
    assert same_size(32, [32, 32]) and same_size([24, 40], (24, 40)) and not same_size([24, 40], [40, 24])
    assert (size_text(32), size_text([256, 448]), sides_text([32, 32])) == ("32", "256 × 448", "32 × 32")
    wrong: list[Any] = [0, [24], [24, 40, 3], [24, 0], "24", [24.0, 40.0], True, [True, 2]]
    for one in wrong:
        with pytest.raises(ValueError, match="a size is a side"):
            hw(one)


@pytest.mark.parametrize("value", ["[24,40]", "[32,32]", "32"])
def test_both_ways_of_writing_it_are_configured(value: str) -> None:
    config = load(["method=supervised", "dataset=digits", f"dataset.size={value}"]).config
    assert config.dataset.size == json.loads(value)


@pytest.mark.parametrize("value", ["0", "[24]", "[24,0]", "wide", "3.5", "null", "[1,2,3]"])
def test_what_is_no_size_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"dataset\.size.*is not a size.*\[height,width\]"):
        load(["method=supervised", "dataset=digits", f"dataset.size={value}"])
    with pytest.raises(UserError, match=r"teacher\.sizes\.1.*is not a size"):
        load(["method=tinyvit", "dataset=digits", f"teacher.sizes=[32,{value}]"])


def test_a_square_written_as_two_sides_is_the_same_square() -> None:
    """Fingerprints are in sealed stores: they must not change."""
    assert Augmentation(size=(32, 32)).fingerprint() == Augmentation(size=32).fingerprint()
    assert Augmentation(size=32).fingerprint().startswith("354ae6ac4953")
    wide = Augmentation(size=[24, 40])
    assert wide.fingerprint() == Augmentation(size=(24, 40)).fingerprint() != Augmentation(size=[40, 24]).fingerprint()
    assert Augmentation.from_dict(json.loads(json.dumps(wide.to_dict()))) == wide
    picture = gradient(50, 60)
    drawn = draw(Augmentation(32, crop_scale=(0.1, 1), flip=0.5, erase=1.0), 7, *picture.size)
    assert View(32, *PLAIN)(picture, drawn).equal(View((32, 32), *PLAIN)(picture, drawn))
    assert EvalView(32, 0.875, *PLAIN)(picture).equal(EvalView([32, 32], 0.875, *PLAIN)(picture))
    with pytest.raises(UserError, match=r"dataset\.size must be 1 or more, or \[height,width\]"):
        Augmentation(size=(24, 0))


def test_a_training_view_has_the_height_and_the_width() -> None:
    view = View(WIDE, *PLAIN)(gradient(100, 80), Draw(flip=True))
    assert view.shape == (3, *WIDE)
    assert view[0, 0, 0] > 0.95 > 0.05 > view[0, 0, -1] and view[1, 0, 0] < 0.05 < 0.95 < view[1, -1, 0]


def test_shift_and_erase_follow_both_sides() -> None:
    view = View(WIDE, *PLAIN)
    half = GRID // 2
    erased = view(Image.new("RGB", (10, 10), "white"), Draw(erase=Erase(0, half, half, half, "const")))
    assert (erased == 0).all(0).nonzero().tolist() == [[row, column] for row in range(12) for column in range(20, 40)]
    quarter = GRID // 4
    moved = view(Image.new("RGB", (10, 10), "white"), Draw(shift=(quarter, 0, 0)))  # nothing of the left upper part
    assert (moved == 1).all(0).nonzero().tolist() == [[row, column] for row in range(6, 24) for column in range(10, 40)]


def test_cutmix_boxes_lie_in_both_sides() -> None:
    """The box of a pair drawn at [H, W]: inside the view, of the view's ratio, its share of the area is the label's."""
    augmentation = Augmentation(WIDE, cutmix=1.0)
    view, boxes = View(WIDE, *PLAIN), []
    black, white = torch.zeros(3, *WIDE), torch.ones(3, *WIDE)
    for seed in range(60):
        mix = draw_mix(augmentation, seed, seed + 1000, *WIDE)
        assert mix is not None and mix.box is not None and mix.grid == WIDE
        r1, c1, r2, c2 = mix.box
        assert 0 <= r1 <= r2 <= 24 and 0 <= c1 <= c2 <= 40
        boxes.append(mix.box)
        mixed = view.mix(white, black, mix)
        assert mix_weight(mix, WIDE) == pytest.approx(mixed[0].mean().item(), abs=1e-6)
    inner = [(r2 - r1, c2 - c1) for r1, c1, r2, c2 in boxes if r1 > 0 and c1 > 0 and r2 < 24 and c2 < 40]
    assert len(inner) > 5 and all(abs(high * 40 - wide * 24) <= 2 * (40 + 24) for high, wide in inner)
    assert max(c2 for _, _, _, c2 in boxes) > 24, "columns reach beyond the height"


def test_boxes_of_a_square_grid_are_stretched() -> None:
    assert scale_box((0, 56, 112, 224), 224, WIDE) == (0, 10, 12, 40)
    assert scale_box((1, 2, 3, 4), WIDE, WIDE) == (1, 2, 3, 4)
    assert scale_box((6, 10, 12, 20), WIDE, (48, 80)) == (12, 20, 24, 40)
    assert mix_weight(Mix(0.5, (0, 0, 112, 112), 224), WIDE) == pytest.approx(0.5 * (1 - 1 / 4))


@pytest.mark.parametrize("picture", [(100, 50), (37, 91), (40, 24), (300, 301)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.5, 1.0])
def test_the_centre_crop_is_timms(picture: tuple[int, int], crop_pct: float) -> None:
    from timm.data.transforms_factory import transforms_imagenet_eval
    from torchvision.transforms.functional import pil_to_tensor

    theirs = transforms_imagenet_eval(
        img_size=WIDE, crop_pct=crop_pct, crop_mode="center", interpolation="bicubic", normalize=False
    )
    image = gradient(*picture)
    mine = pil_to_tensor(EvalView(WIDE, crop_pct, *PLAIN, crop="center").cut(image))
    wanted = theirs(image)
    assert mine.shape == (3, *WIDE) and mine.equal(wanted if wanted.dtype == torch.uint8 else pil_to_tensor(wanted))


@pytest.mark.parametrize("size", [32, WIDE, (40, 24)])
@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("picture", [(100, 50), (37, 91), (64, 64)])
def test_a_place_of_the_view_is_found_in_the_picture(size: Any, crop: str, picture: tuple[int, int]) -> None:
    """The map against the pixels: on a gradient every value says where it was, to within one pixel of the larger."""
    view = EvalView(size, 0.8, *PLAIN, "bilinear", crop)
    width, height = picture
    pixels, box = view(gradient(*picture)), view.box(*picture)
    high, wide = hw(size)
    for row in range(3, high - 3, 5):
        for column in range(3, wide - 3, 5):
            x, y = box.to_picture(column + 0.5, row + 0.5)
            assert 0 <= x <= width and 0 <= y <= height
            assert box.to_view(x, y) == pytest.approx((column + 0.5, row + 0.5))
            red, green = pixels[0, row, column].item(), pixels[1, row, column].item()
            assert x == pytest.approx(red * (width - 1) + 0.5, abs=max(1, width / wide))
            assert y == pytest.approx(green * (height - 1) + 0.5, abs=max(1, height / high))
    assert box.to_view(box.left, box.top) == (0, 0)
    assert box.to_picture(wide, high) == pytest.approx((box.right, box.bottom))
    if view.squash:
        assert (box.left, box.top, box.right, box.bottom) == (0, 0, width, height)


def test_the_view_in_words() -> None:
    assert str(EvalView(WIDE, 1.0, *PLAIN)) == "resized to 24 × 40, nothing cut, bicubic"
    wanted = "resized to cover 27 × 45, centre crop 24 × 40 (crop 0.875), bicubic"
    assert str(EvalView(WIDE, 0.875, *PLAIN)) == wanted
    assert str(EvalView(32, 0.875, *PLAIN)) == "short side 36, centre crop 32 × 32 (crop 0.875), bicubic"


def test_batches_have_the_height_and_the_width() -> None:
    config = load(["method=supervised", "dataset=digits"]).config
    source = open_splits(config.dataset, 0, 20)["train"]
    augmentation = Augmentation(WIDE, crop_scale=(0.5, 1.0), mixup=0.2, cutmix=1.0)
    batch = TrainViews(source, augmentation, View(WIDE, *PLAIN), 0, 10).__getitems__([(0, 0), (1, 0), (2, 0), (3, 0)])
    assert batch.image.shape == (4, 3, *WIDE) and batch.label.shape == (4, 10)
    torch.testing.assert_close(batch.label.sum(1), torch.ones(4))
    assert EvalViews(source, EvalView(WIDE, 1.0, *PLAIN)).__getitems__([0, 1]).image.shape == (2, 3, *WIDE)


def test_a_teacher_of_another_size_gets_its_own() -> None:
    class Shape(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[float(image.shape[2]), float(image.shape[3])]]).expand(len(image), 2).log()

    teacher = OnlineTeacher(Shape(), *PLAIN, (12, 36), *PLAIN)
    image = torch.zeros(2, 3, *WIDE)
    assert teacher.prepare(image).shape == (2, 3, 12, 36)
    assert teacher.describe()["size"] == [12, 36]
    assert OnlineTeacher(Shape(), *PLAIN, WIDE, *PLAIN).prepare(image) is image
