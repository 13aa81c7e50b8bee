"""Small phantom sets in the layouts that people have, made in the test."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sslmed_dist.data.phantom import PHANTOMS
from tests import tiny

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def pixels(number: int, *shape: int) -> Pixels:
    """Noise in which an odd number has a bright left half."""
    values = np.random.default_rng(number).integers(0, 120, shape, dtype=np.uint8)
    values[:, : shape[1] // 2] += np.uint8(100 * (number % 2))
    return values


def classes(folder: Path, save: Callable[[Path, int], None], splits: tuple[str, ...] = ("",), count: int = 40) -> Path:
    """``count`` images in two folders of classes, below folders of splits or none."""
    for split in splits:
        for number in range(count):
            place = folder / split / ("bright" if number % 2 else "dark")
            place.mkdir(parents=True, exist_ok=True)
            save(place / f"{split}{number:03d}", number + 1000 * len(split))
    return folder


def microscopy(folder: Path) -> Path:
    """Colour JPEG in folders of splits and classes."""
    return classes(folder, lambda name, n: Image.fromarray(pixels(n, 24, 30, 3)).save(f"{name}.jpg"), ("train", "test"))


def radiographs(folder: Path) -> Path:
    """Grey images stored as colour JPEG, in folders of classes."""

    def save(name: Path, number: int) -> None:
        Image.fromarray(pixels(number, 40, 33)).convert("RGB").save(f"{name}.jpg")

    return classes(folder, save)


def deep_tiff(folder: Path) -> Path:
    """16-bit grey TIFF without classes, of which 12 bits are used."""
    folder.mkdir()
    for number in range(40):
        Image.fromarray(pixels(number, 32, 32).astype(np.uint16) * 16).save(folder / f"{number:03d}.tif")
    return folder


def patients(folder: Path) -> Path:
    """Grey PNG of twelve patients, four images of each, in classes by patient."""
    for number in range(48):
        place = folder / ("ill" if number // 4 % 2 else "well")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, 20, 20)).save(place / f"person{number // 4}_{number % 4}.png")
    return folder


def only_train(folder: Path) -> Path:
    """A folder train alone, with grey PNG."""
    return classes(folder, lambda name, n: Image.fromarray(pixels(n, 20, 20)).save(f"{name}.png"), ("train",))


def medmnist(folder: Path) -> Path:
    """A MedMNIST archive."""
    folder.mkdir()
    return tiny.write_images(folder / "tiny.npz")


def several_labels(folder: Path) -> Path:
    """A MedMNIST archive with two columns of labels."""
    folder.mkdir()
    path = tiny.write_images(folder / "several.npz")
    with np.load(path) as stored:
        arrays = dict(stored)
    for name in ("train", "val", "test"):
        first = arrays[f"{name}_labels"]
        arrays[f"{name}_labels"] = np.concatenate([first, np.arange(len(first))[:, None] // 2 % 2], 1).astype(np.uint8)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def nifti(folder: Path) -> Path:
    """NIfTI volumes with masks."""
    return PHANTOMS["abdomen"](folder, exams=6, size=48, slices=10)


def dicom(folder: Path) -> Path:
    """DICOM examinations with a table of labels."""
    return PHANTOMS["knee_exams"](folder, exams=10, scanners=2, size=32, slices=(3, 4))


def mrnet(folder: Path) -> Path:
    """MRNet's layout."""
    return PHANTOMS["knee"](folder, train=16, valid=8, size=32, slices=(6, 8), planes=("sagittal",))


def kneemri(folder: Path) -> Path:
    """KneeMRI's layout."""
    return PHANTOMS["kneemri"](folder, exams=20, size=32, slices=(4, 6), ruptured=0.4)
