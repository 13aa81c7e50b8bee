"""Which files of a folder are read: links, hidden and foreign files, several pages, and names of split folders."""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslmed_dist.data import DATASETS
from sslmed_dist.data.check import inspect
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.images.files import entries
from sslmed_dist.data.images.folder import folders_in
from sslmed_dist.data.images.walk import walk


def save(path: Path, level: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 10, 3), level, np.uint8)).save(path)
    return path


def folder(root: Path, split: str = "train") -> Dataset:
    return DATASETS["image_folder"](root=str(root), split=split, size=8)


def files(data: Dataset) -> list[str]:
    return [record["file"] for record in data.records]


def test_a_linked_folder_is_read_and_a_link_upwards_ends(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "elsewhere" / f"{i}.png", i)
        save(tmp_path / "set" / "cat" / f"{i}.png", i)
    (tmp_path / "set" / "cat" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "set" / "cat" / "round").symlink_to(tmp_path / "set" / "cat", target_is_directory=True)
    save(tmp_path / "set" / "dog" / "0.png")
    assert files(folder(tmp_path / "set")) == [
        *(f"cat/{i}.png" for i in range(3)),
        *(f"cat/more/{i}.png" for i in range(3)),
        "dog/0.png",
    ]


def test_a_set_of_linked_classes_is_known_as_a_folder_of_images(tmp_path: Path) -> None:
    """As training reads it, so ``data check`` does."""
    for name in ("cat", "dog"):
        save(tmp_path / "disk" / name / "0.png", len(name))
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / name).symlink_to(tmp_path / "disk" / name, target_is_directory=True)
    lines, _ = inspect(tmp_path / "set")
    assert "layout: image folder" in lines and len(files(folder(tmp_path / "set"))) == 2
    save(tmp_path / "hidden" / ".thumbs" / "0.png")
    with pytest.raises(ValueError, match="not a layout that can be read"):
        inspect(tmp_path / "hidden")


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("set/a/loop", "set"),
        ("set/a/deep/loop", "set/a"),
        ("set/a/loop", ""),  # above the set
        ("set/loop", "set"),  # in place of a class
        ("set/a/other/loop", "set"),  # seen through another link
        ("set/b/hidden/../loop", "set"),
    ],
)
@pytest.mark.parametrize("below", ["", "train/"])
def test_a_link_to_a_folder_above_it_is_left_aside(link: str, target: str, below: str, tmp_path: Path) -> None:
    """Its images would be read again under another class, and perhaps in another split."""
    for number, name in enumerate(("set/a/1.png", "set/a/deep/2.png", "set/b/hidden/3.png", "else/4.png")):
        save(tmp_path / name.replace("set/", f"set/{below}"), number)
    place = tmp_path / f"set/{below}"
    (place / "a" / "other").symlink_to(tmp_path / "else")
    (tmp_path / link.replace("set/", f"set/{below}")).symlink_to(tmp_path / target.replace("set/", f"set/{below}"))
    data = folder(tmp_path / "set", "all")
    assert data.classes == ("a", "b") and sorted(Path(name).stem for name in files(data)) == ["1", "2", "3", "4"]
    assert data.notices == ("left aside: 1 links to a folder above them",)
    lines, problems = inspect(tmp_path / "set")
    assert data.notices[0] in lines and not any("repeated" in problem for problem in problems)


def test_a_set_that_is_reached_through_a_link_in_itself_is_read(tmp_path: Path) -> None:
    save(tmp_path / "set" / "a" / "1.png")
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path / "set")
    data = folder(tmp_path / "set" / "a" / "up")
    assert files(data) == ["a/1.png"] and data.notices == ("left aside: 1 links to a folder above them",)


def test_a_folder_of_two_links_is_read_once_and_the_other_is_counted(tmp_path: Path) -> None:
    save(tmp_path / "else" / "1.png")
    for name in ("x", "y"):
        (tmp_path / "set" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "a" / name).symlink_to(tmp_path / "else")
    data = folder(tmp_path / "set")
    assert len(data) == 1 and data.notices == ("left aside: 1 folders that were read already, by another link",)


def test_a_split_that_is_a_link_to_a_folder_above_it_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "set" / "train" / "a" / "1.png")
    (tmp_path / "set" / "test").symlink_to(tmp_path / "set")
    with pytest.raises(ValueError, match="set/test: a link to a folder above it, which is no split of it; remove"):
        folder(tmp_path / "set")


