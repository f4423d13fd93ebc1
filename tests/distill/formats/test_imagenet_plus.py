"""Apple's released reinforcements: read unchanged, refused where they hold anything else, converted without loss."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitlab.distill.draw import Draw, Erase, Mix
from vitlab.distill.formats import open_reinforcements
from vitlab.distill.formats.imagenet_plus import CONFIG, SUFFIX, ImagenetPlus, Pipeline, load, save
from vitlab.distill.reinforce_draw import Reinforcement, sample
from vitlab.distill.store import TargetStore
from vitlab.errors import UserError
from vitlab.methods.reinforce.convert import pack, unpack

IMAGES, CLASSES, K = 6, 1000, 10
KEYS = [f"{i}.png" for i in range(IMAGES)]
STEPS: dict[str, dict[str, Any]] = {
    "rrc": {"random_resized_crop": {"size": 224}, "random_horizontal_flip": {"p": 0.5}},
    "randaug": {"rand_augment": {"num_ops": 2, "magnitude": 9}, "random_erase": {"p": 0.25}},
    "mixing": {"mixup": {"alpha": 1.0, "p": 0.5}, "cutmix": {"alpha": 1.0, "p": 0.5}},
}
VARIANTS = ("rrc", "mixing", "randaug", "randaug_mixing")


def config(variant: str, samples: int) -> dict[str, Any]:
    steps = {"uint8": {}, "to_tensor": {}, "normalize": {"mean": [0.5] * 3, "std": [0.2] * 3}, **STEPS["rrc"]}
    for part in ("randaug", "mixing"):
        steps |= STEPS[part] if part in variant else {}
    return {"reinforce": {"num_samples": samples, "image_augmentation": steps}, "dataset": {"name": "imagenet"}}


def released(folder: Path, variant: str, samples: int = 4, seed: int = 0, k: int = K) -> dict[int, Any]:
    """A set as it is released, made of our own sampler's draws; its content by image."""
    folder.mkdir(parents=True)
    save(folder / CONFIG, config(variant, samples))
    pipeline, spec = Pipeline(config(variant, samples), ""), Reinforcement(variant)
    content = {}
    for image in range(IMAGES):
        rng = np.random.default_rng([seed, image])
        row = []
        for number in range(samples):
            drawn = sample(spec, seed, image, number, IMAGES, lambda _: (500, 375))
            prob = (rng.dirichlet([0.1] * k) * 0.99).astype(np.float32).tolist()  # in no order
            row.append(
                {"params": pipeline.params(drawn), "prob": (prob, rng.choice(CLASSES, k, replace=False).tolist())}
            )
        content[image] = (image, row)
        save(folder / f"{image}{SUFFIX}", content[image])
    return content


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_restricted_reader_gives_what_torch_gives(tmp_path: Path, variant: str) -> None:
    content = released(tmp_path / "set", variant)
    for image in range(IMAGES):
        path = tmp_path / "set" / f"{image}{SUFFIX}"
        assert load(path) == torch.load(path, weights_only=False) == content[image]
    assert load(tmp_path / "set" / CONFIG) == config(variant, 4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_and_back_is_the_same(tmp_path: Path, variant: str) -> None:
    content = released(tmp_path / "set", variant)
    packed = pack(tmp_path / "set", tmp_path / "packed", KEYS, CLASSES, "data")
    assert TargetStore.open(tmp_path / "packed").verify() == []
    official = ImagenetPlus([tmp_path / "set"], CLASSES)
    slot, index = np.repeat(np.arange(4), IMAGES), np.tile(np.arange(IMAGES), 4)
    (draws, target), (wanted, other) = packed.read(slot, index), official.read(slot, index)
    assert draws == wanted and torch.equal(target.prob, other.prob) and torch.equal(target.index, other.index)
    assert unpack(tmp_path / "packed", tmp_path / "again") == IMAGES
    for image in range(IMAGES):
        assert load(tmp_path / "again" / f"{image}{SUFFIX}") == content[image]
    assert load(tmp_path / "again" / CONFIG) == config(variant, 4)


def test_an_archive_is_packed_without_unpacking_it(tmp_path: Path) -> None:
    released(tmp_path / "reinforced_data", "randaug_mixing")
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "reinforced_data", "reinforced_data")
    pack(tmp_path / "set.tar.gz", tmp_path / "a", KEYS, CLASSES, "data")
    pack(tmp_path / "reinforced_data", tmp_path / "b", KEYS, CLASSES, "data")
    assert TargetStore.open(tmp_path / "a").fingerprint == TargetStore.open(tmp_path / "b").fingerprint
    digest = hashlib.sha256((tmp_path / "set.tar.gz").read_bytes()).hexdigest()
    assert TargetStore.open(tmp_path / "a").spec.versions == {"archive_sha256": digest}
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(tmp_path / "reinforced_data", "reinforced_data")
    with pytest.raises(UserError, match="begun with another archive"):
        pack(tmp_path / "other.tar.gz", tmp_path / "a", KEYS, CLASSES, "data")


