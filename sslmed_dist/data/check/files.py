"""Inspection of sets of image files: folders by class, the layouts that list their files, and packed sets."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from sslmed_dist.atomic_files import sha256
from sslmed_dist.data.check.findings import Findings
from sslmed_dist.data.dataset import SPLITS, content_hash
from sslmed_dist.data.images.decode import SUFFIXES, open_picture
from sslmed_dist.data.images.files import Listing
from sslmed_dist.data.images.folder import read_tree, split_folders
from sslmed_dist.data.images.packed import Packed
from sslmed_dist.data.images.shards import open_shard, read_summary

BLOCK = 1024  # decoded images of a folder held at a time
MANY = 20  # classes counted one by one


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


def inspect_listing(title: str, read: Callable[[Path], Listing]) -> Callable[[Path, Findings], None]:
    """The inspection of a layout that says which files there are, with which labels and splits: missing files, and a
    patient in two splits, beside what ``inspect_files`` finds."""

    def inspect(place: Path, findings: Findings) -> None:
        findings.lines.append(f"layout: {title}")
        try:
            listing = read(place)
        except ValueError as error:
            findings.problems.append(str(error))
            return
        absent = set(listing.missing())
        digests, seen = {}, Counter[int]()
        for split in (name for name in SPLITS if name in listing.splits):
            rows = [i for i, name in enumerate(listing.splits) if name == split]
            findings.lines.append(f"{split}: {len(rows)} images")
            count_classes(findings, split, listing.classes, [listing.labels[i] for i in rows])
            findings.named(split, "listed files are missing", [listing.names[i] for i in rows if i in absent])
            files = [listing.root / listing.names[i] for i in rows if i not in absent]
            digests[split] = inspect_files(findings, split, listing.root, files)
            if listing.groups is not None:
                patients = {listing.groups[i] for i in rows}
                findings.lines.append(f"{split}: {len(patients)} patients")
                seen.update(patients)
        findings.named("patients", "in more than one split", [str(key) for key, count in seen.items() if count > 1])
        findings.repeats(digests, "images")

    return inspect


def count_classes(findings: Findings, split: str, classes: Sequence[str], labels: Iterable[int]) -> None:
    """Note the samples per class; of many classes only their range, and those without any."""
    found = Counter(labels)
    counts = {name: found[code] for code, name in enumerate(classes)}
    if len(counts) <= MANY:
        findings.classes(split, counts)
        return
    values = counts.values()
    findings.lines.append(f"{split}: {len(counts)} classes of {min(values)} to {max(values)} images")
    findings.named(split, "classes without a sample", [name for name, count in counts.items() if count == 0])


def inspect_pack(place: Path, findings: Findings) -> None:
    """A packed set: every shard against its SHA-256, then every image."""
    findings.lines.append("layout: packed set")
    try:
        summary = read_summary(place)
    except ValueError as error:
        findings.problems.append(str(error))
        return
    form, short, source = summary["format"], summary["short"], summary["source"]["name"]
    findings.lines.append(f"{len(summary['shards'])} shards, {form}, short side {short}, of {source}")
    for said in summary["shards"]:
        try:
            blob, _ = open_shard(place, said, summary["fingerprint"])
            if sha256(blob) != said["sha256"]:
                raise ValueError(f"{blob}: its bytes are not those that were packed (SHA-256 differs)")
        except ValueError as error:
            findings.problems.append(str(error))
    if not findings.problems:
        inspect_packed_images(place, findings)


def inspect_packed_images(place: Path, findings: Findings) -> None:
    """Decode every image of a packed set; note classes, and corrupt, constant and repeated ones."""
    digests: dict[str, list[tuple[str, bytes]]] = {}
    whole = Packed(place, "all", workers=0)
    for split in whole.splits:
        data = Packed(place, split, workers=0)
        corrupt, constant, digests[split] = [], [], []
        for position in range(len(data)):
            name = f"image {int(data.ids[position])}"
            try:
                image = data.read(torch.tensor([position]))[0]
            except ValueError:
                corrupt.append(name)
                continue
            digests[split].append((name, content_hash(image)))
            if bool(image.amax() == image.amin()):
                constant.append(name)
        findings.lines.append(f"{split}: {len(data)} images, {data.channels} x {data.size} x {data.size}, 8 bit")
        count_classes(findings, split, data.classes, data.labels.tolist())
        findings.named(split, "corrupt images", corrupt)
        findings.named(split, "constant images", constant)
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
