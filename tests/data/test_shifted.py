"""The shifted ImageNet sets in the layouts of their archives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import MakeImages
from vitlab.data.decode import Files
from vitlab.data.shifted import SETS, find_corrupted, find_set, listed_ids, wordnet_ids
from vitlab.data.sources import labels_of
from vitlab.errors import UserError
from vitlab.measure.robustness_names import SHIFTED

TENCH, GOLDFISH = wordnet_ids()[:2]


def accepted(root: Path, name: str) -> dict[str, tuple[str, ...]]:
    """Path to the ids that are right."""
    found = find_set(root, name)
    assert found is not None
    labels = labels_of(found.source).tolist()
    return {key: found.accepted[label] for key, label in zip(found.source.keys, labels, strict=True)}


def test_the_ids_are_in_the_order_of_the_heads() -> None:
    assert len(wordnet_ids()) == 1000 and sorted(wordnet_ids()) == list(wordnet_ids())
    assert (TENCH, wordnet_ids()[999]) == ("n01440764", "n15075141")
    assert set(SETS) | {"c"} == set(SHIFTED)


@pytest.mark.parametrize(
    ("name", "folder", "title", "classes"),
    [
        ("val", "val", "ImageNet-1k", wordnet_ids()),
        ("a", "imagenet-a", "ImageNet-A", listed_ids("a")),
        ("r", "imagenet-r", "ImageNet-R", listed_ids("r")),
        ("sketch", "sketch", "ImageNet-1k", wordnet_ids()),
    ],
)
def test_folders_of_wordnet_ids(
    make_images: MakeImages, name: str, folder: str, title: str, classes: tuple[str, ...]
) -> None:
    first, third = classes[0], classes[2]
    root = make_images(f"{folder}/{third}/x.JPEG", f"{folder}/{first}/y.jpg")
    (root / folder / "README.txt").write_text("as in the archive")
    assert accepted(root, name) == {f"{first}/y.jpg": (first,), f"{third}/x.JPEG": (third,)}
    found = find_set(root, name)
    assert found is not None and found.accepted == [(one,) for one in classes], "also those that lack their images"
    assert found.absent == len(classes) - 2
    (root / folder / third).rename(root / folder / "shark")
    with pytest.raises(UserError, match=rf"a folder shark, which is not named like a class of {title}"):
        find_set(root, name)


def test_the_lists_of_a_and_r_are_parts_of_imagenet(make_images: MakeImages) -> None:
    lists = {name: set(listed_ids(name)) for name in "ar"}
    assert all(len(ids) == 200 and ids < set(wordnet_ids()) for ids in lists.values())
    assert len(lists["a"] & lists["r"]) not in (0, 200) and TENCH not in lists["a"] | lists["r"]
    root = make_images(f"imagenet-a/{TENCH}/x.jpg")  # a class of ImageNet-1k, not of the set
    with pytest.raises(UserError, match=rf"a folder {TENCH}, which is not named like a class of ImageNet-A"):
        find_set(root, "a")


@pytest.mark.parametrize("name", ["v2", "v2_threshold", "v2_top"])
def test_version_two_is_numbered_and_not_sorted_as_text(make_images: MakeImages, name: str) -> None:
    folder = SETS[name][1][0]
    root = make_images(*(f"{folder}/{number}/{number}.jpeg" for number in (0, 1, 2, 10, 100, 999)))
    assert accepted(root, name) == {
        f"{number}/{number}.jpeg": (wordnet_ids()[number],) for number in (0, 1, 2, 10, 100, 999)
    }
    (root / folder / "999").rename(root / folder / "1000")
    with pytest.raises(UserError, match=r"a folder 1000; ImageNetV2 has 0 to 999"):
        find_set(root, name)


def objectnet(make_images: MakeImages) -> Path:
    """Three of its classes: one that is two of ImageNet's, one that is one, one that is none."""
    root = make_images(*(f"objectnet-1.0/images/{name}/{name}.png" for name in ("chair", "mug", "bread_knife")))
    folder = root / "objectnet-1.0/mappings"
    folder.mkdir()
    titles = {"chair": "Chair", "mug": "Mug", "bread_knife": "Bread knife", "tv": "TV"}
    (folder / "folder_to_objectnet_label.json").write_text(json.dumps(titles))
    overlap = {"Chair": "barber chair; rocking chair, rocker", "Mug": "coffee mug", "TV": "television"}
    (folder / "objectnet_to_imagenet_1k.json").write_text(json.dumps(overlap))
    lines = ["coffee mug", "kit fox, Vulpes macrotis", "rocking chair, rocker", "barber chair", "television"]
    (folder / "imagenet_to_label_2012_v2").write_text("\n".join(lines) + "\n")
    (folder / "pytorch_to_imagenet_2012_id.json").write_text(json.dumps({"423": 3, "765": 2, "504": 0, "851": 4}))
    return root


def test_objectnet_by_its_own_mappings_without_its_frame(make_images: MakeImages) -> None:
    root = objectnet(make_images)
    ids = wordnet_ids()
    assert accepted(root, "objectnet") == {
        "images/chair/chair.png": (ids[423], ids[765]),
        "images/mug/mug.png": (ids[504],),
    }
    found = find_set(root, "objectnet")
    assert found is not None and found.accepted == [(ids[423], ids[765]), (ids[504],), (ids[851],)]
    full = np.asarray(Files.__getitem__(found.source, 1)[0])
    np.testing.assert_array_equal(np.asarray(found.source[1][0]), full[2:-2, 2:-2])
    (root / "objectnet-1.0/mappings/pytorch_to_imagenet_2012_id.json").write_text('{"504": 0}')
    with pytest.raises(UserError, match=r"mappings do not place its class Chair"):
        find_set(root, "objectnet")
    (root / "objectnet-1.0/mappings/objectnet_to_imagenet_1k.json").unlink()
    with pytest.raises(UserError, match=r"mappings cannot be read: .*objectnet_to_imagenet_1k"):
        find_set(root, "objectnet")


def test_corrupted_files_with_and_without_their_families(make_images: MakeImages) -> None:
    root = make_images(
        f"imagenet-c/fog/1/{TENCH}/x.JPEG",
        f"imagenet-c/noise/shot_noise/5/{GOLDFISH}/x.JPEG",
        f"imagenet-c/extra/spatter/1/{TENCH}/x.JPEG",
    )
    found = find_corrupted(root)
    assert {key: [one.accepted[label] for label in one.source.labels] for key, one in found.items()} == {
        ("shot_noise", 5): [(GOLDFISH,)],
        ("fog", 1): [(TENCH,)],
    }
    assert find_corrupted(root / "imagenet-c").keys() == found.keys()


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert all(find_set(tmp_path, name) is None for name in SETS)
    assert find_corrupted(tmp_path) == {}
