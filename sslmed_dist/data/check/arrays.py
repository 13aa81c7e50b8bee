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
from sslmed_dist.printable import plural

STL_PART = 5000  # images of the unlabelled part hashed at a time


def inspect_archive(root: Path, findings: Findings) -> None:
    """An ``.npz`` file, or the only one in a folder: packed JPEG, packed episodes or MedMNIST."""
    path = find_archive(root)
    try:
        names = archive_names(path)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    if HEAD in names:
        return inspect_episodes(path, findings)
    (inspect_packed if "jpeg" in names else inspect_medmnist)(path, findings)


def inspect_episodes(path: Path, findings: Findings) -> None:
    """Packed exams, every array of which is read: their number, grid, spacing, organs, sites and superpixels; and as
    problems, constant or repeated volumes."""
    findings.lines.append("layout: packed episodes .npz")
    try:
        source = ExamArchive(path)
        scans = [source.read(exam_number, source.table(source.organs)) for exam_number in source.numbers]
        superpixel_maps = source.superpixels(scans, source.recipe, None, 1)
        annotated = [scan for scan in scans if source.entries[scan.number].organs]
        organ_masks = [source.read_organs(scan.number, scan.slices.shape, source.organs) for scan in annotated]
    except ValueError as error:
        findings.problems.append(str(error))
        return
    findings.lines.append(f"exams: {len(scans)}, {len(annotated)} with a mask of {', '.join(source.organs)}")
    findings.lines.append(f"slices: {sum(len(scan.slices) for scan in scans)} of {sizes(scans)}")
    unknown = [scan.file for scan in scans if not scan.oriented]
    if unknown:
        findings.lines.append(f"orientation unknown: {plural(len(unknown), 'exam')}")
    if organ_masks:
        # slices in which organ k (value k + 1 of a mask) has at least one voxel
        counts = [
            sum(int((mask == k + 1).any(axis=(1, 2)).sum()) for mask in organ_masks) for k in range(len(source.organs))
        ]
        findings.classes("slices with organ", dict(zip(source.organs, counts, strict=True)))
    sites = source.sites(source.numbers)
    if sites is not None:
        per_site = Counter(sites.tolist())
        findings.lines.append("exams per site: " + ", ".join(f"{site}: {per_site[site]}" for site in sorted(per_site)))
    recipe = ", ".join(f"{name} {value:g}" for name, value in asdict(source.recipe).items())
    # a map numbers the superpixels of each slice from 1, so its maximum per slice is their number
    superpixel_count = sum(int(exam_map.max(axis=(1, 2)).sum()) for exam_map in superpixel_maps)
    versions = ", ".join(f"{name} {value}" for name, value in source.made_by.items())
    findings.lines.append(f"superpixels: {superpixel_count} ({recipe}; made by {versions})")
    findings.named(
        "all",
        ("constant volume", "constant volumes"),
        [scan.file for scan in scans if scan.slices.min() == scan.slices.max()],
    )
    findings.repeats({"all": [(scan.file, content_hash(torch.from_numpy(scan.slices))) for scan in scans]}, "volumes")


def sizes(scans: Sequence[UprightExam]) -> str:
    """The grids of the slices and their spacings, e.g. "256 x 256 pixels, 1.25 x 1.25 x 7.7 mm"."""
    grids = sorted({scan.slices.shape[1:] for scan in scans})
    spacings = sorted({" x ".join(f"{side:.3g}" for side in scan.spacing) for scan in scans})
    return f"{', '.join(f'{h} x {w}' for h, w in grids)} pixels, {'; '.join(spacings)} mm"


def inspect_cifar(root: Path, findings: Findings) -> None:
    """CIFAR-10 or CIFAR-100 as torchvision unpacks it."""
    coarse = root.name == "cifar-100-python" or (root / "cifar-100-python").is_dir()
    findings.lines.append(f"layout: CIFAR-{100 if coarse else 10} (torchvision)")
    digests = {}
    for split in ("train", "test"):
        try:
            dataset = (cifar100 if coarse else cifar10)(root, split)
        except ValueError as error:
            findings.problems.append(str(error))
        else:
            digests[split] = inspect_array(findings, split, dataset.images, dataset.labels, dataset.classes)
    findings.repeats(digests, "images")


