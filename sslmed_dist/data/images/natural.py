"""CIFAR-10 and CIFAR-100 as torchvision lays them out on disk, and CIFAR-10 packed as JPEG bytes. Nothing downloads."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.dataset import ArrayDataset, Split, select_split
from sslmed_dist.data.images import jpeg
from sslmed_dist.data.npz import Arrays, find_archive, read_archive
from sslmed_dist.data.pickles import as_array, read_pickle

PACKED = ("jpeg", "offsets", "labels", "split", "class_names")


def cifar10(root: str | Path, split: Split = "train") -> ArrayDataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 train and 10,000 test images uint8 (3, 32, 32), ten classes.

    ``root`` holds ``cifar-10-batches-py``, or is it. ids: the five training batches one after another, then test.
    ``ValueError`` for a missing or damaged file, and for split "val" (there is none: use a hold-out of train).
    """
    folder = find_folder(Path(root), "cifar-10-batches-py")
    files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    return read_batches("cifar10", folder, files, "labels", ("batches.meta", "label_names"), split)


def cifar100(root: str | Path, split: Split = "train") -> ArrayDataset:
    """CIFAR-100 (Krizhevsky 2009) with its 100 fine labels; ``root`` holds ``cifar-100-python``, or is it.

    ids: train 0 ... 49,999, then test. Raises as ``cifar10``.
    """
    folder = find_folder(Path(root), "cifar-100-python")
    files = {"train": ["train"], "test": ["test"]}
    return read_batches("cifar100", folder, files, "fine_labels", ("meta", "fine_label_names"), split)


def cifar10_jpeg(root: str | Path, split: Split = "train") -> ArrayDataset:
    """CIFAR-10 packed as JPEG: an ``.npz`` with "jpeg" (the bytes of all files), "offsets" (N + 1), "labels",
    "split" (0 train, 1 test) and "class_names". Decoded once, to uint8 (N, 3, 32, 32).

    ``root`` is the file, or a folder with exactly one ``.npz`` in it. ids: train in file order, then test.
    ``ValueError`` names the file, and the number of an image that cannot be decoded.
    """
    path = find_archive(Path(root))
    packed = read_packed(path)
    splits = ["train" if code == 0 else "test" for code in packed["split"].tolist()]
    # the file may mix train and test: an id counts all train rows first, then all test rows
    order = np.argsort(packed["split"], kind="stable")  # (N,) row of each id
    chosen = select_split([splits[i] for i in order], split, str(path))
    rows = order[chosen.numpy()].tolist()
    jpeg_bytes, offsets = torch.from_numpy(packed["jpeg"]), packed["offsets"].tolist()
    images = torch.empty(len(rows), 3, 32, 32, dtype=torch.uint8)
    for image, row in zip(images, rows, strict=True):
        image.copy_(decode_jpeg(jpeg_bytes[offsets[row] : offsets[row + 1]], f"{path}: image {row}"))
    labels = torch.from_numpy(packed["labels"].astype(np.int64))[rows]
    names = [str(name) for name in packed["class_names"].tolist()]
    return ArrayDataset(name="cifar10", images=images, labels=labels, classes=names, ids=chosen)


def read_packed(path: Path) -> Arrays:
    """The arrays of a packed JPEG archive. ``ValueError`` naming the file when they are of another type, their lengths
    disagree, or a label or a split is none."""
    packed = read_archive(path, PACKED)
    kinds = {"jpeg": "u", "offsets": "iu", "labels": "iu", "split": "iu", "class_names": "U"}
    for key, kind in kinds.items():
        array = packed[key]
        if array.ndim != 1 or array.dtype.kind not in kind or (key == "jpeg" and array.dtype != np.uint8):
            raise ValueError(f"{path}: {key}: not what a packed set holds, {array.dtype} {array.shape}")
    offsets, count = packed["offsets"], len(packed["labels"])
    if (
        len(offsets) != count + 1
        or len(packed["split"]) != count
        or not 0 <= offsets[0] <= offsets[-1] <= len(packed["jpeg"])
        or bool((offsets[1:] < offsets[:-1]).any())
    ):
        raise ValueError(f"{path}: 'offsets' and 'split' do not match 'jpeg' and 'labels'; the file is damaged")
    for key, most in (("labels", len(packed["class_names"]) - 1), ("split", 1)):
        values = packed[key]
        if count and not 0 <= int(values.min()) <= int(values.max()) <= most:
            raise ValueError(f"{path}: {key} runs from {values.min()} to {values.max()}; allowed: 0 to {most}")
    return packed