def test_magnitudes_outside_the_table_come_back(tmp_path: Path) -> None:
    """Of a set made for another view size, say; found only in its last image, so that the packing starts anew."""
    content = released(tmp_path / "set", "randaug_mixing")
    image, samples = content[IMAGES - 1]
    for one in samples:
        mixed = one["params"][0] is not None
        ops = [(3, -38.25), (10, 5.0)]
        one["params"][3] = [ops, [(5, 9.5), (0, 0.0)]] if mixed else ops
    save(tmp_path / "set" / f"{image}{SUFFIX}", content[image])
    packed = pack(tmp_path / "set", tmp_path / "packed", KEYS, CLASSES, "data")
    assert (("TranslateX", -38.25) in packed.views.odd) and (("Posterize", 5.0) in packed.views.odd)
    assert TargetStore.open(tmp_path / "packed").verify() == []
    unpack(tmp_path / "packed", tmp_path / "again")
    for number in range(IMAGES):
        assert load(tmp_path / "again" / f"{number}{SUFFIX}") == content[number]
    assert pack(tmp_path / "set", tmp_path / "packed", KEYS, CLASSES, "data").views == packed.views


def test_an_interrupted_conversion_continues(tmp_path: Path) -> None:
    released(tmp_path / "set", "rrc")

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path / "set", tmp_path / "a", KEYS, CLASSES, "data", stop)
    for _ in range(2):  # the second time there is nothing left to do
        pack(tmp_path / "set", tmp_path / "a", KEYS, CLASSES, "data")
    pack(tmp_path / "set", tmp_path / "b", KEYS, CLASSES, "data")
    assert TargetStore.open(tmp_path / "a").fingerprint == TargetStore.open(tmp_path / "b").fingerprint


def test_the_lists_of_the_paper() -> None:
    plain = Pipeline(config("randaug", 1), "")
    params = [(64, 149, 277, 331), True, [(4, 30.45317268371582), (10, 7.0)], None]
    ops = (("TranslateY", 30.45317268371582), ("Posterize", 7.0))
    own = Draw(crop=(64, 149, 277, 331), flip=True, ops=ops, op_set="torchvision")
    assert plain.draw(params) == own and plain.params(own) == params
    mixing = Pipeline(config("mixing", 1), "")
    params = [7, [(20, 35, 180, 240), (5, 10, 200, 150)], [True, False], 0.3, [0.42, 30, 40, 150, 200]]
    other = Draw(crop=(5, 10, 200, 150), op_set="torchvision")
    mix = Mix(0.3, (30, 40, 150, 200), 224, 7, other, 0.42)
    assert mixing.draw(params) == Draw(crop=(20, 35, 180, 240), flip=True, op_set="torchvision", mix=mix)
    assert mixing.draw([None, (20, 35, 180, 240), True, None, None]).mix is None
    every = Pipeline(config("randaug_mixing", 1), "")
    ra = [[(5, -9.0), (11, 178.5)], [(0, 0.0), (0, 0.0)]]
    params = [7, [(0, 0, 9, 9), (1, 1, 8, 8)], [False, True], ra, [None, (10, 20, 100, 90)], None, [0.5, 0, 0, 9, 9]]
    drawn = every.draw(params)
    assert drawn.mix is not None and drawn.mix.draw is not None and drawn.mix.ratio is None and drawn.erase is None
    assert drawn.mix.draw.erase == Erase(10, 20, 100, 90, "black") and every.params(drawn) == params


