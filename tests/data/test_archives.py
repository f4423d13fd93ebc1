"""Pictures read out of class archives are those of the unpacked folders, in any process, and nothing is unpacked."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import MakeImages, picture
from vitlab.cli.main import main
from vitlab.compose.load import load
from vitlab.config import DatasetConfig
from vitlab.data import archives
from vitlab.data.archives import INDEX, ArchivedFiles
from vitlab.data.audit import audit_dataset
from vitlab.data.build import open_splits
from vitlab.data.content import content, record
from vitlab.data.dataset import EvalViews
from vitlab.data.folder import folder_sources
from vitlab.data.loader import Loader
from vitlab.data.sampler import ShardSampler
from vitlab.data.sources import fingerprint
from vitlab.distill.views import EvalView
from vitlab.errors import UserError
from vitlab.launch.plan import _detail

CLASSES = ("n00004475", "n00005787", "n00006024")


def config(root: Path, **keys: object) -> DatasetConfig:
    given = {"size": 16, "mean": [0.5] * 3, "std": [0.2] * 3, "val_fraction": 0.25} | keys
    return DatasetConfig(name="folder", root=str(root), **given)  # type: ignore[arg-type]


@pytest.fixture
def folders(make_images: MakeImages) -> Path:
    """Three classes of four pictures as folders."""
    return make_images(*(f"{name}/{name}_{i}.JPEG" for name in CLASSES for i in (1, 2, 10, 11)))


def pack(folders: Path, into: Path, inner: str = "") -> Path:
    """The classes of ``folders`` as archives."""
    into.mkdir(parents=True, exist_ok=True)
    for place in sorted(folders.iterdir()):
        with tarfile.open(into / f"{place.name}.tar", "w") as archive:
            for path in sorted(place.iterdir(), reverse=True):  # an archive is in no order
                archive.add(path, f"{inner}{place.name + '/' if inner else ''}{path.name}")
    return into


@pytest.mark.parametrize("inner", ["", "./"], ids=["pictures", "with the folder of the class"])
def test_archives_are_the_folders_that_they_would_unpack_into(folders: Path, tmp_path: Path, inner: str) -> None:
    packed = pack(folders, tmp_path / "packed", inner)
    plain, found = folder_sources(config(folders)), folder_sources(config(packed))
    for split in ("train", "val"):
        mine, its = found[split], plain[split]
        assert isinstance(mine, ArchivedFiles) and len(mine) > 0
        assert fingerprint(mine) == fingerprint(its) and content(mine) == content(its)
        for i in range(len(its)):
            assert np.array_equal(np.asarray(mine[i][0]), np.asarray(its[i][0])) and mine[i][1] == its[i][1]
    assert record(config(packed), 0) == record(config(folders), 0)
    assert sorted(path.name for path in packed.iterdir()) == [INDEX, *(f"{name}.tar" for name in CLASSES)]
    result, _ = audit_dataset(config(packed), tmp_path / "cache.sqlite")
    assert result.faults == [] and result.files == 12 and result.formats == {"JPEG": 12}
    again, _ = audit_dataset(config(packed), tmp_path / "cache.sqlite")
    assert again.bytes == result.bytes > 0


def test_every_loader_process_reads_them(folders: Path, tmp_path: Path) -> None:
    source = folder_sources(config(pack(folders, tmp_path / "packed")))["train"]
    views = EvalViews(pickle.loads(pickle.dumps(source)), EvalView(16, 1.0, (0.5,) * 3, (0.2,) * 3))
    alone, shared = (list(Loader(views, ShardSampler(len(source), 4), workers)) for workers in (0, 2))
    assert len(alone) == len(shared) == 3
    for one, other in zip(alone, shared, strict=True):
        assert one.index.tolist() == other.index.tolist() and bool((one.image == other.image).all())


def test_headers_are_read_once_and_again_where_an_archive_changed(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    packed, read = pack(folders, tmp_path / "packed"), archives.read_archive
    seen: list[str] = []

    def counted(path: Path) -> archives.Archive:
        seen.append(path.name)
        return read(path)

    monkeypatch.setattr(archives, "read_archive", counted)
    monkeypatch.setattr(archives, "MANY", 3)
    first = folder_sources(config(packed))
    assert seen == [f"{name}.tar" for name in CLASSES] and "3 class archives are read, once" in caplog.text
    folder_sources(config(packed))
    assert len(seen) == 3
    with tarfile.open(packed / f"{CLASSES[1]}.tar", "a") as archive:
        archive.add(folders / CLASSES[0] / f"{CLASSES[0]}_1.JPEG", "n_new.JPEG")
    with pytest.raises(UserError, match=rf"{CLASSES[1]}.tar has changed since its pictures were listed"):
        source = first["train"]
        [source[i] for i in range(len(source))]
    more = folder_sources(config(packed))
    assert seen[3:] == [f"{CLASSES[1]}.tar"] and sum(map(len, more.values())) == 13
    index = packed / INDEX / "archives.npz"
    index.write_bytes(index.read_bytes()[:-9] + b"elsewhere")  # a damaged index is no index
    assert [list(one.keys) for one in folder_sources(config(packed)).values()] == [
        list(one.keys) for one in more.values()
    ]
    assert len(seen) == 7


def test_a_kill_loses_no_archive_that_was_read(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, read = pack(folders, tmp_path / "packed"), archives.read_archive
    seen: list[str] = []

    def counted(path: Path) -> archives.Archive:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(path.name)
        return read(path)

    monkeypatch.setattr(archives, "read_archive", counted)
    with pytest.raises(KeyboardInterrupt):
        folder_sources(config(packed))
    monkeypatch.undo()
    left = archives._load(packed / INDEX / "archives.npz")
    assert list(left) == seen == [f"{name}.tar" for name in CLASSES[:2]]
    assert [len(one.names) for one in left.values()] == [4, 4]
    assert sum(map(len, folder_sources(config(packed)).values())) == 12


def test_without_a_place_for_the_index_the_archives_are_read_all_the_same(folders: Path, tmp_path: Path) -> None:
    packed = pack(folders, tmp_path / "packed")
    (packed / INDEX).write_text("as unwritable as a read-only folder, for root, too")
    assert len(folder_sources(config(packed))["train"]) == 9


def member(archive: tarfile.TarFile, name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
    buffer = io.BytesIO()
    picture(7).save(buffer, "PNG")
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.size = len(buffer.getvalue()) if kind == tarfile.REGTYPE else 0
    archive.addfile(info, io.BytesIO(buffer.getvalue()))


def test_what_is_no_picture_is_passed_over_and_counted(folders: Path, tmp_path: Path) -> None:
    packed = pack(folders, tmp_path / "packed")
    secret = tmp_path / "secret.png"
    picture(3).save(secret)
    with tarfile.open(packed / f"{CLASSES[0]}.tar", "a") as archive:
        member(archive, "link.png", tarfile.SYMTYPE, str(secret))
        member(archive, "hard.png", tarfile.LNKTYPE, f"{CLASSES[0]}_1.JPEG")
        member(archive, "pipe.png", tarfile.FIFOTYPE)
        member(archive, "._a.png")
        member(archive, "notes.txt")
        member(archive, f"{CLASSES[0]}_1.JPEG")  # again: tar's later file of a name replaces the earlier
    found = folder_sources(config(packed, val_fraction=0.01))
    assert sum(map(len, found.values())) == 12
    assert found["train"].ignored == {  # type: ignore[attr-defined]
        "link or special file": 3, "hidden": 1, ".txt": 1, "earlier file of the same name": 1,
    }  # fmt: skip
    every = {key: source[i][0].size for source in found.values() for i, key in enumerate(source.keys)}
    assert f"{CLASSES[0]}/{CLASSES[0]}_1.JPEG" in every and not any("link" in key for key in every)


def without_end(path: Path) -> None:
    with tarfile.open(path) as archive:
        archive.getmembers()
        end = archive.offset
    path.write_bytes(path.read_bytes()[:end])


def with_more(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x" * 512)


def compressed(path: Path) -> None:
    import gzip

    path.write_bytes(gzip.compress(path.read_bytes()))


def outside(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member(archive, "../../a.png")


def nested(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member(archive, "n00004475.tar")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_end, "cut short: the mark of its end is missing"),
        (with_more, "is damaged: what follows byte"),
        (compressed, "cannot be read as a tar file"),
        (outside, r"holds a file named '../../a.png'"),
        (nested, r"holds archives \(n00004475.tar, ...\) and no picture"),
        (a_pipe, "not a regular file"),
        (lambda path: path.write_bytes(b""), "cannot be read as a tar file"),
        (lambda path: path.write_bytes(path.read_bytes()[: 512 + 100]), "cannot be read as a tar file"),
    ],
)
def test_what_is_no_complete_archive_is_refused(
    folders: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    packed = pack(folders, tmp_path / "packed")
    damage(packed / f"{CLASSES[2]}.tar")
    with pytest.raises(UserError, match=message):
        folder_sources(config(packed))


def test_archives_beside_folders(folders: Path, tmp_path: Path) -> None:
    """A class that is not unpacked yet is read from its archive; a tar file that is no class stays out, as ever."""
    packed = pack(folders, tmp_path / "packed")
    (packed / f"{CLASSES[0]}.tar").rename(packed / "backup.tar")
    for name in CLASSES[:2]:
        (folders / name).rename(packed / name)
    found = folder_sources(config(packed))
    assert found["train"].classes == list(CLASSES) and found["train"].ignored == {".tar": 2}  # type: ignore[attr-defined]
    assert sorted({found["train"][i][0].size for i in range(len(found["train"]))}) == [(20, 16)]
    assert content(found["train"]) != ""
    splits = tmp_path / "splits"
    for split in ("train", "val"):
        splits.mkdir(exist_ok=True)
        (splits / split).mkdir()
        for name in (CLASSES[1], CLASSES[2]):
            (splits / split / f"{name}.tar").write_bytes((packed / f"{name}.tar").read_bytes())
    parts = open_splits(config(splits), 0)
    assert [len(parts[split]) for split in ("train", "val")] == [8, 8]
    assert parts["val"].keys[0] == f"val/{CLASSES[1]}/{CLASSES[1]}_1.JPEG"


def test_a_training_from_archives(folders: Path, tmp_path: Path) -> None:
    packed = pack(folders, tmp_path / "packed")
    words = ["method=supervised", "dataset=imagenet22k", f"dataset.root={packed}", "dataset.size=16", "hardware=cpu"]
    words += ["model=resnet18", "model.name=test_resnet", "recipe=digits", "recipe.batch_size=4", "debug.max_steps=2"]
    words += ["evaluation=quick", "evaluation.resamples=0", "export=none", "report.figures=false"]
    assert main([*words, "hardware.workers=1", f"output={tmp_path / 'out'}"]) == 0
    assert sorted(path.name for path in packed.iterdir()) == [INDEX, *(f"{name}.tar" for name in CLASSES)]


def test_the_plan_says_what_a_store_holds_in_vain(folders: Path) -> None:
    words = ["method=tinyvit", "dataset=imagenet22k", f"dataset.root={folders}"]
    stored = load([*words, "method.store=labels"]).config
    line = _detail("dataset", stored)
    assert "0.1 % of each class held out where there is no val split, what method.store holds of these images" in line
    assert "held out" not in _detail("dataset", load(words).config)
    assert "held out" not in _detail("dataset", load([*words, "method.store=labels", "dataset.val_fraction=0"]).config)
