"""Copies of a picture across splits: found by their bytes, said, dropped or refused; hashes are kept without names."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslmed_dist import registry
from sslmed_dist.data import DATASETS
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.images import copies
from sslmed_dist.data.phantom import PHANTOMS


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six training images; the second and the fifth are copies of test images under other names."""
    random = np.random.default_rng(0)
    root = tmp_path / "set"
    for name in ("train/a/0", "train/a/1", "train/a/2", "train/b/3", "train/b/4", "train/b/5", "test/a/6", "test/b/7"):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    shutil.copy(root / "test/a/6.png", root / "train/a/1.png")
    shutil.copy(root / "test/b/7.png", root / "train/b/4.png")
    return root


def folder(root: Path, split: str = "train", **arguments: object) -> Dataset:
    return DATASETS["image_folder"](root=str(root), split=split, size=8, **arguments)


def test_copies_are_said_and_kept(root: Path) -> None:
    for choice in ({}, {"duplicates": "keep"}):
        data = folder(root, **choice)
        assert len(data) == 6
        assert data.notices == (
            "copies across splits: 2 training images are copies, byte for byte, of images in val or test; "
            "they are trained on (data.duplicates: drop leaves them out)",
        )


def test_dropped_copies_move_no_other_sample(root: Path) -> None:
    data = folder(root, duplicates="drop")
    assert data.ids.tolist() == [0, 2, 3, 5] and data.labels.tolist() == [0, 0, 1, 1]
    assert "they were dropped" in data.notices[0]
    assert folder(root, "test", duplicates="drop").ids.tolist() == [6, 7]


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_refused_copies_name_the_first(root: Path, split: str) -> None:
    with pytest.raises(ValueError, match=r"2 training images are copies.*\(first train/a/1.png\); allowed: data.dupl"):
        folder(root, split, duplicates="refuse")


def test_a_set_without_copies_says_nothing(root: Path) -> None:
    for name in ("train/a/1.png", "train/b/4.png"):
        (root / name).unlink()
    assert folder(root).notices == () and folder(root, duplicates="refuse").notices == ()


def test_hashes_are_kept_by_size_and_time_and_without_names(
    root: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(root)
    file = next(own_cache.rglob("*.json"))
    assert "png" not in file.read_text() and str(root) not in str(file) and len(json.loads(file.read_text())) >= 4
    read: list[Path] = []
    hash_of = copies.hash_of
    monkeypatch.setattr(copies, "hash_of", lambda path: read.append(path) or hash_of(path))
    folder(root)
    assert read == []
    changed = root / "train/a/1.png"
    content = bytearray(changed.read_bytes())
    content[-20] ^= 1
    changed.write_bytes(bytes(content))
    os.utime(changed, ns=(1, 1))
    assert "1 training image is a copy" in folder(root).notices[0] and read == [changed]


def test_a_cache_that_cannot_be_written_or_read_changes_nothing(
    root: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.write_text("a file where the folder should be")
    assert "2 training images" in folder(root).notices[0]
    own_cache.unlink()
    folder(root)
    next(own_cache.rglob("*.json")).write_text("torn")
    assert "2 training images" in folder(root).notices[0]


def test_very_much_is_read_only_when_asked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "MOST_UNASKED", 10)
    assert folder(root).notices[0].startswith("copies across splits: not looked for (0 GiB to read")
    assert "2 training images" in folder(root, duplicates="keep").notices[0]


def test_images_under_two_labels_are_said_of_what_is_trained_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train/a/1.png", "train/b/4.png"):
        (root / name).unlink()
    shutil.copy(root / "train/a/0.png", root / "train/b/new.png")
    line = "2 images are copies, byte for byte, of images of another class; sslmed data check names copies"
    assert folder(root).notices == folder(root, "all").notices == (line,) and folder(root, "test").notices == ()
    monkeypatch.setattr(copies, "MOST_UNASKED", 10)
    assert "images of several classes: not looked for" in folder(root).notices[-1]


def test_images_without_labels_lie_under_none(root: Path) -> None:
    shutil.copytree(root / "train" / "a", root.with_name("plain"))
    shutil.copy(root / "train/a/0.png", root.with_name("plain") / "again.png")
    assert folder(root.with_name("plain"), "all").notices == ()


@pytest.mark.parametrize(
    "name", ["image_folder", "mura", "imagenet", "tiny_imagenet", "flowers17", "chaoyang", "isic2016", "mhist"]
)
def test_every_set_of_files_takes_the_key_that_its_notice_names(name: str) -> None:
    registry.check(DATASETS, {"name": name, "root": ".", "duplicates": "drop"}, "data", ("split",))
    with pytest.raises(
        ValueError, match=r"data\.duplicates: expected one of 'keep', 'drop', 'refuse' or null, got 'x'"
    ):
        registry.check(DATASETS, {"name": name, "root": ".", "duplicates": "x"}, "data", ("split",))


@pytest.mark.parametrize("name", ["chaoyang", "mhist"])
def test_a_listed_set_drops_copies(tmp_path: Path, name: str) -> None:
    root = PHANTOMS[name](tmp_path / name)
    train, test = (DATASETS[name](root=str(root), split=split, size=8) for split in ("train", "test"))
    shutil.copy(test.listing.root / test.files[0], train.listing.root / train.files[3])
    dropped = DATASETS[name](root=str(root), size=8, duplicates="drop")
    assert dropped.files == train.files[:3] + train.files[4:] and "they were dropped" in dropped.notices[0]