def test_lists_and_dictionaries_give_equal_draws() -> None:
    pipeline = Pipeline(config("randaug_mixing", 1), "")
    mixed = {
        "uint8": ((), ()),
        "random_resized_crop": ((0, 0, 9, 9), (1, 1, 8, 8)),
        "random_horizontal_flip": (False, True),
        "rand_augment": ([("Rotate", -9.0), ("Solarize", 178.5)], None),
        "to_tensor": ((), ()),
        "random_erase": (None, (10, 20, 100, 90)),
        "normalize": ((), ()),
        "mixup": None,
        "cutmix": (0.5, (0, 0, 9, 9)),
        "id2": 7,
    }
    ra = [[(5, -9.0), (11, 178.5)], None]
    params = [7, [(0, 0, 9, 9), (1, 1, 8, 8)], [False, True], ra, [None, (10, 20, 100, 90)], None, [0.5, 0, 0, 9, 9]]
    assert pipeline.draw(mixed) == pipeline.draw(params)
    alone = mixed | {"mixup": None, "cutmix": None}
    assert pipeline.draw(alone) == pipeline.draw([None, (0, 0, 9, 9), False, ra[0], None, None, None])


def test_cifars_padded_crop() -> None:
    steps = {"resize": {"size": 224}, "random_crop": {"size": 224, "padding": 16}, "random_horizontal_flip": {}}
    pipeline = Pipeline({"reinforce": {"num_samples": 1, "image_augmentation": steps}}, "")
    drawn = pipeline.draw([224, (3, 31), True])
    assert drawn == Draw(shift=(16, 3, 31), flip=True, op_set="torchvision")
    assert pipeline.params(drawn) == [224, (3, 31), True]


CIFAR: dict[str, Any] = {
    "resize": {"size": [224, 224]},
    "random_crop": {"size": 224, "padding": 16},
    "random_horizontal_flip": {},
}


