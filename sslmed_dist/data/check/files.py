"""Inspection of sets of image files: folders by class, the layouts that list their files, and packed sets."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from sslmed_dist.atomic_files import sha256
from sslmed_dist.data.check.findings import Findings
from sslmed_dist.data.dataset import SPLITS, content_hash
from sslmed_dist.data.images.decode import open_picture
from sslmed_dist.data.images.files import Listing
from sslmed_dist.data.images.folder import read_trees, require_classes, split_folders
from sslmed_dist.data.images.packed import Packed
from sslmed_dist.data.images.shards import open_shard, read_summary
from sslmed_dist.data.images.walk import said
from sslmed_dist.printable import plural

STRIP = 2**20  # pixels of an image examined at a time
BLOCK = 1024  # files of a folder examined at a time
MANY = 20  # classes counted one by one


def inspect_images(root: Path, findings: Findings) -> None:
    """A folder of image files, by split and class folder."""
    findings.lines.append("layout: image folder")
    split_names = split_folders(root)
    trees, aside = read_trees(root, split_names)
    if not split_names:
        try:
            require_classes(root)
        except ValueError as error:
            findings.problems.append(str(error))
    classes = sorted({kind for tree in trees.values() for kind in tree} - {""})
    digests = {}
    for split, tree in trees.items():
        loose = len(tree.get("", ()))
        if classes:
            findings.classes(split, {kind: len(tree.get(kind, ())) for kind in classes})
        if loose and classes:
            findings.problems.append(f"{split}: {loose} images lie outside of any class folder")
        elif loose:
            findings.lines.append(f"{split}: {plural(loose, 'image')} without labels")
        digests[split] = inspect_files(findings, split, root, [path for paths in tree.values() for path in paths])
    if aside:
        findings.lines.append(f"left aside: {said(aside)}")
    findings.repeats(digests, "images")


def inspect_listing(title: str, read: Callable[[Path], Listing]) -> Callable[[Path, Findings], None]:
    """The inspection of a layout that lists its files with their labels and splits (``read`` gives the listing).

    Beside what ``inspect_files`` finds it notes listed files that are missing, and patients in two splits.
    """

    def inspect(root: Path, findings: Findings) -> None:
        findings.lines.append(f"layout: {title}")
        try:
            listing = read(root)
        except ValueError as error:
            findings.problems.append(str(error))
            return
        missing_rows = set(listing.missing())
        digests, splits_per_patient = {}, Counter[int]()
        for split in (name for name in SPLITS if name in listing.splits):
            rows = [i for i, name in enumerate(listing.splits) if name == split]
            findings.lines.append(f"{split}: {plural(len(rows), 'image')}")
            count_classes(findings, split, listing.classes, [listing.labels[i] for i in rows])
            findings.named(
                split,
                ("listed file is missing", "listed files are missing"),
                [listing.names[i] for i in rows if i in missing_rows],
            )
            files = [listing.root / listing.names[i] for i in rows if i not in missing_rows]
            digests[split] = inspect_files(findings, split, listing.root, files)
            if listing.groups is not None:
                patients = {listing.groups[i] for i in rows}
                findings.lines.append(f"{split}: {plural(len(patients), 'patient')}")
                splits_per_patient.update(patients)
        findings.named(
            "patients",
            ("in more than one split",) * 2,
            [str(key) for key, count in splits_per_patient.items() if count > 1],
        )
        findings.repeats(digests, "images")

    return inspect


def count_classes(findings: Findings, split: str, classes: Sequence[str], labels: Iterable[int]) -> None:
    """Note the samples per class; of more than ``MANY`` classes only the range, and the classes without any."""
    label_counts = Counter(labels)
    counts = {name: label_counts[code] for code, name in enumerate(classes)}
    if len(counts) <= MANY:
        findings.classes(split, counts)
        return
    values = counts.values()
    findings.lines.append(f"{split}: {len(counts)} classes of {min(values)} to {max(values)} images")
    findings.named(
        split,
        ("class without a sample", "classes without a sample"),
        [name for name, count in counts.items() if count == 0],
    )


def inspect_pack(root: Path, findings: Findings) -> None:
    """A packed set: compare every shard with its SHA-256, then decode every image."""
    findings.lines.append("layout: packed set")
    try:
        summary = read_summary(root)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    form, short, source = summary["format"], summary["short"], summary["source"]["name"]
    findings.lines.append(f"{plural(len(summary['shards']), 'shard')}, {form}, short side {short}, of {source}")
    for shard_entry in summary["shards"]:
        try:
            blob, _ = open_shard(root, shard_entry, summary["fingerprint"])
            if sha256(blob) != shard_entry["sha256"]:
                raise ValueError(f"{blob}: its bytes are not those that were packed (SHA-256 differs)")
        except ValueError as error:
            findings.problems.append(str(error))
    if not findings.problems:
        inspect_packed_images(root, findings)


def inspect_packed_images(root: Path, findings: Findings) -> None:
    """Decode every image of a packed set; note classes, and corrupt, constant and repeated ones."""
    digests: dict[str, list[tuple[str, bytes]]] = {}
    all_splits = Packed(root, "all", workers=0)
    for split in all_splits.splits:
        dataset = Packed(root, split, workers=0)
        corrupt, constant, digests[split] = [], [], []
        for position in range(len(dataset)):
            name = f"image {int(dataset.ids[position])}"
            try:
                image = dataset.read(torch.tensor([position]))[0]
            except ValueError:
                corrupt.append(name)
                continue
            digests[split].append((name, content_hash(image)))
            if bool(image.amax() == image.amin()):
                constant.append(name)
        findings.lines.append(
            f"{split}: {plural(len(dataset), 'image')}, {dataset.channels} x {dataset.size} x {dataset.size}, 8 bit"
        )
        count_classes(findings, split, dataset.classes, dataset.labels.tolist())
        findings.named(split, ("corrupt image", "corrupt images"), corrupt)
        findings.named(split, ("constant image", "constant images"), constant)
    findings.repeats(digests, "images")


def inspect_files(findings: Findings, split: str, root: Path, files: Sequence[Path]) -> list[tuple[str, bytes]]:
    """Decode every file of one split; note sizes, kinds of pixels, corrupt and constant files. Return (name, content
    hash) of each readable file."""
    sizes: list[tuple[int, int]] = []
    kinds: Counter[str] = Counter()
    corrupt, constant, digests = [], [], []
    # two threads decode; a block at a time bounds the results that wait
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(files), BLOCK):
            block = files[start : start + BLOCK]
            for path, result in zip(block, pool.map(examine_file, block), strict=True):
                name = path.relative_to(root).as_posix()
                if isinstance(result, str):
                    corrupt.append(result)
                    continue
                size, kind, is_constant, digest = result
                sizes.append(size)
                kinds[kind] += 1
                digests.append((name, digest))
                if is_constant:
                    constant.append(name)
    if sizes:
        widths, heights = zip(*sizes, strict=True)
        span = f"width {min(widths)} to {max(widths)}, height {min(heights)} to {max(heights)}"
        findings.lines.append(f"{split}: {span}; " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    if len({"16" in kind for kind in kinds}) > 1:
        findings.problems.append(f"{split}: 8-bit and 16-bit images are mixed")
    findings.problems.extend(f"{split}: {line}" for line in corrupt)
    findings.named(split, ("constant image", "constant images"), constant)
    return digests


def examine_file(path: Path) -> tuple[tuple[int, int], str, bool, bytes] | str:
    """((width, height), kind of pixels, constant?, content hash) of an image file, or what is wrong with it."""
    try:
        picture, sixteen_bit = open_picture(path)
    except ValueError as error:
        return str(error)
    kinds, extremes, digest = set(), [], hashlib.blake2b(repr(picture.size).encode(), digest_size=16)
    # strip by strip: no second copy of a large image, and none in wide integers
    height = max(1, STRIP // picture.width)
    for top in range(0, picture.height, height):
        strip = picture.crop((0, top, picture.width, min(top + height, picture.height)))
        pixels = np.asarray(strip).astype(np.int32)  # (h, W) or (h, W, channels)
        kinds.add(1 if pixels.ndim == 2 else pixels.shape[2])
        extremes += [int(pixels.min()), int(pixels.max())]
        digest.update(pixels.tobytes())
    colours = kinds.pop()
    kind = f"{colours} channel{'s' if colours > 1 else ''} {16 if sixteen_bit else 8} bit"
    return picture.size, kind, min(extremes) == max(extremes), digest.digest()
