"""Paths and lines of files that someone else wrote: below the folder or refused, once or refused, lines as counted."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslmed_dist.data import DATASETS, SUBSETS
from sslmed_dist.data.check import inspect
from sslmed_dist.data.exams.exam_set import read_sites
from sslmed_dist.data.exams.mrnet import read_table as read_knee_labels
from sslmed_dist.data.images.medical_files import (
    ISIC,
    read_chaoyang,
    read_isic2016,
    read_mhist,
    read_mura,
    read_studies,
)
from sslmed_dist.data.images.wordnet import read_imagenet, read_tiny_imagenet
from sslmed_dist.data.listed_paths import Below, plain_path
from sslmed_dist.data.pack import pack
from sslmed_dist.data.text_files import read_json, read_lines, read_table

OUTSIDE = [
    "../secret/x.png",
    "a/../../x.png",
    "/etc/x.png",
    "C:/x.png",
    "..\\x.png",
    "a\0b.png",
    "a\x1b[2J.png",
    "link/x.png",
]
SHOWN = "the path .* (goes up|is absolute|has a backslash|has a control character|is a link out of)"
Write = Callable[[Path, str], None]


@pytest.mark.parametrize("name", [*OUTSIDE, "", ".", "linked.png", "a/" + "ä" * 128, "\ud800.png"])
def test_paths_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "x.png").touch()
    root = tmp_path / "set"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "linked.png").symlink_to(tmp_path / "secret" / "x.png")
    with pytest.raises(ValueError, match="^list: line 7: the path .*allowed: paths below") as caught:
        Below(root)(name, "list: line 7")
    assert "\x1b" not in str(caught.value) and "\0" not in str(caught.value)


def test_paths_below_the_folder_come_in_their_shortest_form(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    root = tmp_path / "alias"  # the root itself may be a link
    (root / "inner").symlink_to(root / "deep")
    below = Below(root)
    assert [below(name, "") for name in ("./a//b c.png", "..a/b..png", "inner/x.png", "ä.png")] == [
        "a/b c.png",
        "..a/b..png",
        "inner/x.png",
        "ä.png",
    ]
    assert plain_path("a/./b", "") == "a/b"


def write_chaoyang(root: Path, name: str) -> None:
    for split in ("train", "test"):
        (root / f"{split}.json").write_text(json.dumps([{"name": name, "label": 0}]))


def write_mhist(root: Path, name: str) -> None:
    heading = "Image Name,Majority Vote Label,Number,Partition"
    (root / "annotations.csv").write_text(f"{heading}\n../{name},HP,7,train\n")


def write_isic(root: Path, name: str) -> None:
    for part in ("Training", "Test"):
        (root / f"{ISIC}_{part}_GroundTruth.csv").write_text(f"../{name},benign\n")


def write_mura(root: Path, name: str) -> None:
    for split in ("train", "valid"):
        (root / f"{split}_labeled_studies.csv").write_text(f"MURA-v1.1/{split}/XR_X/patient1/study1_positive/,1\n")
        path = f"{split}/XR_X/patient1/study1_positive/../../{name}"
        (root / f"{split}_image_paths.csv").write_text(f"MURA-v1.1/{path}\n")


def write_tiny(root: Path, name: str) -> None:
    (root / "wnids.txt").write_text("n00000001\n")
    folder = root / "train" / "n00000001" / "images"
    folder.mkdir(parents=True)
    (folder / "a.JPEG").touch()
    (root / "val").mkdir()
    (root / "val" / "val_annotations.txt").write_text(f"../../{name}\tn00000001\t0\t0\n")


def write_imagenet(root: Path, name: str) -> None:
    (root / "train" / "n00000001").mkdir(parents=True)
    (root / "train" / "n00000001" / "a.JPEG").touch()
    (root / "val" / ".cache").mkdir(parents=True)  # a hidden folder does not make val one of class folders
    (root / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n../{name},n00000001 1 2 3 4\n")


READERS: list[tuple[Callable[[Path], object], Write]] = [
    (read_chaoyang, write_chaoyang),
    (read_mhist, write_mhist),
    (read_isic2016, write_isic),
    (read_mura, write_mura),
    (read_tiny_imagenet, write_tiny),
    (read_imagenet, write_imagenet),
]


@pytest.mark.parametrize(("read", "write"), READERS)
@pytest.mark.parametrize("name", OUTSIDE[:1] + OUTSIDE[4:7])
def test_every_reader_of_a_listing_refuses_them(
    tmp_path: Path, read: Callable[[Path], object], write: Write, name: str
):
    write(tmp_path, name)
    with pytest.raises(ValueError, match=SHOWN) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_a_subset_list_and_a_class_list_may_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n\n../3/a.png 1\n")
    zero = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"list.txt:3: the path '../3/a.png' goes up"):
        SUBSETS["listed"](zero, zero, zero, seed=0, names=["3/a.png"], file=str(tmp_path / "list.txt"))
    write_tiny(tmp_path, "x")
    (tmp_path / "wnids.txt").write_text("../../../x\n")
    with pytest.raises(ValueError, match=r"wnids.txt: line 1 is '../../../x'; expected a WNID"):
        read_tiny_imagenet(tmp_path)


def test_an_exact_path_is_meant_before_a_looser_one(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\n")
    zero = torch.zeros(2, dtype=torch.int64)
    names, file = ["in/a.png", "a.png"], str(tmp_path / "list.txt")
    assert SUBSETS["listed"](zero, zero, torch.arange(2), seed=0, names=names, file=file).tolist() == [1]


@pytest.fixture(scope="module")
def small_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of four images in two shards; one name is no UTF-8 and one has 255 bytes."""
    source = tmp_path_factory.mktemp("source")
    names = [b"a.png", b"\xff\xfe.png", b"b" * 251 + b".png", b"c.png"]
    for number, name in enumerate(names):
        Image.fromarray(np.full((20, 20), 10 * number, np.uint8)).save(source / "x.png")
        os.rename(source / "x.png", os.fsencode(source) + b"/" + name)
    leaf = {"name": "image_folder", "root": str(source), "channels": 1}
    return pack(leaf, tmp_path_factory.mktemp("pack"), form="raw", short=16, rows=2)