@pytest.mark.parametrize("stored", [(224, 224), [224, 224], 224], ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_the_resize_of_a_sample_comes_back_as_the_object_that_it_was(tmp_path: Path, stored: Any, mixed: bool) -> None:
    """The official code stores a tuple where its configuration has a list."""
    (tmp_path / "set").mkdir()
    steps = CIFAR | (STEPS["mixing"] if mixed else {})
    save(tmp_path / "set" / CONFIG, {"reinforce": {"num_samples": 2, "image_augmentation": steps}})
    for image in range(IMAGES):
        sample_of = [stored, (3, image), True]
        if mixed:
            pairs = [[stored, stored], [(3, image), (5, 1)], [True, False]]
            rows = [[None, *sample_of, None, None], [2, *pairs, 0.25, None]]
        else:
            rows = [sample_of, [stored, (0, 31), False]]
        content = [{"params": row, "prob": ([0.5, 0.25], [1, 2])} for row in rows]
        save(tmp_path / "set" / f"{image}{SUFFIX}", (image, content))
    pack(tmp_path / "set", tmp_path / "packed", KEYS, CLASSES, "data")
    unpack(tmp_path / "packed", tmp_path / "again")
    for name in [CONFIG, *(f"{image}{SUFFIX}" for image in range(IMAGES))]:
        assert repr(load(tmp_path / "again" / name)) == repr(load(tmp_path / "set" / name))
    index, other = load(tmp_path / "set" / f"5{SUFFIX}")
    other[1]["params"][int(mixed)] = [[225, 225], [225, 225]] if mixed else [225, 225]
    save(tmp_path / "set" / f"5{SUFFIX}", (index, other))
    with pytest.raises(UserError, match=r"image 5 cannot be packed: its samples hold .* of the step resize"):
        pack(tmp_path / "set", tmp_path / "other", KEYS, CLASSES, "data")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"resize": {"size": 256}} | STEPS["rrc"], "resize before random_resized_crop"),
        ({"center_crop": {"size": 224}} | STEPS["rrc"], "center_crop before random_resized_crop"),
        ({"random_resized_crop": {"size": 160}}, "views of 160 px, not 224"),
        ({"random_resized_crop": {"size": 224, "interpolation": "bicubic"}}, "resizing with bicubic, not bilinear"),
        (CIFAR | {"resize": {"size": 256}}, "views of 256 px, not 224"),
        (CIFAR | {"random_crop": {"size": 224, "padding": None}}, "not supported: int"),
        (CIFAR | {"random_crop": True}, "not supported: "),
        (STEPS["rrc"] | {"rand_augment": {"num_ops": None}}, "not supported: int"),
    ],
)
def test_steps_that_replay_would_get_wrong_are_refused(steps: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Pipeline({"reinforce": {"num_samples": 1, "image_augmentation": steps}}, "config")


def test_several_folders_are_counted_through(tmp_path: Path) -> None:
    first, second = released(tmp_path / "a", "rrc", 3), released(tmp_path / "b", "rrc", 2, seed=1)
    reader = open_reinforcements([tmp_path / "a", tmp_path / "b"], IMAGES, CLASSES)
    assert reader.samples == 5 and reader.parts == (3, 2)
    _, target = reader.read([2, 3, 4], [1, 1, 5])
    wanted = [first[1][1][2], second[1][1][0], second[5][1][1]]
    assert target.index.tolist() == [one["prob"][1] for one in wanted]
    assert target.argmax().tolist() == [one["prob"][1][int(np.argmax(one["prob"][0]))] for one in wanted]


def archive(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
    return path


class Shell:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch never",)


@pytest.mark.parametrize(
    "thing",
    [Shell(), np.zeros(3), torch.zeros(2), {1, 2}.__class__, np.datetime64("2020"), print],
    ids=["call", "array", "tensor", "class", "date", "function"],
)
def test_anything_else_is_refused(tmp_path: Path, thing: object) -> None:
    buffer = io.BytesIO()
    if isinstance(thing, torch.Tensor):
        torch.save(thing, buffer)
        (tmp_path / "x").write_bytes(buffer.getvalue())
    else:
        archive(tmp_path / "x", pickle.dumps((0, [thing]), 4))
    with pytest.raises(UserError, match="Nothing of it was run"):
        load(tmp_path / "x")


def test_both_names_of_numpys_numbers(tmp_path: Path) -> None:
    new = pickle.dumps((np.int64(-3), np.float64(0.25)), 4)
    assert b"numpy._core.multiarray" in new
    old = new.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    old = old[:3] + (int.from_bytes(old[3:11], "little") - 1).to_bytes(8, "little") + old[11:]  # the frame's length
    for content in (new, old):
        assert load(archive(tmp_path / "x", content)) == (-3, 0.25)


def test_broken_sets_are_refused(tmp_path: Path) -> None:
    released(tmp_path / "set", "rrc")
    with pytest.raises(UserError, match="6 images, the data set has 7"):
        open_reinforcements([tmp_path / "set"], 7, CLASSES)
    shutil.copy(tmp_path / "set" / f"2{SUFFIX}", tmp_path / "set" / f"3{SUFFIX}")
    with pytest.raises(UserError, match="not the reinforcement of image 3"):
        ImagenetPlus([tmp_path / "set"], CLASSES).read([0], [3])
    (tmp_path / "set" / f"4{SUFFIX}").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UserError, match="an incomplete one"):
        ImagenetPlus([tmp_path / "set"], CLASSES).read([0], [4])
    (tmp_path / "set" / f"4{SUFFIX}").unlink()
    with pytest.raises(UserError, match=f"lacks 4{SUFFIX}"):
        ImagenetPlus([tmp_path / "set"], CLASSES)
    wrong = config("rrc", 4)
    wrong["reinforce"]["image_augmentation"]["random_resize_crop"] = {}
    with pytest.raises(UserError, match="random_resize_crop"):
        Pipeline(wrong, "config")


def _set(what: str, place: int, value: Any) -> Callable[[dict[str, Any]], object]:
    """Put ``value`` into a sample's probabilities, classes or parameters."""

    def change(one: dict[str, Any]) -> None:
        part = one["params"] if what == "params" else one["prob"][what == "classes"]
        part[place] = value

    return change


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "class -1 of 1000": _set("classes", 3, -1),
    "class 1000 of 1000": _set("classes", 3, 1000),
    "a class is named twice": lambda one: _set("classes", 3, one["prob"][1][0])(one),
    "no class": _set("classes", 3, None),
    "half a class": _set("classes", 3, 0.5),
    "a probability is outside": _set("prob", 3, float("nan")),
    "a probability is outside [0": _set("prob", 3, -0.1),
    "a probability is outside [0, 1": _set("prob", 3, 1.5),
    "no probability": _set("prob", 3, None),
    "other K": lambda one: [one["prob"][0].pop(), one["prob"][1].pop()],
    "one more class": lambda one: one["prob"][1].append(999),
    "no label": lambda one: one.pop("prob"),
    "too few parameters": lambda one: one["params"].pop(),
    "there is no operation 14": _set("params", 2, [(14, 1.0), (0, 1.0)]),
    "no crop": _set("params", 0, 7),
    "None": lambda one: one.update(params=None),
}