def inspect_stl10(root: Path, findings: Findings) -> None:
    """STL-10, with its unlabelled images where they are there."""
    findings.lines.append("layout: STL-10")
    digests: dict[str, list[tuple[str, bytes]]] = {}
    parts: tuple[Split, ...] = ("train", "test")
    for split in parts:
        try:
            dataset = stl10(root, split)
        except ValueError as error:
            findings.problems.append(str(error))
        else:
            digests[split] = inspect_array(findings, split, dataset.images, dataset.labels, dataset.classes)
    path = find_stl10(root) / "unlabeled_X.bin"
    if not path.is_file():
        findings.lines.append("unlabelled: not there")
    else:
        try:
            digests["unlabelled"] = inspect_unlabelled(findings, path)
        except ValueError as error:
            findings.problems.append(str(error))
    findings.repeats(digests, "images")


def inspect_unlabelled(findings: Findings, path: Path) -> list[tuple[str, bytes]]:
    """Note the number of unlabelled images and the constant ones; return (name, content hash) of each image.

    The images are read ``STL_PART`` at a time.
    """
    count = count_images(path)
    findings.lines.append(f"unlabelled: {plural(count, 'image')}, 3 x 96 x 96, 8 bit")
    digests, constant = [], []
    for first in range(0, count, STL_PART):
        for image_number, image in enumerate(read_images(path, min(STL_PART, count - first), first), start=first):
            digests.append((f"image {image_number}", content_hash(image)))
            if bool(image.amax() == image.amin()):
                constant.append(f"image {image_number}")
    findings.named("unlabelled", ("constant image", "constant images"), constant)
    return digests


def inspect_medmnist(path: Path, findings: Findings) -> None:
    """A MedMNIST archive, duplicates not dropped."""
    findings.lines.append("layout: MedMNIST .npz")
    try:
        dataset = medmnist(path, "all", deduplicate=False)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    digests = {}
    start = 0
    # the dataset holds its splits one after another; ``dropped`` names those that the file has
    for split in (name for name in SPLITS if name in dataset.dropped):
        count = len(read_archive(path, (f"{split}_labels",))[f"{split}_labels"])  # as many as images
        rows = slice(start, start + count)
        digests[split] = inspect_array(findings, split, dataset.images[rows], dataset.labels[rows], dataset.classes)
        start += count
    findings.repeats(digests, "images")


def inspect_packed(path: Path, findings: Findings) -> None:
    """CIFAR-10 packed as JPEG: every image is decoded on its own, so that all corrupt ones are found."""
    findings.lines.append("layout: packed JPEG .npz")
    try:
        arrays = read_packed(path)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    offsets, jpeg_bytes = arrays["offsets"].tolist(), torch.from_numpy(arrays["jpeg"])
    digests = {}
    for code, split in enumerate(("train", "test")):
        images, rows, corrupt = [], [], []
        for row in np.nonzero(arrays["split"] == code)[0].tolist():
            try:
                images.append(decode_jpeg(jpeg_bytes[offsets[row] : offsets[row + 1]], str(row)))
                rows.append(row)
            except ValueError:
                corrupt.append(f"image {row}")
        findings.named(split, ("corrupt image", "corrupt images"), corrupt)
        if images:
            labels = torch.from_numpy(arrays["labels"].astype(np.int64))[rows]
            names = [str(name) for name in arrays["class_names"].tolist()]
            digests[split] = inspect_array(findings, split, torch.stack(images), labels, names)
    findings.repeats(digests, "images")


def inspect_array(
    findings: Findings, split: str, images: Tensor, labels: Tensor, classes: Sequence[str]
) -> list[tuple[str, bytes]]:
    """Note size, depth, classes and constant images of one split; return (name, content hash) of each image.

    ``images`` uint8 (N, C, H, W); ``labels`` int64 (N,), or (N, L) of 0 and 1.
    """
    count, channels, height, width = images.shape
    findings.lines.append(f"{split}: {plural(count, 'image')}, {channels} x {height} x {width}, 8 bit")
    if count == 0:
        findings.problems.append(f"{split}: holds no image")
        return []
    # samples per class, (number of classes,); a multi-label sample counts for every class that it shows
    class_counts = torch.bincount(labels, minlength=len(classes)) if labels.ndim == 1 else labels.sum(0).to(torch.int64)
    findings.classes(split, dict(zip(classes, class_counts.tolist(), strict=True)))
    pixels = images.reshape(count, -1)
    # an image is constant when its largest and smallest pixel agree
    constant = torch.nonzero(pixels.amax(1) == pixels.amin(1))[:, 0]
    findings.named(split, ("constant image", "constant images"), [f"image {i}" for i in constant.tolist()])
    return [(f"image {i}", content_hash(image)) for i, image in enumerate(images)]
