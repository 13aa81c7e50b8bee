"""STL-10 as its binary archive lays it out."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.dataset import ArrayDataset, Split, select_split
from sslmed_dist.data.images.files import read_lines

SIDE = 96
CLASSES = 10
BYTES = 3 * SIDE * SIDE


def stl10(root: str | Path, split: Split = "train", unlabelled: bool = False) -> ArrayDataset:
    """STL-10 (Coates, Ng and Lee 2011): 5,000 train, 8,000 test and 100,000 unlabelled images uint8 (3, 96, 96), ten
    classes.

    ``root`` holds ``stl10_binary``, or is it, as cs.stanford.edu/~acoates/stl10 describes it: ``train_X.bin``,
    ``test_X.bin``, ``unlabeled_X.bin`` of uint8, each image three planes in column-major order; ``train_y.bin``,
    ``test_y.bin`` of labels 1 to 10; ``class_names.txt``. ``unlabelled`` adds those images, labels -1, to "train" (and
    "all"): for pretraining. ids: train, then test, then unlabelled, with or without the last.
    ``ValueError`` names the missing file, or the one of a wrong size, and a label out of range.
    """
    folder = find_stl10(Path(root))
    names = [line.strip() for line in read_lines(folder / "class_names.txt")]
    if len(names) != CLASSES:
        raise ValueError(f"{folder / 'class_names.txt'}: {len(names)} names, expected {CLASSES}")
    parts = {"train": ["train"], "test": ["test"], "all": ["train", "test"]}
    select_split(["train", "test"], split, str(folder))
    wanted = parts[split] + (["unlabeled"] if unlabelled and split != "test" else [])
    images, labels, ids, start = [], [], [], 0
    for name in ("train", "test", "unlabeled"):
        if name not in wanted and name == "unlabeled":
            break
        count = count_images(folder / f"{name}_X.bin")
        if name in wanted:
            images.append(read_images(folder / f"{name}_X.bin", count))
            labels.append(
                read_labels(folder / f"{name}_y.bin", count) if name != "unlabeled" else torch.full((count,), -1)
            )
            ids.append(torch.arange(start, start + count))
        start += count
    return ArrayDataset(
        name="stl10", images=torch.cat(images), labels=torch.cat(labels), classes=names, ids=torch.cat(ids)
    )


def find_stl10(root: Path) -> Path:
    """The folder of the binary files: ``root/stl10_binary`` when that is there, else ``root``."""
    return root / "stl10_binary" if (root / "stl10_binary").is_dir() else root


def count_images(path: Path) -> int:
    """The number of images in a file of them. ``ValueError`` when it is missing, empty or cut off."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    size = path.stat().st_size
    if size == 0 or size % BYTES:
        raise ValueError(
            f"{path}: {size} bytes, expected a multiple of {BYTES} (3 x {SIDE} x {SIDE}); the file is cut off"
        )
    return size // BYTES


def read_images(path: Path, count: int, start: int = 0) -> Tensor:
    """``count`` images from number ``start``, uint8 (count, 3, 96, 96), turned from column-major to row-major."""
    stored = np.memmap(path, np.uint8, "r", offset=start * BYTES, shape=(count, 3, SIDE, SIDE))
    images = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    for first in range(0, count, 1000):
        images[first : first + 1000].numpy()[...] = stored[first : first + 1000].transpose(0, 1, 3, 2)
    return images


def read_labels(path: Path, count: int) -> Tensor:
    """The labels of ``count`` images, int64 from 0. ``ValueError`` for another number of them or a value outside."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    stored = np.fromfile(path, np.uint8)
    if len(stored) != count:
        raise ValueError(f"{path}: {len(stored)} labels for {count} images")
    if stored.min() < 1 or stored.max() > CLASSES:
        raise ValueError(f"{path}: labels {stored.min()} to {stored.max()}, allowed 1 to {CLASSES}")
    return torch.from_numpy(stored.astype(np.int64)) - 1