@pytest.mark.parametrize("name", list(DAMAGED))
def test_a_damaged_sample_is_named_in_training_and_conversion(tmp_path: Path, name: str) -> None:
    content = released(tmp_path / "set", "randaug")
    DAMAGED[name](content[2][1][1])
    save(tmp_path / "set" / f"2{SUFFIX}", content[2])
    reader = ImagenetPlus([tmp_path / "set"], CLASSES)
    reader.read([0, 1], [2, 3])
    with pytest.raises(UserError) as caught:
        reader.read([0, 1], [3, 2])
    assert f"2{SUFFIX}, sample 1 is damaged" in caught.value.what
    if any(word in name for word in ("class -1", "1000", "twice", "outside", "operation")):
        assert name in caught.value.what
    with pytest.raises(UserError, match=rf"2{SUFFIX} is damaged|image 2 cannot be packed"):
        pack(tmp_path / "set", tmp_path / "packed", KEYS, CLASSES, "data")


def test_a_step_that_is_not_enabled_stores_nothing() -> None:
    plain, other = config("rrc", 2), config("rrc", 2)
    other["reinforce"]["image_augmentation"]["rand_augment"] = {"enable": False, "num_ops": 2, "magnitude": 9}
    assert Pipeline(other, "").stored == Pipeline(plain, "").stored
    assert Pipeline(other, "").views == Pipeline(plain, "").views


@pytest.mark.parametrize(
    ("variant", "k", "wanted"),
    [
        ("rrc", 10, 153.4),
        ("mixing", 10, 221.4),
        ("randaug", 10, 186.7),
        ("randaug_mixing", 10, 289.7),
        ("randaug", 5, 127.9),
    ],
)
def test_bytes_of_a_sample_are_the_official_ones(tmp_path: Path, variant: str, k: int, wanted: float) -> None:
    released(tmp_path / "set", variant, 100, k=k)
    sizes = []
    for image in range(IMAGES):
        with zipfile.ZipFile(tmp_path / "set" / f"{image}{SUFFIX}") as file:
            (inside,) = [one for one in file.infolist() if one.filename.endswith("data.pkl")]
            sizes.append(inside.file_size / 100)
    assert np.mean(sizes) == pytest.approx(wanted, rel=0.02)
