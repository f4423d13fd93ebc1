"""Released reinforcements at the prompt: converted, verified, trained from, converted back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.cli.main import main
from vitlab.compose.load import load as compose
from vitlab.data.build import open_splits
from vitlab.data.sources import fingerprint
from vitlab.distill.draw import Draw
from vitlab.distill.formats.imagenet_plus import CONFIG, SUFFIX, Pipeline, load, save
from vitlab.distill.reinforce_draw import PROTOCOL, Reinforcement, sample
from vitlab.distill.reinforce_record import encode, record_fields
from vitlab.distill.reinforce_store import ReinforcedStore
from vitlab.distill.sparse import SparseTarget, densify
from vitlab.distill.store import TargetStore
from vitlab.distill.store_edit import merge
from vitlab.distill.store_spec import StoreSpec, keys_digest
from vitlab.distill.store_stats import statistics
from vitlab.errors import UserError

SMALL = (
    "method=reinforce",
    "dataset=digits",
    "hardware=cpu",
    "hardware.threads=1",
    "debug=smoke",
    "recipe.batch_size=16",
)
STEPS: dict[str, Any] = {
    "random_resized_crop": {"size": 224},
    "random_horizontal_flip": {"p": 0.5},
    "rand_augment": {"num_ops": 2, "magnitude": 9},
    "random_erase": {"p": 0.25},
}


MIXING = {"mixup": {"alpha": 1.0, "p": 0.5}, "cutmix": {"alpha": 1.0, "p": 0.5}}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set as it is released, for 64 digits."""
    return make(tmp_path_factory.mktemp("released"), "randaug", 5)


def make(folder: Path, variant: str, seed: int) -> Path:
    """Three samples of each digit, with probabilities of no teacher."""
    steps = STEPS | (MIXING if "mixing" in variant else {})
    how = {"reinforce": {"num_samples": 3, "image_augmentation": steps}}
    save(folder / CONFIG, how)
    config = compose(list(SMALL)).config
    source = open_splits(config.dataset, config.seed, config.debug.max_images)["train"]
    sizes = [source[i][0].size for i in range(len(source))]
    for image in range(len(source)):
        rng = np.random.default_rng([seed, image])
        samples = []
        for number in range(3):
            drawn = sample(Reinforcement(variant), seed, image, number, len(source), lambda i: sizes[i])
            prob = (rng.dirichlet([0.2] * 4) * 0.9).astype(np.float32).tolist()
            samples.append(
                {"params": Pipeline(how, "").params(drawn), "prob": (prob, rng.permutation(10)[:4].tolist())}
            )
        save(folder / f"{image}{SUFFIX}", (image, samples))
    return folder


