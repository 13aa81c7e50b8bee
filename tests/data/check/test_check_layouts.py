"""``sslmed data check`` on the published layouts: clean phantoms, and each kind of damage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sslmed_dist.data.check import inspect
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.data.phantom.layouts import LAYOUTS
from tests.data.check.test_check import mentions

TITLES = {
    "stl10": "STL-10",
    "tiny_imagenet": "Tiny-ImageNet",
    "imagenet": "ImageNet (ILSVRC)",
    "flowers17": "Flowers-17",
    "mura": "MURA",
    "chaoyang": "Chaoyang",
    "isic2016": "ISIC 2016 part 3",
    "mhist": "MHIST",
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_phantom_is_recognised_and_clean(kind: str, tmp_path: Path) -> None:
    lines, problems = inspect(PHANTOMS[kind](tmp_path / "set"))
    assert lines[0] == f"layout: {TITLES[kind]}" and problems == []
    layout = LAYOUTS[kind]
    train = 680 if kind == "flowers17" else layout.train
    assert mentions(lines, f"train: {train} images")
    if kind == "flowers17":
        assert mentions(lines, "val: 340 images") and mentions(lines, "test: daffodil 20, snowdrop 20")
    if kind == "mura":
        assert mentions(lines, "train: negative 8, positive 8") and mentions(lines, "test: 4 patients")


@pytest.fixture
def mura(tmp_path: Path) -> Path:
    return PHANTOMS["mura"](tmp_path / "set") / "MURA-v1.1"


def test_missing_corrupt_and_repeated_images(mura: Path) -> None:
    study = mura / "train" / "XR_WRIST" / "patient00001" / "study1_negative"
    (study / "image1.png").write_text("nothing")
    (study / "image2.png").unlink()
    first, *_ = sorted((mura / "valid").rglob("*.png"))
    first.write_bytes((mura / "train/XR_WRIST/patient00002/study1_positive/image1.png").read_bytes())
    problems = inspect(mura.parent)[1]
    name = "train/XR_WRIST/patient00001/study1_negative"
    assert mentions(problems, f"train: 1 listed file is missing: {name}/image2.png")
    assert mentions(problems, f"{name}/image1.png is corrupt or no image")
    assert mentions(problems, "test: 1 image also occurs in train: valid/")
    assert len(problems) == 3


def test_a_patient_in_two_splits_is_named(mura: Path) -> None:
    source = sorted((mura / "valid").rglob("patient*"))[0]
    source.rename(source.with_name("patient00001"))
    for name in ("valid_image_paths.csv", "valid_labeled_studies.csv"):
        text = (mura / name).read_text()
        (mura / name).write_text(text.replace(source.name, "patient00001"))
    assert inspect(mura)[1] == ["patients: 1 in more than one split: 1"]


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


@pytest.mark.parametrize(
    ("kind", "damage", "problem"),
    [
        ("stl10", remove("stl10_binary/test_X.bin"), "test_X.bin: no such file"),
        (
            "stl10",
            lambda root: (root / "stl10_binary/unlabeled_X.bin").write_bytes(b"x"),
            "1 bytes, expected a multiple",
        ),
        ("tiny_imagenet", remove("tiny-imagenet-200/val/val_annotations.txt"), "val_annotations.txt: no such file"),
        ("imagenet", lambda root: shutil.rmtree(root / "val/n99000005"), "n99000005: no such folder"),
        ("flowers17", remove("jpg/image_1360.jpg"), "image_1360.jpg: is missing; 1359 images there"),
        ("chaoyang", remove("train.json"), "train.json: no such file"),
        ("isic2016", remove("ISBI2016_ISIC_Part3_Test_GroundTruth.csv"), "Test_GroundTruth.csv: no such file"),
        ("mhist", remove("images/MHIST_0003.png"), "train: 1 listed file is missing: images/MHIST_0003.png"),
    ],
)
def test_damage_is_reported(kind: str, damage: Callable[[Path], None], problem: str, tmp_path: Path) -> None:
    root = PHANTOMS[kind](tmp_path / "set")
    damage(root)
    assert mentions(inspect(root)[1], problem)


def test_many_classes_are_summed_up(tmp_path: Path) -> None:
    root = PHANTOMS["imagenet"](tmp_path / "set", train=6, test=0, size=16)
    names = [f"n1234{number:04d}" for number in range(30)]
    for number, name in enumerate(names):
        folder = root / "train" / name
        folder.mkdir()
        shutil.copy(root / "train/n99000000/n99000000_0.JPEG", folder / "a.JPEG")
        if number == 0:
            shutil.copy(root / "train/n99000001/n99000001_0.JPEG", folder / "b.JPEG")
    lines, problems = inspect(root)
    assert mentions(lines, "train: 36 classes of 1 to 2 images")
    assert mentions(problems, "train: 31 images repeat an earlier one", "and 26 more")