def test_names_of_any_bytes_are_read_checked_and_packed(small_pack: Path) -> None:
    told = json.loads((small_pack / "pack.json").read_text())["source"]["root"]
    source = str(small_pack.parent / Path(told).name)
    assert told.startswith("\N{HORIZONTAL ELLIPSIS}/source"), "where the images lie is nobody's business"
    folder = DATASETS["image_folder"](source, "all", size=16, channels=1, workers=0)
    assert (
        len(folder) == 4 and folder.fetch(torch.arange(4), seed=0, epoch=0, draw=torch.zeros(4))["images"].max() == 30
    )
    lines, problems = inspect(source)
    assert "all: 4 images without labels" in lines
    assert problems == [f"all: 4 constant images: a.png, {'b' * 251}.png, c.png, \\udcff\\udcfe.png"]
    dataset = DATASETS["packed"](str(small_pack), "all")
    files = [os.fsencode(record["file"]) for record in dataset.records]
    assert files == [b"a.png", b"b" * 251 + b".png", b"c.png", b"\xff\xfe.png"]
    assert dataset.fetch(torch.arange(4), seed=0, epoch=0, draw=torch.zeros(4))["images"][:, 0, 0, 0].tolist() == [
        *(0, 20, 30, 10)
    ]


CONTRADICTIONS = {
    "shard": (
        lambda s: s["shards"][0].update(shard="../pack/shard-00000"),
        "shard: got .*expected a name like shard-000",
    ),
    "classes": (lambda s: s.update(classes=7), "pack.json: classes: expected list, got 7"),
    "labels": (lambda s: s.update(classes=[]), None),
    "images": (lambda s: s.update(images=5), "4 images in the shards, 5 in pack.json"),
    "count": (
        lambda s: (s["shards"][1].update(images=3), s.update(images=5)),
        "shard-00001.npz: 2 images, but pack.json says 3",
    ),
    "short": (lambda s: s.update(short=32), "raw images that are not of 1024 bytes each"),
    "channels": (lambda s: s.update(channels=True), "channels: expected str or int, got True"),
    "format": (lambda s: s.update(format="gif"), "format: got 'gif'; allowed: "),
    "twice": (lambda s: s.update(shards=[s["shards"][0], s["shards"][0]]), "an id stands in the pack twice"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_packs_that_contradict_themselves_are_refused(small_pack: Path, tmp_path: Path, name: str) -> None:
    change, message = CONTRADICTIONS[name]
    summary = json.loads((small_pack / "pack.json").read_text())
    change(summary)
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in small_pack.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pack.json").write_text(json.dumps(summary))
    if message is None:  # unlabelled images need no class
        assert len(DATASETS["packed"](str(folder), "all")) == 4
        return
    with pytest.raises(ValueError, match=message):
        DATASETS["packed"](str(folder), "all")


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("\ufeffa\r\n\r\n \nb\x0cb\rc".encode())
    assert read_lines(file) == [(1, "a"), (4, "b\x0cb"), (5, "c")]
    file.write_text("Image Name,Majority Vote Label,Partition\n\n\nx.png,XX,train\n")
    (tmp_path / "annotations.csv").write_text(file.read_text())
    with pytest.raises(ValueError, match="annotations.csv: line 4 is 'x.png', 'XX', 'train'"):
        read_mhist(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "annotations.csv")
    with pytest.raises(ValueError, match="annotations.csv: not a regular file"):
        read_mhist(tmp_path)
    with pytest.raises(ValueError, match="not a text file: Is a directory"):
        read_lines(tmp_path)


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_studies, "a,1\n\na/,0\n", "line 3: 'a' stands in it twice"),
        (read_knee_labels, "1,0\n2,1\n0001,1\n", "line 3: '1' stands in it twice"),
        (read_knee_labels, "1,0\n²,1\n", "line 2: '²' is no exam number"),
        (lambda path: read_sites(path, [1]), "id,site\n1,a\n1,b\n", "line 3: '1' stands in it twice"),
        (lambda path: read_sites(path, [1]), "1,99999999999999999999\n", "exam 1: .* is no site number"),
        (lambda path: read_table(path, ["a"]), "a,b,a\n1,2,3\n", "the column 'a' stands in it twice"),
        (lambda path: read_table(path, ["a"]), "a,b\n1\n", "line 2: 1 cells, 2 columns"),
        (lambda path: read_table(path, ["a"]), 'a\n"x\n', "line 2: not a row of a table"),
        (read_json, '{"label": 0, "label": 1}', "'label' stands in it twice"),
        (read_json, "[" * 100000, "nested too deeply"),
        (read_json, f'{{"label": {"9" * 5000}}}', "not JSON: .*4300 digits"),
        (read_json, '{"label": 0', "not JSON: Expecting ',' delimiter: line 1 column 12"),
    ],
)
def test_what_stands_twice_or_is_no_row_is_refused(tmp_path: Path, read, content: str, message: str) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(file)
    assert str(caught.value).startswith(str(file))
    file.write_bytes(b"\xff\xfe,1\n")
    with pytest.raises(ValueError, match="file: not a text file in UTF-8"):
        read(file)
