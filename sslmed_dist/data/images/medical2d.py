"""MedMNIST archives: small 2-D medical images with their published splits."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.dataset import SPLITS, ArrayDataset, Split, duplicates, select_split
from sslmed_dist.data.npz import Arrays, archive_names, find_archive, read_archive
from sslmed_dist.printable import excerpt

MOST_CLASSES = 2**16  # names are made for all of them


def medmnist(
    root: str | Path, split: Split = "train", deduplicate: bool = True, classes: tuple[str, ...] | None = None
) -> ArrayDataset:
    """Any 2-D MedMNIST ``.npz`` (Yang et al. 2023): images uint8 (N, C, H, W) with one label or several.

    ``root`` is the file, or a folder with exactly one ``.npz`` in it. The file holds "{train,val,test}_images" uint8
    (N, H, W) or (N, H, W, 3), and "..._labels" (N, 1), or (N, L) of 0 and 1 for a multi-label set. "..._sites" (N,),
    which phantoms have, becomes ``sites``. ``classes`` names the labels, for the file does not.
    ``deduplicate`` drops every image equal to an earlier one, over all splits (train before val before test), so that
    no picture is in two splits; ``dropped`` counts them per split. ids are positions in the complete set, whether or
    not duplicates are dropped.
    ``ValueError`` names the file and what is wrong in it.
    """
    path = find_archive(Path(root))
    names = archive_names(path)
    present = [name for name in SPLITS if f"{name}_images" in names]
    if not present:
        held = excerpt(", ".join(names), 400)
        raise ValueError(f"{path}: not a MedMNIST archive: no 'train_images'; it holds {held}")
    # only what is known is read, whatever else the file holds
    known = [f"{name}_{part}" for name in present for part in ("images", "labels", "sites")]
    arrays = read_archive(path, [key for key in known if key in names])
    # the complete set: all splits one after another
    images = joined([to_channels(arrays[f"{name}_images"], f"{path}: {name}_images") for name in present], path)
    labels = joined([read_labels(arrays, name, path) for name in present], path)  # (N, columns)
    if len(images) == 0:
        raise ValueError(f"{path}: holds no image")
    splits = [name for name in present for _ in range(len(arrays[f"{name}_images"]))]
    # repeats are looked for in all splits, before one of them is chosen
    repeated = set(duplicates(images).tolist()) if deduplicate else set()
    chosen = select_split(splits, split, str(path))
    chosen = torch.tensor([i for i in chosen.tolist() if i not in repeated], dtype=torch.int64)
    counts = Counter(splits[i] for i in repeated)
    # one column holds class numbers; several hold 0 and 1, one column per class
    single = labels.shape[1] == 1
    targets = labels[:, 0].to(torch.int64) if single else labels.to(torch.float32)
    class_count = (int(targets.max()) + 1) if single else labels.shape[1]
    if classes is not None and len(classes) != class_count:
        raise ValueError(f"{path}: classes names {len(classes)} classes, the labels have {class_count}")
    return ArrayDataset(
        name=path.stem,
        images=images[chosen],
        labels=targets[chosen],
        classes=classes or [str(i) for i in range(class_count)],
        ids=chosen,
        sites=read_sites(arrays, present, path, chosen),
        dropped={name: counts[name] for name in present},
    )


def joined(parts: list[Tensor], path: Path) -> Tensor:
    """The parts (n, ...) one after another. ``ValueError`` naming the file when they differ in anything but n."""
    shapes = sorted({tuple(part.shape[1:]) for part in parts})
    if len(shapes) > 1:
        raise ValueError(f"{path}: its splits differ in shape: {' and '.join(map(str, shapes))}")
    return torch.cat(parts)


def to_channels(array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]", where: str) -> Tensor:
    """uint8 (N, H, W) or (N, H, W, 3) as a tensor (N, C, H, W). ``ValueError`` beginning with ``where`` for another
    shape or type."""
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 3):
        raise ValueError(f"{where}: expected uint8 (N, H, W) or (N, H, W, 3), got {array.dtype} {array.shape}")
    images = torch.from_numpy(array)
    return images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def read_labels(arrays: Arrays, name: str, path: Path) -> Tensor:
    """The labels (N, columns) int64 of one split. ``ValueError`` when they do not fit the images."""
    key, count = f"{name}_labels", len(arrays[f"{name}_images"])
    if key not in arrays:
        raise ValueError(f"{path}: no {key!r} beside {name}_images")
    stored = arrays[key]
    if stored.ndim not in (1, 2) or len(stored) != count or stored.dtype.kind not in "iu" or 0 in stored.shape[1:]:
        raise ValueError(f"{path}: {key} is {stored.dtype} {stored.shape}, expected integers for {count} images")
    labels = stored if stored.ndim == 2 else stored[:, None]
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or (labels.shape[1] > 1 and high > 1):
        raise ValueError(f"{path}: {key} runs from {low} to {high}; allowed: 0, 1, ... or, with columns, 0 and 1")
    if high >= MOST_CLASSES or labels.shape[1] > MOST_CLASSES:
        most = max(high + 1, labels.shape[1])
        raise ValueError(f"{path}: {key} names {most:,} classes; allowed: at most {MOST_CLASSES:,}")
    return torch.from_numpy(labels.astype(np.int64))


def read_sites(arrays: Arrays, present: list[str], path: Path, chosen: Tensor) -> Tensor | None:
    """Site numbers int64 (n,) of the ``chosen`` samples, None when the file has none. ``ValueError`` for a wrong
    count, and for what is no site number."""
    keys = [f"{name}_sites" for name in present]
    if not any(key in arrays for key in keys):
        return None
    for key, name in zip(keys, present, strict=True):
        stored = arrays.get(key)
        if stored is None or stored.shape != (len(arrays[f"{name}_images"]),) or stored.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: {key} is missing or does not have one number per image: whole numbers are expected"
            )
        if len(stored) and not 0 <= int(stored.min()) <= int(stored.max()) < 2**62:
            raise ValueError(f"{path}: {key} runs from {stored.min()} to {stored.max()}; allowed: 0 and more")
    return torch.from_numpy(np.concatenate([arrays[key] for key in keys]).astype(np.int64))[chosen]