def test_there_and_back(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, again = tmp_path / "packed", tmp_path / "again"
    assert main([*SMALL, "mode=convert", f"method.store={released}", f"method.convert_to={packed}"]) == 0
    assert "64 images, 3 samples" in capsys.readouterr().out
    assert main([*SMALL, "mode=verify", f"method.store={packed}"]) == 0
    assert "sound" in capsys.readouterr().out
    assert main([*SMALL, "mode=convert", f"method.store={packed}", f"method.convert_to={again}"]) == 0
    for path in released.iterdir():
        assert load(again / path.name) == load(path)
    assert main([*SMALL, "mode=convert", f"method.store={packed}", f"method.convert_to={again}"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_what_is_missing_is_asked_for(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "mode=convert", f"method.store={released}"]) == 2
    assert "method.convert_to=FOLDER" in capsys.readouterr().err


def test_released_files_are_trained_from_as_they_are(
    released: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = (
        "method.erm=false",
        "export=none",
        "report.figures=false",
        "evaluation.latency=false",
        f"output={tmp_path}",
    )
    assert main([*SMALL, *words, f"method.store=[{released},{released}]"]) == 0
    assert "resized with the filter bilinear" in caplog.text, "the recipe of the digits has bicubic"
    caplog.clear()
    same = ("recipe.augmentation.interpolation=bilinear", "mode=check")
    assert main([*SMALL, *words, *same, f"method.store=[{released},{released}]"]) == 0
    assert "filter" not in caplog.text
    assert len(list(tmp_path.glob("*/*/train/model.json"))) == 1


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sets of the same digits in our store."""
    folder = tmp_path_factory.mktemp("packed")
    for seed in (5, 6):
        source = make_in(folder / f"released{seed}", seed)
        words = (f"method.store={source}", f"method.convert_to={folder / str(seed)}")
        assert main([*SMALL, "mode=convert", *words]) == 0
    return [folder / "5", folder / "6"]


def make_in(folder: Path, seed: int) -> Path:
    folder.mkdir()
    return make(folder, "randaug_mixing", seed)


def content(folder: Path) -> tuple[list[Draw], SparseTarget]:
    store = ReinforcedStore(folder)
    slot, index = np.divmod(np.arange(store.samples * store.images), store.images)
    return store.read(slot, index)


def test_merged_and_taken_apart(packed: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both, part = tmp_path / "both", tmp_path / "part"
    named = f"method.store=[{packed[0]},{packed[1]}]"
    assert main([*SMALL, "mode=merge", named, f"method.convert_to={both}"]) == 0
    assert "64 images x 6 samples (randaug_mixing), K=4 of 10 classes, 77 bytes" in capsys.readouterr().out
    assert TargetStore.open(both).verify() == []
    (draws, target), (one, first), (two, second) = content(both), content(packed[0]), content(packed[1])
    assert draws == one + two and torch.equal(target.prob, torch.cat([first.prob, second.prob]))
    words = ("method.samples=2", "method.topk=3", f"method.convert_to={part}")
    assert main([*SMALL, "mode=subset", f"method.store={both}", *words]) == 0
    draws, target = content(part)
    assert draws == one[:128]
    for row in range(0, 128, 17):
        kept = sorted(range(4), key=lambda k: -first.prob[row, k])[:3]
        assert target.index[row].tolist() == [first.index[row, k] for k in sorted(kept)]
    config = load_released(part, tmp_path / "again")
    assert config["reinforce"]["num_samples"] == 2


def load_released(store: Path, into: Path) -> Any:
    """What the configuration says of a store that is converted back."""
    assert main([*SMALL, "mode=convert", f"method.store={store}", f"method.convert_to={into}"]) == 0
    return load(into / CONFIG)


def test_an_interrupted_merge_goes_on(packed: list[Path], tmp_path: Path) -> None:
    def stop(done: int, full: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(packed, tmp_path / "a", stop)
    merge(packed, tmp_path / "a")
    merge(packed, tmp_path / "b")
    assert TargetStore.open(tmp_path / "a").fingerprint == TargetStore.open(tmp_path / "b").fingerprint


def test_what_does_not_go_together(released: Path, packed: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hold the same views"):
        merge([packed[0], packed[0]], tmp_path / "a")
    assert main([*SMALL, "mode=convert", f"method.store={released}", f"method.convert_to={tmp_path / 'other'}"]) == 0
    with pytest.raises(UserError, match="do not go together"):
        merge([packed[0], tmp_path / "other"], tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_statistics(packed: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "debug.max_slots=3", "mode=stats", f"method.store={packed[0]}"]) == 0
    output = capsys.readouterr().out
    assert "64 images x 3 samples, 77 bytes" in output and "K=4 of 10 classes, as f4" in output
    config = compose(list(SMALL)).config
    labels = open_splits(config.dataset, config.seed, config.debug.max_images)["train"].labels
    assert labels is not None
    found = statistics(ReinforcedStore(packed[0]), labels)
    draws, target = content(packed[0])
    own = np.tile(labels, 3)
    mixes = [draw.mix for draw in draws]
    alone = np.array([mix is None for mix in mixes])
    best = target.argmax().numpy()
    assert found.agreement == pytest.approx(np.mean(best[alone] == own[alone]))
    other = np.array([labels[mix.partner] if mix is not None and mix.partner is not None else -1 for mix in mixes])
    assert found.agreement_mixed == pytest.approx(np.mean(((best == own) | (best == other))[~alone]))
    dense = densify(target).double()
    assert found.entropy == pytest.approx(float(-(dense * dense.log()).sum(1).mean()))
    assert found.shares["flip"] == np.mean([draw.flip for draw in draws])
    assert found.shares["unmixed"] == alone.mean() and sum(found.ops.values()) == pytest.approx(1)
    partners = np.bincount([mix.partner for mix in mixes if mix is not None and mix.partner is not None], minlength=64)
    assert found.partners == [partners.min(), int(np.median(partners)), partners.max()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mode=merge", "method.store={0}", "method.convert_to={2}"], "method.store=[A,B]"),
        (["mode=subset", "method.store={0}"], "method.convert_to=FOLDER"),
        (["mode=subset", "method.store={0}", "method.convert_to={0}"], "is the store that is read"),
        (["mode=subset", "method.store={0}", "method.convert_to={2}/s", "method.samples=9"], "method.samples=9"),
        (["mode=subset", "method.store={0}", "method.convert_to={2}/s", "method.topk=9"], "Give 1 to 4"),
        (["mode=subset", "method.store={0}", "method.convert_to={2}/s"], "needs a smaller size"),
        (["mode=verify", "method.store=[{0},{1}]"], "one store of targets"),
        (["mode=stats"], "run=FOLDER, or method.store=FOLDER"),
        (["mode=stats", "method.store={0}", "debug.max_images=63"], "another data set"),
    ],
)
def test_modes_answer(
    words: list[str], message: str, packed: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *(word.format(*packed, tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("mode", ["stats", "verify", "subset"])
def test_a_released_set_is_to_be_packed_first(mode: str, released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, f"mode={mode}", f"method.store={released}", "method.convert_to=x", "method.samples=1"]) == 2
    assert "Pack it first" in capsys.readouterr().err


def test_an_image_added_in_the_middle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Records are addressed by position: after the new image every one would speak of its neighbour."""
    photos, store = tmp_path / "photos", tmp_path / "store"
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (photos / name).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(photos / name / f"{2 * number:03}.png")
    words = ["method=reinforce", "hardware=cpu", "dataset=folder", f"dataset.root={photos}", "dataset.size=16"]
    config = compose(words).config
    source = open_splits(config.dataset, config.seed, None)["train"]
    views = Reinforcement("randaug")
    spec = StoreSpec(
        images=len(source), slots=1, k=2, classes=2, keys_sha256=keys_digest(source.keys),
        data_fingerprint=fingerprint(source), augmentation=views.to_dict(),
        augmentation_fingerprint=views.fingerprint(), teacher={"name": "nobody"}, mean=(), std=(), base_seed=0,
        prob="f4", protocol=PROTOCOL, fields=record_fields(views),
    )  # fmt: skip
    made = TargetStore.create(store, spec, list(source.keys))
    draws = [sample(views, 0, image, 0, len(source), lambda _: (16, 16)) for image in range(len(source))]
    target = SparseTarget(torch.full((len(source), 2), 0.5), torch.tensor([[0, 1]] * len(source)), 2)
    with made.writer(0) as writer:
        writer.write(np.arange(len(source)), None, target, **encode(views, draws))
    made.seal(0)
    assert main([*words, "mode=stats", f"method.store={store}"]) == 0
    Image.new("RGB", (16, 16)).save(photos / "a" / "005.png")
    (photos / "b" / "038.png").unlink()  # as many as before
    training = ("recipe=digits", "recipe.batch_size=8", "method.erm=false", "audit.before_training=false")
    model = ("model=tiny_vit_digits", "model.pretrained=false", f"output={tmp_path / 'out'}")
    capsys.readouterr()
    for requested in (("mode=stats",), (*training, *model)):
        assert main([*words, *requested, f"method.store={store}"]) == 2
        assert "another data set" in capsys.readouterr().err.replace("\n", " ")