def decode_jpeg(data: Tensor, where: str) -> Tensor:
    """One JPEG file (uint8 (bytes,)) as uint8 (3, 32, 32). ``ValueError`` beginning with ``where`` when it is not one.

    torchvision's decoder gives the bits that Pillow gives (both are libjpeg-turbo) in a fifth of the time.
    """
    image = jpeg.decode_jpeg(data, 3, where)
    if image.shape != (3, 32, 32):
        raise ValueError(f"{where} is {tuple(image.shape)}, expected (3, 32, 32)")
    return image


def find_folder(root: Path, name: str) -> Path:
    """``root/name``, or ``root`` when it already is that folder. ``ValueError`` when neither exists."""
    for folder in (root / name, root):
        if folder.name == name and folder.is_dir():
            return folder
    raise ValueError(f"{root}: holds no folder {name}; unpack the archive there (nothing is downloaded)")


def read_batches(
    name: str, folder: Path, files: dict[str, list[str]], labels_key: str, meta: tuple[str, str], split: str
) -> ArrayDataset:
    """The images of one ``split`` from the pickles of a CIFAR archive; ids count from the first training image.

    ``files`` has the file names of each split, ``meta`` a file and its key for the class names. ``ValueError`` names a
    file that is missing or damaged.
    """
    classes = read_names(folder / meta[0], meta[1])
    splits = [key for key, group in files.items() for _ in group]
    paths = [folder / file for group in files.values() for file in group]
    wanted_files = set(select_split(splits, split, str(folder)).tolist())
    images, labels, ids, first_id = [], [], [], 0
    # files before a wanted one are read for their number of images only; those after the last are not opened
    for file_index, path in enumerate(paths):
        if file_index > max(wanted_files):
            break
        batch = read_batch(path, ("data", labels_key))
        data, targets = as_array(batch["data"], path, "data"), as_array(batch[labels_key], path, labels_key)
        if data.dtype != np.uint8 or data.ndim != 2 or targets.ndim != 1 or data.shape != (len(targets), 3072):
            raise ValueError(f"{path}: expected uint8 (N, 3072) and N labels, got {data.dtype} {data.shape}")
        if len(targets) and targets.dtype.kind not in "iu":
            raise ValueError(f"{path}: {labels_key}: expected whole numbers, got {targets.dtype}")
        if len(targets) and not 0 <= targets.min() <= targets.max() < len(classes):
            raise ValueError(f"{path}: labels {targets.min()} to {targets.max()}, allowed 0 to {len(classes) - 1}")
        if file_index in wanted_files:
            # a row is the red, green and blue plane, each row by row
            images.append(torch.from_numpy(data.reshape(-1, 3, 32, 32).copy()))
            labels.append(torch.from_numpy(targets.astype(np.int64)))
            ids.append(torch.arange(first_id, first_id + len(targets)))
        first_id += len(targets)
    return ArrayDataset(
        name=name, images=torch.cat(images), labels=torch.cat(labels), classes=classes, ids=torch.cat(ids)
    )


def read_batch(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """The dict in a CIFAR pickle with text keys. ``ValueError`` when missing, damaged, hostile or without ``keys``."""
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a CIFAR batch: holds a {type(content).__name__}")
    content = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    for key in keys:
        if key not in content:
            raise ValueError(f"{path}: not a CIFAR batch: no {key!r} in it")
    return content


def read_names(path: Path, key: str) -> list[str]:
    """The class names in a CIFAR pickle. ``ValueError`` when they are no list of texts."""
    names = read_batch(path, (key,))[key]
    if not isinstance(names, list) or not names or not all(isinstance(name, (str, bytes)) for name in names):
        raise ValueError(f"{path}: {key}: expected a list of class names")
    return [name.decode("latin1") if isinstance(name, bytes) else name for name in names]