def test_a_link_to_itself_leads_nowhere(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png")
    for place in (tmp_path / "a" / "x", tmp_path / "x"):
        place.symlink_to(place)
    assert folder(tmp_path).notices == ("left aside: 2 links that lead nowhere",)
    assert folders_in(tmp_path) == ["a"] and entries(tmp_path / "a") == {"1.png"}


def test_what_is_left_aside_is_counted_and_is_the_same_for_a_check(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        save(tmp_path / kind / "1.png", ord(kind))
    for name in ("a/.hidden.png", "a/.ipynb_checkpoints/1.png", "a/__MACOSX/1.png", "b/@eaDir/1.png"):
        save(tmp_path / name)
    for name in ("a/notes.txt", "b/scan.webp", "b/raw", "README.md"):
        (tmp_path / name).write_bytes(b"x")
    pages = [Image.new("L", (8, 8), level) for level in (1, 2, 3)]
    pages[0].save(tmp_path / "b" / "stack.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "b" / "single.tif")
    data = folder(tmp_path)
    assert files(data) == ["a/1.png", "b/1.png", "b/single.tif"]
    expected = (
        "left aside: 1 .md files, 1 .txt files, 1 .webp files, 1 TIFF files of several pages, "
        "4 hidden files and folders, 1 without suffix files"
    )
    assert data.notices == (expected,)
    lines, _ = inspect(tmp_path)
    assert expected in lines


def test_nothing_left_aside_says_nothing(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png")
    assert folder(tmp_path).notices == () and walk(tmp_path).aside == Counter()


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Test", "Val"),
        ("training", "testing", "validation"),
        ("TRAIN", "test", "valid"),
        ("train", "Testing", "Valid"),
    ],
)
def test_split_folders_by_their_usual_names(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for name, count in zip(names, (3, 2, 1), strict=True):
        for i in range(count):
            save(tmp_path / name / "ab"[i % 2] / f"{i}.png", i)
    for split, name, ids in (("train", names[0], [0, 1, 2]), ("val", names[2], [3]), ("test", names[1], [4, 5])):
        data = folder(tmp_path, split)
        assert data.classes == ("a", "b") and data.ids.tolist() == ids
        assert all(file.startswith(f"{name}/") for file in files(data))


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "Validation"):
        save(tmp_path / name / "a" / "1.png")
    with pytest.raises(ValueError, match="the folders Validation and val both mean the split val; keep one"):
        folder(tmp_path)


def test_images_beside_the_split_folders_are_said(tmp_path: Path) -> None:
    for level, name in enumerate(("train/a/1.png", "test/a/1.png", "spare/a/1.png", "spare/2.png", "loose.png")):
        save(tmp_path / name, level)
    assert folder(tmp_path).notices == ("left aside: 3 images outside of the folders train, test",)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ("training_set/a", "test_set/a"),
            "the folders test_set, training_set look like splits, .*; call them train, test",
        ),
        (("train2017/a", "val2017/a", "c/a"), "the folders train2017, val2017 look like splits"),
        (("images-Train/a", "images (Test)/a"), r"the folders images \(Test\), images-Train look like splits"),
        (
            ("xray/train/a", "xray/test/a"),
            "the folder xray would be read as a class, and holds folders of train and test",
        ),
        (("a/Training", "a/valid", "b/x"), "the folder a would be read as a class, and holds folders of train and val"),
    ],
)
def test_folders_of_splits_are_not_read_as_classes(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    for name in names:
        save(tmp_path / "set" / name / "1.png")
    with pytest.raises(ValueError, match=f"set: {said}"):
        folder(tmp_path / "set", "all")
    assert any(re.search(said, problem) for problem in inspect(tmp_path / "set")[1])


@pytest.mark.parametrize(
    "names", [("train/1.png",), ("train_station/1.png", "bus/1.png"), ("vehicle/train/1.png", "b/1.png")]
)
def test_a_class_may_be_called_train(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        save(tmp_path / name)
    assert len(folder(tmp_path)) == len(names)


def test_a_split_that_was_given_as_the_set_points_at_the_set(tmp_path: Path) -> None:
    for name in ("set/Train/a/1.png", "set/test/a/1.png", "train/a/1.png"):
        save(tmp_path / name)
    with pytest.raises(ValueError, match=r"no split 'test'; .*; the folder above has Train and test: .*/set$"):
        folder(tmp_path / "set" / "Train", "test")
    with pytest.raises(
        ValueError, match=r"no split 'test'; allowed: train, all; data\.test_fraction=0\.2 "
    ):  # nothing above it
        folder(tmp_path / "train", "test")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "closed").mkdir(mode=0)
    with pytest.raises(ValueError, match="closed: cannot be listed: Permission denied"):
        folder(tmp_path)


def test_a_name_that_is_no_text_is_read(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", 5)
    strange = os.fsencode(tmp_path / "a") + b"/\xff\xfe.png"
    os.rename(os.fsencode(tmp_path / "a" / "1.png"), strange)
    data = folder(tmp_path)
    batch = data.fetch(torch.tensor([0]), seed=0, epoch=0, draw=torch.tensor([0]))
    assert len(data) == 1 and int(batch["images"].max()) == 5


def test_links_that_lead_nowhere_are_counted_a_whole_class_included(tmp_path: Path) -> None:
    for name in ("a/0.png", "b/1.png"):
        path = tmp_path / name
        path.parent.mkdir()
        Image.new("L", (16, 16), ord(name[0])).save(path)
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "unmounted" / "x.png")
    (tmp_path / "c").symlink_to(tmp_path / "unmounted")
    dataset = DATASETS["image_folder"](tmp_path, "all", size=16)
    assert len(dataset) == 2 and dataset.notices == ("left aside: 2 links that lead nowhere",)


def test_a_hidden_folder_of_images_is_named(tmp_path: Path) -> None:
    """It may have been meant as a class; one without images is a program's own."""
    for name in ("set/a/1.png", "set/.normal/1.png", "set/.normal/deep/2.png", "set/thumbs/1.png"):
        save(tmp_path / name)
    (tmp_path / "set" / ".git").mkdir()
    expected = (
        "left aside: 1 hidden files and folders, 2 images in the hidden folder .normal, which is no class, "
        "1 images in the hidden folder thumbs, which is no class"
    )
    data = folder(tmp_path / "set")
    assert files(data) == ["a/1.png"] and expected in inspect(tmp_path / "set")[0]
    assert data.notices == (expected,)
