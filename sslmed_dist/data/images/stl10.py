"""STL-10 as its binary archive lays it out."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.dataset import ArrayDataset, Split, select_split
from sslmed_dist.data.text_files import read_lines
from sslmed_dist.printable import plural

SIDE = 96
CLASSES = 10
BYTES = 3 * SIDE * SIDE


def stl10(root: str | Path, split: Split = "train", unlabelled: bool = False) -> ArrayDataset:
    """STL-10 (Coates, Ng and Lee 2011): ten classes; 5,000 train, 8,000 test and 100,000 unlabelled images, uint8
    (3, 96, 96).

    ``root`` holds ``stl10_binary``, or is it, as cs.stanford.edu/~acoates/stl10 describes it: ``train_X.bin``,
    ``test_X.bin`` and ``unlabeled_X.bin`` of uint8, each image three planes in column-major order; ``train_y.bin`` and
    ``test_y.bin`` of labels 1 to 10; ``class_names.txt``. ``unlabelled`` adds the unlabelled images, with label -1, to
    "train" and "all", for pretraining. ids: train, then test, then unlabelled; they do not depend on ``unlabelled``.
    ``ValueError`` names the missing file, the one of a wrong size, or a label out of range.
    """
    folder = find_stl10(Path(root))
    names = [line.strip() for _, line in read_lines(folder / "class_names.txt")]
    if len(names) != CLASSES:
        raise ValueError(f"{folder / 'class_names.txt'}: {len(names)} names, expected {CLASSES}")
    parts_of_split = {"train": ["train"], "test": ["test"], "all": ["train", "test"]}
    select_split(["train", "test"], split, str(folder))
    wanted_parts = parts_of_split[split] + (["unlabeled"] if unlabelled and split != "test" else [])
    images, labels, ids, first_id = [], [], [], 0
    # a part that is not wanted is still counted, because the ids of the next one begin after it
    for name in ("train", "test", "unlabeled"):
        if name not in wanted_parts and name == "unlabeled":
            break
        count = count_images(folder / f"{name}_X.bin")
        if name in wanted_parts:
            images.append(read_images(folder / f"{name}_X.bin", count))
            labels.append(
                read_labels(folder / f"{name}_y.bin", count) if name != "unlabeled" else torch.full((count,), -1)
            )
            ids.append(torch.arange(first_id, first_id + count))
        first_id += count
    return ArrayDataset(
        name="stl10", images=torch.cat(images), labels=torch.cat(labels), classes=names, ids=torch.cat(ids)
    )


def find_stl10(root: Path) -> Path:
    """The folder of the binary files: ``root/stl10_binary`` when that is there, else ``root``."""
    return root / "stl10_binary" if (root / "stl10_binary").is_dir() else root


def count_images(path: Path) -> int:
    """The number of images in the binary file ``path``. ``ValueError`` when it is missing, empty or cut off."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    size = path.stat().st_size
    if size == 0 or size % BYTES:
        raise ValueError(
            f"{path}: {size} bytes, expected a multiple of {BYTES} (3 x {SIDE} x {SIDE}); the file is cut off"
        )
    return size // BYTES


def read_images(path: Path, count: int, start: int = 0) -> Tensor:
    """``count`` images from number ``start`` on, uint8 (count, 3, 96, 96); the file's columns become rows."""
    stored = np.memmap(path, np.uint8, "r", offset=start * BYTES, shape=(count, 3, SIDE, SIDE))
    images = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    # 1000 images at a time, so that only the result is held in memory and not the file
    for first in range(0, count, 1000):
        images[first : first + 1000].numpy()[...] = stored[first : first + 1000].transpose(0, 1, 3, 2)
    return images


def read_labels(path: Path, count: int) -> Tensor:
    """The labels of ``count`` images, int64 (count,) from 0. ``ValueError`` for another number of labels, or one that
    is not 1 to 10 in the file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    stored = np.fromfile(path, np.uint8)
    if len(stored) != count:
        raise ValueError(f"{path}: {plural(len(stored), 'label')} for {plural(count, 'image')}")
    if stored.min() < 1 or stored.max() > CLASSES:
        raise ValueError(f"{path}: labels {stored.min()} to {stored.max()}, allowed 1 to {CLASSES}")
    return torch.from_numpy(stored.astype(np.int64)) - 1
