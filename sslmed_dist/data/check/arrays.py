"""Inspection of sets whose images lie in arrays: CIFAR, STL-10, MedMNIST and packed JPEG archives."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.check.findings import Findings
from sslmed_dist.data.dataset import SPLITS, Split, content_hash
from sslmed_dist.data.exams.exam_archive import HEAD, ExamArchive
from sslmed_dist.data.exams.exam_folder import UprightExam
from sslmed_dist.data.images.medical2d import medmnist
from sslmed_dist.data.images.natural import cifar10, cifar100, decode_jpeg, read_packed
from sslmed_dist.data.images.stl10 import count_images, find_stl10, read_images, stl10
from sslmed_dist.data.npz import archive_names, find_archive, read_archive

STL_PART = 5000  # images of the unlabelled part hashed at a time


def inspect_archive(place: Path, findings: Findings) -> None:
    """An ``.npz``, or the one in a folder: packed JPEG, packed episodes or MedMNIST."""
    path = find_archive(place)
    try:
        names = archive_names(path)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    if HEAD in names:
        return inspect_episodes(path, findings)
    (inspect_packed if "jpeg" in names else inspect_medmnist)(path, findings)


def inspect_episodes(path: Path, findings: Findings) -> None:
    """Packed exams, every array read: how many, grid, spacing, organs, sites, what the superpixels were made with; and
    constant or repeated volumes."""
    findings.lines.append("layout: packed episodes .npz")
    try:
        source = ExamArchive(path)
        scans = [source.read(number, source.organs) for number in source.numbers]
        maps = source.superpixels(scans, source.recipe, None, 1)
        marked = [s for s in scans if source.entries[s.number].organs]
        organs = [source.read_organs(s.number, s.slices.shape, source.organs) for s in marked]
    except ValueError as error:
        findings.problems.append(str(error))
        return
    findings.lines.append(f"exams: {len(scans)}, {len(marked)} with a mask of {', '.join(source.organs)}")
    findings.lines.append(f"slices: {sum(len(scan.slices) for scan in scans)} of {sizes(scans)}")
    unknown = [scan.file for scan in scans if not scan.oriented]
    if unknown:
        findings.lines.append(f"orientation unknown: {len(unknown)} exams")
    if organs:
        counts = [sum(int((one == k + 1).any(axis=(1, 2)).sum()) for one in organs) for k in range(len(source.organs))]
        findings.classes("slices with organ", dict(zip(source.organs, counts, strict=True)))
    sites = source.sites(source.numbers)
    if sites is not None:
        per_site = Counter(sites.tolist())
        findings.lines.append("exams per site: " + ", ".join(f"{site}: {per_site[site]}" for site in sorted(per_site)))
    recipe = ", ".join(f"{name} {value:g}" for name, value in asdict(source.recipe).items())
    found = sum(int(one.max(axis=(1, 2)).sum()) for one in maps)
    versions = ", ".join(f"{name} {value}" for name, value in source.made_by.items())
    findings.lines.append(f"superpixels: {found} ({recipe}; made by {versions})")
    findings.named("all", "constant volumes", [s.file for s in scans if s.slices.min() == s.slices.max()])
    findings.repeats({"all": [(s.file, content_hash(torch.from_numpy(s.slices))) for s in scans]}, "volumes")


def sizes(scans: Sequence[UprightExam]) -> str:
    """The grids of the slices and their spacings, e.g. "256 x 256 pixels, 1.25 x 1.25 x 7.7 mm"."""
    grids = sorted({scan.slices.shape[1:] for scan in scans})
    spacings = sorted({" x ".join(f"{side:.3g}" for side in scan.spacing) for scan in scans})
    return f"{', '.join(f'{h} x {w}' for h, w in grids)} pixels, {'; '.join(spacings)} mm"


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


def inspect_stl10(place: Path, findings: Findings) -> None:
    """STL-10, with its unlabelled images where they are there."""
    findings.lines.append("layout: STL-10")
    digests: dict[str, list[tuple[str, bytes]]] = {}
    parts: tuple[Split, ...] = ("train", "test")
    for split in parts:
        try:
            data = stl10(place, split)
        except ValueError as error:
            findings.problems.append(str(error))
        else:
            digests[split] = inspect_array(findings, split, data.images, data.labels, data.classes)
    path = find_stl10(place) / "unlabeled_X.bin"
    if not path.is_file():
        findings.lines.append("unlabelled: not there")
    else:
        try:
            digests["unlabelled"] = inspect_unlabelled(findings, path)
        except ValueError as error:
            findings.problems.append(str(error))
    findings.repeats(digests, "images")


def inspect_unlabelled(findings: Findings, path: Path) -> list[tuple[str, bytes]]:
    """Note the number of unlabelled images and the constant ones; they are read a block at a time."""
    count = count_images(path)
    findings.lines.append(f"unlabelled: {count} images, 3 x 96 x 96, 8 bit")
    found, constant = [], []
    for first in range(0, count, STL_PART):
        for number, image in enumerate(read_images(path, min(STL_PART, count - first), first), start=first):
            found.append((f"image {number}", content_hash(image)))
            if bool(image.amax() == image.amin()):
                constant.append(f"image {number}")
    findings.named("unlabelled", "constant images", constant)
    return found


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
