"""Phantoms in the layouts of published image sets: drawn shapes under the names, and with the lists, of each archive.

One writer serves all: a layout says where an image lies and which files stand beside the images. Class c shows shape
c modulo 8, so of more than eight classes some look alike.

Of each layout ``place_...`` gives the path of an image's file below the root; ``lists_...`` writes all other files.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.images.flowers import BLOCK, FLOWERS, PARTS, write_matlab
from sslmed_dist.data.images.medical_files import CHAOYANG, ISIC
from sslmed_dist.data.images.stl10 import SIDE
from sslmed_dist.data.phantom.publish import publish, require_counts
from sslmed_dist.data.phantom.scanner import acquire, fold_each, scanner
from sslmed_dist.data.phantom.shapes import SHAPES, draw_shapes
from sslmed_dist.randomness import keys


class Row(NamedTuple):
    """One image: number in the set, split, class, and how many of its class and split came before it."""

    number: int
    split: str
    label: int
    nth: int


Rows = Sequence[Row]


@dataclass(frozen=True)
class Layout:
    """How an archive is laid out.

    train, test: default numbers of images. classes, channels: their numbers. size: default side in pixels.
    place: gives the path of an image's file below the root; None where images have no files of their own.
    lists: writes everything else; it gets the folder, the rows and the images uint8 (N, C, size, size).
    """

    train: int
    test: int
    classes: int
    channels: int
    size: int
    place: Callable[[Row], str] | None
    lists: Callable[[Path, Rows, Tensor], None]


def wnid(label: int) -> str:
    """The WordNet id of a class: made up, so that it names no real noun."""
    return f"n9900{label:04d}"


def place_tiny(row: Row) -> str:
    """Tiny-ImageNet."""
    folder = "tiny-imagenet-200"
    if row.split == "train":
        return f"{folder}/train/{wnid(row.label)}/images/{wnid(row.label)}_{row.nth}.JPEG"
    return f"{folder}/val/images/val_{row.number}.JPEG"


def lists_tiny(folder: Path, rows: Rows, images: Tensor) -> None:
    """wnids.txt, words.txt and val/val_annotations.txt. The ids are in reverse order, for the published ones are not
    sorted either."""
    root, labels = folder / "tiny-imagenet-200", sorted({row.label for row in rows}, reverse=True)
    write(root / "wnids.txt", [wnid(label) for label in labels])
    write(root / "words.txt", [f"{wnid(label)}\t{list(SHAPES)[label % len(SHAPES)]}, drawing" for label in labels])
    test = [row for row in rows if row.split == "test"]
    lines = [f"{Path(place_tiny(row)).name}\t{wnid(row.label)}\t0\t0\t{images.shape[3] - 1}\t31" for row in test]
    write(root / "val" / "val_annotations.txt", lines)


def place_imagenet(row: Row) -> str:
    """ImageNet with validation folders."""
    name = f"{wnid(row.label)}_{row.nth}" if row.split == "train" else f"ILSVRC2012_val_{row.number:08d}"
    return f"{'train' if row.split == 'train' else 'val'}/{wnid(row.label)}/{name}.JPEG"


def place_mura(row: Row) -> str:
    """MURA: two images a study, one study a patient. Numbers of patients are from 1 in train/, from 10001 in valid/."""
    split_folder, result = "train" if row.split == "train" else "valid", ("negative", "positive")[row.label]
    # images 2k and 2k + 1 of a class are the two of one study; patients alternate between the classes
    patient = 10000 * (split_folder == "valid") + 2 * (row.nth // 2) + row.label + 1
    region = ("XR_WRIST", "XR_HAND")[row.nth // 2 % 2]
    return f"MURA-v1.1/{split_folder}/{region}/patient{patient:05d}/study1_{result}/image{row.nth % 2 + 1}.png"


def lists_mura(folder: Path, rows: Rows, images: Tensor) -> None:
    """The lists of images and of studies."""
    for split, split_folder in (("train", "train"), ("test", "valid")):
        names = sorted(place_mura(row) for row in rows if row.split == split)
        write(folder / "MURA-v1.1" / f"{split_folder}_image_paths.csv", names)
        studies = sorted({name.rsplit("/", 1)[0] for name in names})
        lines = [f"{study}/,{int(study.endswith('positive'))}" for study in studies]
        write(folder / "MURA-v1.1" / f"{split_folder}_labeled_studies.csv", lines)


def place_chaoyang(row: Row) -> str:
    """Chaoyang."""
    return f"{row.split}/{row.number}-IMG001-{row.nth}.JPG"


def lists_chaoyang(folder: Path, rows: Rows, images: Tensor) -> None:
    """train.json and test.json."""
    for split in ("train", "test"):
        table = [{"name": place_chaoyang(row), "label": row.label} for row in rows if row.split == split]
        (folder / f"{split}.json").write_text(json.dumps(table), encoding="utf-8")


def place_isic(row: Row) -> str:
    """ISIC 2016, part 3."""
    return f"{ISIC}_{'Training' if row.split == 'train' else 'Test'}_Data/ISIC_{row.number:07d}.jpg"


def lists_isic(folder: Path, rows: Rows, images: Tensor) -> None:
    """The two lists of labels, each with its own words."""
    words = {"train": ("Training", "benign", "malignant"), "test": ("Test", "0.0", "1.0")}
    for split, (name, *labels) in words.items():
        lines = [f"{Path(place_isic(row)).stem},{labels[row.label]}" for row in rows if row.split == split]
        write(folder / f"{ISIC}_{name}_GroundTruth.csv", lines)


def place_mhist(row: Row) -> str:
    """MHIST."""
    return f"images/MHIST_{row.number:04d}.png"


def lists_mhist(folder: Path, rows: Rows, images: Tensor) -> None:
    """annotations.csv."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    votes = "Number of Annotators who Selected SSA (Out of 7)"
    table.writerow(["Image Name", "Majority Vote Label", votes, "Partition"])
    for row in rows:
        table.writerow([Path(place_mhist(row)).name, ("HP", "SSA")[row.label], 1 + 5 * row.label, row.split])
    (folder / "annotations.csv").write_text(stream.getvalue(), encoding="utf-8")


