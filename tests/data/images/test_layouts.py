"""The published layouts, read from their phantoms: counts, labels, groups, splits, and what is said of each fault."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslmed_dist.data import DATASETS, Dataset
from sslmed_dist.data.images.flowers import FLOWERS, read_matlab, write_matlab
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.data.phantom.layouts import LAYOUTS

# kind -> counts of the splits of its phantom, number of classes, channels, default side
FACTS: dict[str, tuple[dict[str, int], int, int, int]] = {
    "stl10": ({"train": 20, "test": 10}, 10, 3, 96),
    "tiny_imagenet": ({"train": 24, "test": 12}, 6, 3, 64),
    "imagenet": ({"train": 24, "test": 12}, 6, 3, 256),
    "flowers17": ({"train": 680, "val": 340, "test": 340}, 17, 3, 224),
    "mura": ({"train": 16, "test": 8}, 2, 1, 224),
    "chaoyang": ({"train": 16, "test": 8}, 4, 3, 224),
    "isic2016": ({"train": 16, "test": 8}, 2, 3, 224),
    "mhist": ({"train": 16, "test": 8}, 2, 3, 224),
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the phantom of every layout, for reading only."""
    folder = tmp_path_factory.mktemp("phantoms")
    for kind in LAYOUTS:
        PHANTOMS[kind](folder / kind)
    return folder


