"""``inspect``: what a file or folder of images holds, and what is wrong with it.

The report is for the owner of the data at their own terminal: it may name files, but it never prints header text of
medical formats, where patients are named.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.abdominal import NAME
from sslmed_dist.data.archive import archive_names, find_archive, read_archive
from sslmed_dist.data.check_exams import inspect_mrnet, inspect_volumes
from sslmed_dist.data.dataset import SPLITS, content_hash
from sslmed_dist.data.findings import Findings
from sslmed_dist.data.folder import SUFFIXES, open_picture, read_tree, split_folders
from sslmed_dist.data.medical2d import medmnist
from sslmed_dist.data.mrnet import FOLDERS
from sslmed_dist.data.natural import cifar10, cifar100, decode_jpeg, read_packed

LAYOUTS = "CIFAR-10 or -100 (torchvision), packed JPEG .npz, MedMNIST .npz, image folder, NIfTI exams, MRNet"
PLANES = ("axial", "coronal", "sagittal")
BLOCK = 1024  # decoded images of a folder held at a time


def inspect(path: str | Path) -> tuple[list[str], list[str]]:
    """(report lines, problems): the layout of ``path``, samples per split and class, sizes, channels, depth, geometry;
    and corrupt, constant, repeated or unlabelled images, empty classes, masks that do not fit.

    An empty list of problems means that nothing about the set needs attention. ``ValueError`` when ``path`` does not
    exist or is none of the layouts that can be read.
    """
    place = Path(path)
    if not place.exists():
        raise ValueError(f"{place}: no such file or folder")
    findings = Findings()
    recognise(place)(place, findings)
    return findings.lines, findings.problems


def recognise(place: Path) -> Callable[[Path, Findings], None]:
    """The function that inspects the layout of ``place``. ``ValueError`` when it is none of ``LAYOUTS``."""
    if place.is_file() and place.suffix == ".npz":
        return inspect_archive
    if place.is_dir():
        if any(folder.name.startswith("cifar-") for folder in (place, *place.glob("cifar-*"))):
            return inspect_cifar
        if any(NAME.fullmatch(entry.name) for entry in place.iterdir()):
            return inspect_volumes
        if any((place / split / plane).is_dir() for split in FOLDERS.values() for plane in PLANES):
            return inspect_mrnet
        if len(list(place.glob("*.npz"))) == 1:
            return inspect_archive
        if any(entry.suffix.lower() in SUFFIXES for entry in place.rglob("*")):
            return inspect_images
    raise ValueError(f"{place}: not a layout that can be read; allowed: {LAYOUTS}")


def inspect_archive(place: Path, findings: Findings) -> None:
    """An ``.npz``, or the one in a folder: packed JPEG or MedMNIST."""
    path = find_archive(place)
    try:
        packed = "jpeg" in archive_names(path)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    (inspect_packed if packed else inspect_medmnist)(path, findings)


def inspect_cifar(place: Path, findings: Findings) -> None:
    """CIFAR-10 or CIFAR-100 as torchvision unpacks it."""
    coarse = place.name == "cifar-100-python" or (place / "cifar-100-python").is_dir()
    findings.lines.append(f"layout: CIFAR-{100 if coarse else 10} (torchvision)")
    digests = {}
    for split in ("train", "test"):
        try:
            data = (cifar100 if coarse else cifar10)(place, split)
        except ValueError as error:
            findings.problems.append(str(error))
        else:
            digests[split] = inspect_array(findings, split, data.images, data.labels, data.classes)
    findings.repeats(digests, "images")


def inspect_medmnist(place: Path, findings: Findings) -> None:
    """A MedMNIST archive, duplicates not dropped."""
    findings.lines.append("layout: MedMNIST .npz")
    try:
        whole = medmnist(place, "all", deduplicate=False)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    digests = {}
    start = 0
    for split in (name for name in SPLITS if name in whole.dropped):
        count = len(read_archive(place, (f"{split}_images",))[f"{split}_images"])
        rows = slice(start, start + count)
        digests[split] = inspect_array(findings, split, whole.images[rows], whole.labels[rows], whole.classes)
        start += count
    findings.repeats(digests, "images")


def inspect_packed(place: Path, findings: Findings) -> None:
    """CIFAR-10 packed as JPEG: every image is decoded on its own, so that all corrupt ones are found."""
    findings.lines.append("layout: packed JPEG .npz")
    try:
        packed = read_packed(place)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    offsets, blob = packed["offsets"].tolist(), torch.from_numpy(packed["jpeg"])
    digests = {}
    for code, split in enumerate(("train", "test")):
        images, rows, corrupt = [], [], []
        for row in np.nonzero(packed["split"] == code)[0].tolist():
            try:
                images.append(decode_jpeg(blob[offsets[row] : offsets[row + 1]], str(row)))
                rows.append(row)
            except ValueError:
                corrupt.append(f"image {row}")
        findings.named(split, "corrupt images", corrupt)
        if images:
            labels = torch.from_numpy(packed["labels"].astype(np.int64))[rows]
            names = [str(name) for name in packed["class_names"].tolist()]
            digests[split] = inspect_array(findings, split, torch.stack(images), labels, names)
    findings.repeats(digests, "images")


def inspect_array(
    findings: Findings, split: str, images: Tensor, labels: Tensor, classes: Sequence[str]
) -> list[tuple[str, bytes]]:
    """Note size, depth, classes and constant images of one split; return (name, content hash) of each image."""
    count, channels, height, width = images.shape
    findings.lines.append(f"{split}: {count} images, {channels} x {height} x {width}, 8 bit")
    if count == 0:
        findings.problems.append(f"{split}: holds no image")
        return []
    totals = torch.bincount(labels, minlength=len(classes)) if labels.ndim == 1 else labels.sum(0).to(torch.int64)
    findings.classes(split, dict(zip(classes, totals.tolist(), strict=True)))
    flat = images.reshape(count, -1)
    constant = torch.nonzero(flat.amax(1) == flat.amin(1))[:, 0]
    findings.named(split, "constant images", [f"image {i}" for i in constant.tolist()])
    return [(f"image {i}", content_hash(image)) for i, image in enumerate(images)]


def inspect_images(place: Path, findings: Findings) -> None:
    """A folder of image files, by split and class folder."""
    findings.lines.append("layout: image folder")
    places = split_folders(place)
    trees = {name: read_tree(place / name) for name in places} or {"all": read_tree(place)}
    classes = sorted({name for tree in trees.values() for name in tree} - {""})
    digests = {}
    for split, tree in trees.items():
        loose = len(tree.get("", ()))
        if classes:
            findings.classes(split, {name: len(tree.get(name, ())) for name in classes})
        if loose and classes:
            findings.problems.append(f"{split}: {loose} images lie outside of any class folder")
        elif loose:
            findings.lines.append(f"{split}: {loose} images without labels")
        digests[split] = inspect_files(findings, split, place, [path for kind in tree.values() for path in kind])
    other = Counter(p.suffix or p.name for p in place.rglob("*") if p.is_file() and p.suffix.lower() not in SUFFIXES)
    if other:
        findings.lines.append(
            "left aside: " + ", ".join(f"{count} {suffix}" for suffix, count in sorted(other.items()))
        )
    findings.repeats(digests, "images")


def inspect_files(findings: Findings, split: str, root: Path, files: Sequence[Path]) -> list[tuple[str, bytes]]:
    """Decode every file of one split; note sizes, kinds of pixels, and corrupt and constant ones."""
    sizes: list[tuple[int, int]] = []
    kinds: Counter[str] = Counter()
    corrupt, constant, digests = [], [], []
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(files), BLOCK):
            block = files[start : start + BLOCK]
            for path, result in zip(block, pool.map(examine_file, block), strict=True):
                name = path.relative_to(root).as_posix()
                if isinstance(result, str):
                    corrupt.append(result)
                    continue
                size, kind, flat, digest = result
                sizes.append(size)
                kinds[kind] += 1
                digests.append((name, digest))
                if flat:
                    constant.append(name)
    if sizes:
        widths, heights = zip(*sizes, strict=True)
        span = f"width {min(widths)} to {max(widths)}, height {min(heights)} to {max(heights)}"
        findings.lines.append(f"{split}: {span}; " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    if len({"16" in kind for kind in kinds}) > 1:
        findings.problems.append(f"{split}: 8-bit and 16-bit images are mixed")
    findings.problems.extend(f"{split}: {line}" for line in corrupt)
    findings.named(split, "constant images", constant)
    return digests


def examine_file(path: Path) -> tuple[tuple[int, int], str, bool, bytes] | str:
    """((width, height), kind of pixels, constant?, content hash) of an image file, or what is wrong with it."""
    try:
        picture, deep = open_picture(path)
    except ValueError as error:
        return str(error)
    pixels = torch.from_numpy(np.array(picture).astype(np.int32))
    colours = 1 if pixels.ndim == 2 else pixels.shape[2]
    kind = f"{colours} channel{'s' if colours > 1 else ''} {16 if deep else 8} bit"
    return picture.size, kind, bool(pixels.amax() == pixels.amin()), content_hash(pixels)