def place_flowers(row: Row) -> str:
    """Flowers-17: classes in blocks of 80."""
    return f"jpg/image_{row.label * BLOCK + row.nth + 1:04d}.jpg"


def lists_flowers(folder: Path, rows: Rows, images: Tensor) -> None:
    """datasplits.mat: in split 1 the first 40 images of each class are train, the next 20 val, the last 20 test.

    In splits 2 and 3 each part begins 20 images later than in the one before, counted round the class.
    """
    numbers = np.arange(BLOCK * len(FLOWERS))
    arrays: dict[str, np.ndarray] = {}  # trn1, val1, tst1, trn2, ...
    for split_number in (1, 2, 3):
        # rank within the class, turned back by the 20 images that each split begins later
        rank = (numbers % BLOCK - 20 * (split_number - 1)) % BLOCK
        part = np.where(rank < 40, 0, np.where(rank < 60, 1, 2))
        arrays |= {f"{word}{split_number}": numbers[part == code] + 1 for code, word in enumerate(PARTS.values())}
    write_matlab(folder / "datasplits.mat", arrays)


def lists_stl10(folder: Path, rows: Rows, images: Tensor) -> None:
    """The binary files; as many unlabelled images as there are of train, drawn darker."""
    root = folder / "stl10_binary"
    root.mkdir()
    names = [*SHAPES, "blank", "empty"]
    write(root / "class_names.txt", names)
    for split in ("train", "test"):
        image_numbers = [row.number for row in rows if row.split == split]
        # the format is column-major: each plane is written transposed
        images[image_numbers].transpose(2, 3).numpy().tofile(root / f"{split}_X.bin")
        np.array([rows[number].label + 1 for number in image_numbers], np.uint8).tofile(root / f"{split}_y.bin")
    unlabelled = images[[row.number for row in rows if row.split == "train"]] // 2
    unlabelled.transpose(2, 3).contiguous().numpy().tofile(root / "unlabeled_X.bin")


