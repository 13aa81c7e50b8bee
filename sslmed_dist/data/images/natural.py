"""CIFAR-10 and CIFAR-100 as torchvision lays them out on disk, and CIFAR-10 packed as JPEG bytes. Nothing downloads."""

import codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.dataset import ArrayDataset, Split, select_split
from sslmed_dist.data.npz import Arrays, find_archive, read_archive

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
    """The arrays of a packed JPEG archive. ``ValueError`` naming the file when their lengths disagree."""
    packed = read_archive(path, PACKED)
    offsets, count = packed["offsets"], len(packed["labels"])
    if (
        len(offsets) != count + 1
        or len(packed["split"]) != count
        or not 0 <= offsets[0] <= offsets[-1] <= len(packed["jpeg"])
    ):
        raise ValueError(f"{path}: 'offsets' and 'split' do not match 'jpeg' and 'labels'; the file is damaged")
    return packed


def decode_jpeg(data: Tensor, where: str) -> Tensor:
    """One JPEG file (uint8 (bytes,)) as uint8 (3, 32, 32). ``ValueError`` beginning with ``where`` when it is not one.

    torchvision's decoder gives the bits that Pillow gives (both are libjpeg-turbo) in a fifth of the time.
    """
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as decode

    try:
        image: Tensor = decode(data, ImageReadMode.RGB)
    except RuntimeError as error:
        raise ValueError(f"{where} is corrupt: {str(error).splitlines()[0].rsplit(', ', 1)[-1]}") from error
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
    classes = [str(entry) for entry in read_pickle(folder / meta[0], (meta[1],))[meta[1]]]
    splits = [key for key, group in files.items() for _ in group]
    paths = [folder / file for group in files.values() for file in group]
    wanted_files = set(select_split(splits, split, str(folder)).tolist())
    images, labels, ids, first_id = [], [], [], 0
    # files before a wanted one are read for their number of images only; those after the last are not opened
    for file_index, path in enumerate(paths):
        if file_index > max(wanted_files):
            break
        batch = read_pickle(path, ("data", labels_key))
        data, targets = np.asarray(batch["data"]), np.asarray(batch[labels_key], dtype=np.int64)
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape != (len(targets), 3072) or targets.ndim != 1:
            raise ValueError(f"{path}: expected uint8 (N, 3072) and N labels, got {data.dtype} {data.shape}")
        if len(targets) and not 0 <= targets.min() <= targets.max() < len(classes):
            raise ValueError(f"{path}: labels {targets.min()} to {targets.max()}, allowed 0 to {len(classes) - 1}")
        if file_index in wanted_files:
            # a row is the red, green and blue plane, each row by row
            images.append(torch.from_numpy(data.reshape(-1, 3, 32, 32).copy()))
            labels.append(torch.from_numpy(targets))
            ids.append(torch.arange(first_id, first_id + len(targets)))
        first_id += len(targets)
    return ArrayDataset(
        name=name, images=torch.cat(images), labels=torch.cat(labels), classes=classes, ids=torch.cat(ids)
    )


def encode_latin1(text: str, encoding: str) -> bytes:
    """Stands for ``codecs.encode``, which old pickles of bytes call with "latin1"; no other codec is let through."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding} is not allowed")
    return codecs.encode(text, "latin1")


class ArrayUnpickler(pickle.Unpickler):
    """Reads plain containers, bytes and numpy arrays only, for a pickle can otherwise run any program it names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return encode_latin1
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        # numpy's private functions that rebuild an array, by their names of numpy 1 (core) and 2 (_core)
        if module.replace("numpy._core", "numpy.core") == "numpy.core.multiarray" and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module.replace("numpy._core", "numpy.core") == "numpy.core.numeric" and name == "_frombuffer":
            return np.empty(0).__reduce_ex__(5)[0]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def read_pickle(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """The dict in a CIFAR pickle with text keys. ``ValueError`` when missing, damaged, hostile or without ``keys``."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            content = ArrayUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(f"{path}: not a CIFAR batch: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a CIFAR batch: holds a {type(content).__name__}")
    content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    for key in keys:
        if key not in content:
            raise ValueError(f"{path}: not a CIFAR batch: no {key!r} in it")
    return content