@pytest.fixture
def copied(phantoms: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a phantom that a test may damage."""
    return lambda kind: Path(shutil.copytree(phantoms / kind, tmp_path / kind))


def images(data: Dataset) -> torch.Tensor:
    positions = torch.arange(min(4, len(data)))
    return data.fetch(positions, seed=0, epoch=0, draw=torch.zeros_like(positions))["images"]


def test_every_layout_has_its_facts() -> None:
    assert FACTS.keys() == LAYOUTS.keys() and FACTS.keys() <= DATASETS.keys()


@pytest.mark.parametrize("kind", FACTS)
def test_a_phantom_reads_with_its_counts_labels_and_splits(kind: str, phantoms: Path) -> None:
    counts, classes, channels, side = FACTS[kind]
    whole = DATASETS[kind](root=str(phantoms / kind), split="all")
    assert whole.ids.tolist() == list(range(sum(counts.values()))) and len(whole.classes) == classes
    ids = []
    for split, count in counts.items():
        data = DATASETS[kind](root=str(phantoms / kind), split=split)
        totals = torch.bincount(data.labels, minlength=classes).tolist()
        assert len(data) == count and max(totals) - min(totals) <= 1
        assert torch.equal(data.labels, whole.labels[data.ids])
        ids += data.ids.tolist()
    assert sorted(ids) == whole.ids.tolist()
    batch = images(whole)
    assert batch.shape == (4, channels, side, side) and batch.dtype == torch.uint8
    assert whole.value_range() == (0.0, 255.0) and whole.channels == channels


@pytest.mark.parametrize("kind", [kind for kind in FACTS if kind != "stl10"])
def test_the_file_of_a_sample_is_in_its_record_and_is_what_is_fetched(kind: str, phantoms: Path) -> None:
    data = DATASETS[kind](root=str(phantoms / kind), split="test", size=64)
    below = {"mura": "MURA-v1.1", "tiny_imagenet": "tiny-imagenet-200"}.get(kind, "")
    path = phantoms / kind / below / data.records[1]["file"]
    with Image.open(path) as picture:
        scale = 64 / min(picture.size)
        width, height = (max(64, round(side * scale)) for side in picture.size)
        resized = np.array(picture.resize((width, height), Image.Resampling.BILINEAR)).reshape(height, width, -1)
    top, left = (height - 64) // 2, (width - 64) // 2
    expected = torch.from_numpy(resized[top : top + 64, left : left + 64]).permute(2, 0, 1)
    assert torch.equal(images(data)[1], expected)


def test_stl10_is_turned_and_takes_the_unlabelled_into_train(phantoms: Path) -> None:
    root = phantoms / "stl10"
    train, more = (DATASETS["stl10"](root=str(root), unlabelled=unlabelled) for unlabelled in (False, True))
    stored = np.fromfile(root / "stl10_binary" / "train_X.bin", np.uint8).reshape(-1, 3, 96, 96)
    assert torch.equal(images(train)[2], torch.from_numpy(stored[2].transpose(0, 2, 1).copy()))
    assert len(more) == 40 and more.ids.tolist() == [*range(20), *range(30, 50)]
    assert torch.equal(more.labels[:20], train.labels) and more.labels[20:].tolist() == [-1] * 20
    assert len(DATASETS["stl10"](root=str(root / "stl10_binary"), split="test", unlabelled=True)) == 10
    with pytest.raises(ValueError, match="no split 'val'; allowed: train, test, all"):
        DATASETS["stl10"](root=str(root), split="val")


def test_mura_groups_are_patients(phantoms: Path) -> None:
    data = DATASETS["mura"](root=str(phantoms / "mura"), split="all")
    patients = [int(record["file"].split("/patient")[1][:5]) for record in data.records]
    assert data.groups.tolist() == patients and len(set(patients)) == 12
    assert data.labels.tolist() == [int("positive" in record["file"]) for record in data.records]


def test_tiny_imagenet_classes_are_sorted_and_named(phantoms: Path) -> None:
    data = DATASETS["tiny_imagenet"](root=str(phantoms / "tiny_imagenet" / "tiny-imagenet-200"))
    assert data.classes[:2] == ("n99000000 disc", "n99000001 square")
    assert [record["file"].split("/")[1] for record in data.records] == [f"n9900{i:04d}" for i in data.labels.tolist()]


def test_a_class_list_gives_the_numbers_and_keeps_the_ids(phantoms: Path, tmp_path: Path) -> None:
    root, wanted = str(phantoms / "imagenet"), ("n99000004", "n99000001")
    listed = tmp_path / "two.txt"
    listed.write_text("n99000004 a cross\n\nn99000001\n")
    for classes in (wanted, str(listed)):
        data = DATASETS["imagenet"](root=root, classes=classes, size=32)
        assert data.classes == wanted and data.labels.tolist() == [1] * 4 + [0] * 4 and data.ids.tolist() == [*range(8)]
        assert data.records[0]["file"].startswith("train/n99000001/")
    assert DATASETS["imagenet"](root=root, classes=wanted, split="test", size=32).labels.tolist() == [1, 1, 0, 0]


def test_imagenet_reads_flat_validation_images_from_kaggles_list(copied: Callable[[str], Path], tmp_path: Path) -> None:
    root = copied("imagenet")
    before = DATASETS["imagenet"](root=str(root), split="test", size=96)
    kept = {Path(record["file"]).name: int(label) for record, label in zip(before.records, before.labels, strict=True)}
    lines = ["ImageId,PredictionString"]
    for path in sorted((root / "val").rglob("*.JPEG")):
        lines.append(f"{path.stem},{path.parent.name} 1 2 3 4 ")
        path.rename(root / "val" / path.name)
    for place in [p for p in (root / "val").iterdir() if p.is_dir()]:
        place.rmdir()
    with pytest.raises(ValueError, match="LOC_val_solution.csv: no such file"):
        DATASETS["imagenet"](root=str(root))
    top = tmp_path / "top"
    (top / "ILSVRC" / "Data").mkdir(parents=True)
    root.rename(top / "ILSVRC" / "Data" / "CLS-LOC")
    (top / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    after = DATASETS["imagenet"](root=str(top), split="test", size=96)
    found = {Path(record["file"]).name: int(label) for record, label in zip(after.records, after.labels, strict=True)}
    assert found == kept
    two = DATASETS["imagenet"](root=str(top), split="test", size=96, classes=("n99000002", "n99000000"))
    assert sorted(two.labels.tolist()) == [0, 0, 1, 1]
    (top / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000024,n1 0 0 1 1\n")
    with pytest.raises(ValueError, match="LOC_val_solution.csv: line 2 is .*; expected ImageId,WNID"):
        DATASETS["imagenet"](root=str(top))


def test_flowers_have_three_published_splits_and_a_keyed_one(copied: Callable[[str], Path]) -> None:
    root = copied("flowers17")
    data = [DATASETS["flowers17"](root=str(root), published=k, size=16) for k in (1, 2, 3)]
    assert [set(d.ids.tolist()) & set(range(80)) for d in data] == [
        set(range(40)), set(range(20, 60)), set(range(40, 80))
    ]  # fmt: skip
    assert data[0].records[0] == {"file": "jpg/image_0001.jpg"} and data[0].classes == FLOWERS
    assert all(torch.equal(d.labels, d.ids // 80) for d in data)
    (root / "datasplits.mat").unlink()
    with pytest.raises(ValueError, match="datasplits.mat: no such file; published: 0 takes a keyed split"):
        DATASETS["flowers17"](root=str(root))
    parts = [DATASETS["flowers17"](root=str(root), split=split, published=0, size=16) for split in ("train", "val")]
    again = DATASETS["flowers17"](root=str(root / "jpg"), published=0, size=16)
    other = DATASETS["flowers17"](root=str(root), published=0, seed=1, size=16)
    assert torch.equal(parts[0].ids, again.ids) and not torch.equal(parts[0].ids, other.ids)
    assert [torch.bincount(part.labels).tolist() for part in parts] == [[40] * 17, [20] * 17]


def test_matlab_files_are_read_as_scipy_writes_and_reads_them(tmp_path: Path) -> None:
    matlab = pytest.importorskip("scipy.io")
    arrays = {"trn1": np.arange(1, 8), "tst1": np.array([300, 2]), "v": np.array([3.5])}
    for packed in (True, False):
        matlab.savemat(tmp_path / "theirs.mat", arrays, do_compression=packed)
        read = read_matlab(tmp_path / "theirs.mat")
        assert {key: value.tolist() for key, value in read.items()} == {k: v.tolist() for k, v in arrays.items()}
    write_matlab(tmp_path / "ours.mat", arrays)
    back = matlab.loadmat(tmp_path / "ours.mat")
    assert all(back[key][0].tolist() == value.tolist() for key, value in arrays.items())
    data = (tmp_path / "ours.mat").read_bytes()
    (tmp_path / "ours.mat").write_bytes(data[:-9])
    with pytest.raises(ValueError, match="ours.mat: damaged, or not of numeric arrays alone"):
        read_matlab(tmp_path / "ours.mat")


Damage = Callable[[Path], object]


def edit(name: str, old: str, new: str) -> Damage:
    """Replace text in a list."""

    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return change


def cut(name: str) -> Damage:
    """Leave the last 60 bytes of a file away, and of a short one half."""

    def change(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: -min(60, len(data) // 2)])

    return change


def blank(name: str, count: int) -> Damage:
    """A file of zero bytes."""
    return lambda root: (root / name).write_bytes(bytes(count))


def gone(name: str) -> Damage:
    """Remove a file or a folder."""
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


STL, TINY, MURA = "stl10_binary", "tiny-imagenet-200", "MURA-v1.1"
PATIENT = f"{MURA}/train/XR_WRIST/patient00001/study1_negative"
TRAIN_CSV, TEST_DATA = "ISBI2016_ISIC_Part3_Training_GroundTruth.csv", "ISBI2016_ISIC_Part3_Test_Data"
FAULTS: list[tuple[str, Damage, dict[str, Any], str]] = [
    ("stl10", gone(f"{STL}/test_y.bin"), {"split": "test"}, "test_y.bin: no such file"),
    ("stl10", gone(f"{STL}/unlabeled_X.bin"), {"unlabelled": True}, "unlabeled_X.bin: no such file"),
    ("stl10", cut(f"{STL}/train_X.bin"), {}, "train_X.bin: 552900 bytes, expected a multiple of 27648 .*cut off"),
    ("stl10", cut(f"{STL}/train_y.bin"), {}, "train_y.bin: 10 labels for 20 images"),
    ("stl10", blank(f"{STL}/train_y.bin", 20), {}, "train_y.bin: labels 0 to 0, allowed"),
    ("stl10", edit(f"{STL}/class_names.txt", "disc\n", ""), {}, "class_names.txt: 9 names, expected 10"),
    ("tiny_imagenet", gone(f"{TINY}/wnids.txt"), {}, "holds no wnids.txt, nor a folder tiny-imagenet-200 with it"),
    ("tiny_imagenet", gone(f"{TINY}/train/n99000003"), {}, "n99000003/images: no such folder"),
    ("tiny_imagenet", edit(f"{TINY}/val/val_annotations.txt", "n99000001", "n1"), {}, "val_annotations.txt: line 2 is"),
    ("tiny_imagenet", gone(f"{TINY}/val/images/val_30.JPEG"), {"split": "test"}, "val_30.JPEG: no such .*1 of 12"),
    ("imagenet", gone("train"), {}, "train: no such folder; this is not the ILSVRC layout"),
    ("imagenet", lambda root: (root / "train/cats").mkdir(), {}, "train: folder 'cats' in it; expected folders"),
    ("imagenet", gone("val/n99000002"), {}, "val/n99000002: no such folder"),
    ("imagenet", lambda root: None, {"classes": ("n99000001", "n00000009")}, "'n00000009' is no folder of .*1 of 2"),
    ("imagenet", lambda root: None, {"classes": "absent.txt"}, "absent.txt: no such file"),
    ("imagenet", lambda root: None, {"classes": ("n99000001",) * 2}, "classes: is empty or names a WNID twice"),
    ("imagenet", cut("train/n99000000/n99000000_0.JPEG"), {}, "image 0 of imagenet: .*n99000000_0.JPEG is corrupt"),
    ("imagenet", lambda root: None, {"split": "val"}, "no split 'val'; allowed: train, test, all"),
    ("flowers17", gone("jpg/image_0777.jpg"), {}, "image_0777.jpg: is missing; 1359 images there, 1360 expected"),
    ("flowers17", blank("jpg/x.jpg", 0), {}, "x.jpg: is not one of image_0001.jpg"),
    ("flowers17", cut("datasplits.mat"), {}, "datasplits.mat: damaged"),
    ("flowers17", blank("datasplits.mat", 200), {}, "datasplits.mat: not a MATLAB 5 file"),
    ("flowers17", lambda root: write_matlab(root / "datasplits.mat", {"trn1": np.array([9])}), {}, "no 'val1' in it"),
    ("flowers17", lambda root: write_matlab(root / "datasplits.mat", {"trn1": np.array([0])}), {}, "trn1 names image"),
    ("mura", gone(f"{MURA}/valid_image_paths.csv"), {}, "valid_image_paths.csv: no such file"),
    ("mura", edit(f"{MURA}/train_labeled_studies.csv", ",0", ",1"), {}, "line 1: train/.* has label 1 in the list"),
    ("mura", edit(f"{MURA}/train_labeled_studies.csv", ",0", ",maybe"), {}, "line .*; expected path of a study,0 or 1"),
    ("mura", edit(f"{MURA}/train_image_paths.csv", "patient00001", "p1"), {}, "line .*; expected train/XR"),
    ("mura", gone(f"{PATIENT}/image2.png"), {}, "image2.png: no such file, but it is listed .1 of 16 are missing"),
    ("chaoyang", gone("test.json"), {}, "test.json: no such file"),
    ("chaoyang", edit("train.json", "}", ""), {}, "train.json: not JSON"),
    ("chaoyang", lambda root: (root / "train.json").write_text("{}"), {}, "train.json: expected a list, got dict"),
    ("chaoyang", edit("train.json", '"label": 3', '"label": 4'), {}, "entry 3 is .*; expected a name and"),
    ("isic2016", gone(TRAIN_CSV), {}, f"{TRAIN_CSV}: no such file"),
    ("isic2016", edit(TRAIN_CSV, "malignant", "unsure"), {}, "line 2 is 'ISIC_0000001,unsure'; expected image id and"),
    ("isic2016", gone(f"{TEST_DATA}/ISIC_0000020.jpg"), {"split": "test"}, "ISIC_0000020.jpg: no such file"),
    ("isic2016", edit(TRAIN_CSV, "0000001", "0000000"), {}, "ISIC_0000000.jpg is listed 2 times"),
    ("mhist", gone("annotations.csv"), {}, "annotations.csv: no such file"),
    ("mhist", edit("annotations.csv", "Partition", "Part"), {}, "no column 'Partition'; it has Image Name"),
    ("mhist", edit("annotations.csv", "SSA,6", "TA,6"), {}, "annotations.csv: line 3 is .*'TA'.*; expected a name"),
    ("mhist", cut("images/MHIST_0000.png"), {}, "image 0 of mhist: .*MHIST_0000.png is corrupt or no image"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "damage", "arguments", "message"), FAULTS)
def test_a_fault_is_one_line_that_names_the_file(
    kind: str, damage: Damage, arguments: dict[str, Any], message: str, copied: Callable[[str], Path]
) -> None:
    root = copied(kind)
    damage(root)
    with pytest.raises(ValueError, match=message) as caught:
        DATASETS[kind](root=str(root), **arguments)
    assert "\n" not in str(caught.value)


def test_chaoyang_lists_are_what_the_loader_follows(copied: Callable[[str], Path]) -> None:
    root = copied("chaoyang")
    table = json.loads((root / "train.json").read_text())
    (root / "train.json").write_text(json.dumps(table[::-1][:5]))
    data = DATASETS["chaoyang"](root=str(root), size=16)
    labels = {entry["name"]: entry["label"] for entry in table}
    assert [labels[record["file"]] for record in data.records] == data.labels.tolist() and len(data) == 5