def no_lists(folder: Path, rows: Rows, images: Tensor) -> None:
    """Nothing stands beside the images."""


LAYOUTS: dict[str, Layout] = {
    "stl10": Layout(20, 10, 10, 3, SIDE, None, lists_stl10),
    "tiny_imagenet": Layout(24, 12, 6, 3, 64, place_tiny, lists_tiny),
    "imagenet": Layout(24, 12, 6, 3, 96, place_imagenet, no_lists),
    "flowers17": Layout(BLOCK * len(FLOWERS), 0, len(FLOWERS), 3, 32, place_flowers, lists_flowers),
    "mura": Layout(16, 8, 2, 1, 64, place_mura, lists_mura),
    "chaoyang": Layout(16, 8, len(CHAOYANG), 3, 64, place_chaoyang, lists_chaoyang),
    "isic2016": Layout(16, 8, 2, 3, 64, place_isic, lists_isic),
    "mhist": Layout(16, 8, 2, 3, 64, place_mhist, lists_mhist),
}


def writer(kind: str) -> Callable[..., Path]:
    """The phantom writer of a layout."""
    layout = LAYOUTS[kind]

    def write_layout(
        root: str | Path,
        *,
        train: int = layout.train,
        test: int = layout.test,
        size: int = layout.size,
        seed: int = 0,
    ) -> Path:
        """Write ``train`` and ``test`` drawn images, classes in turn, into the folder ``root`` and return it.

        Files differ in height, as photographs do in aspect. ``ValueError`` for negative counts, a size below 16,
        another number or size where the layout allows only one, or a folder that holds something else.
        """
        require_counts(train=train, test=test)
        if size < 16:
            raise ValueError(f"size: expected at least 16 pixels, got {size}")
        for name, requested, expected in (("train", train, layout.train), ("test", test, layout.test)):
            if kind == "flowers17" and requested != expected:
                raise ValueError(f"{name}: this layout has exactly {expected}, got {requested}")
        if layout.place is None and size != layout.size:
            raise ValueError(f"size: this layout has exactly {layout.size} pixels, got {size}")
        spec = {"kind": kind, "version": 1, "train": train, "test": test, "size": size, "seed": seed}
        return publish(root, spec, lambda folder: fill(folder, layout, (train, test), size, seed))

    return write_layout


def fill(folder: Path, layout: Layout, counts: tuple[int, int], size: int, seed: int) -> None:
    """Draw the images of a layout and write them and its lists."""
    # classes in turn within each split; image numbers run on from train to test
    rows = [
        Row(start + i, split, i % layout.classes, i // layout.classes)
        for split, count, start in (("train", counts[0], 0), ("test", counts[1], counts[0]))
        for i in range(count)
    ]
    images = draw(rows, layout.channels, size, seed)
    if layout.place is not None:
        for row, image in zip(rows, images, strict=True):
            # five heights in turn, from size down to three quarters of it
            save(folder / layout.place(row), image[:, : size - row.number % 5 * (size // 16)])
    layout.lists(folder, rows, images)


def draw(rows: Rows, channels: int, size: int, seed: int) -> Tensor:
    """The pictures of a set as one scanner records them, uint8 (N, channels, size, size)."""
    subjects = keys(seed, "layout", torch.tensor([row.number for row in rows]))
    labels = torch.tensor([row.label % len(SHAPES) for row in rows])
    images = torch.empty(len(rows), channels, size, size, dtype=torch.uint8)
    # 256 images at a time bound the memory
    for batch in torch.split(torch.arange(len(rows)), 256):
        clean = draw_shapes(subjects[batch], labels[batch], size=size, channels=channels)
        recorded = acquire(clean, scanner(0, seed), fold_each(subjects[batch], "acquire"), magnitude=False)
        images[batch] = (255.0 * recorded).round().to(torch.uint8)
    return images


def save(path: Path, image: Tensor) -> None:
    """Write one picture, uint8 (C, H, W), in the format of the path's suffix."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    Image.fromarray(pixels.contiguous().numpy()).save(path, quality=95)  # png takes no notice of the quality


def write(path: Path, lines: Sequence[str]) -> None:
    """A text file of ``lines``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
