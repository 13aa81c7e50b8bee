"""From a path to the section ``data`` of a recipe: which dataset reads it, its splits, its patients, its pixels."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sslmed_dist import registry
from sslmed_dist.data import DATASETS
from sslmed_dist.data.check import LAYOUTS, PLANES, recognise
from sslmed_dist.data.check.exams import side_of
from sslmed_dist.data.dataset import SPLITS, Dataset, unlabelled
from sslmed_dist.data.exams.exam_archive import HEAD
from sslmed_dist.data.exams.exam_store import TABLE
from sslmed_dist.data.exams.exams import patients_of, rows_of, stored_exams
from sslmed_dist.data.exams.kneemri import find_volumes
from sslmed_dist.data.exams.mrnet import FOLDERS
from sslmed_dist.data.images import walk
from sslmed_dist.data.images.files import ImageFiles
from sslmed_dist.data.images.folder import found_patients, patients_in, read_trees, split_folders
from sslmed_dist.data.images.packed import Packed
from sslmed_dist.data.npz import archive_names, find_archive
from sslmed_dist.printable import plural
from sslmed_dist.verbs.init import pixels

TEST_SHARE, FEW_SHARE = 0.2, 0.3  # of a set without splits, and of one of few patients, whose intervals are wide
FEWEST_PATIENTS, FEW_PATIENTS = 5, 40  # of which some can be kept for a test; below which they are few
PATIENT = r"([^/]+)[-_]\d+\.[^./]+$"  # NAME_1.png, NAME_2.png
TABLES = (".csv", ".tsv", ".xlsx")  # in which people keep labels of images
FEW_TESTED = 20  # patients of a test whose figures are descriptive
Tree = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What init saw of a set. ``data`` is the section of the recipe, ``splits`` are those that it gives, ``remarks``
    what stands beside it. ``short`` is the shorter side of its images in pixels. ``exams``: a sample is an examination
    of many slices. ``medical``: the layout is one of medical images. ``measured`` is what evaluation reads otherwise.
    """

    title: str
    data: Tree
    splits: tuple[str, ...]
    short: int
    remarks: tuple[str, ...] = ()
    exams: bool = False
    medical: bool = False
    measured: Tree = field(default_factory=dict)


def look(path: Path, side: int) -> Seen:
    """``side``: pixels that a network is to see at most on this machine. ``ValueError`` where ``path`` has no layout
    that can be read, or one of which no encoder is pretrained by views."""
    inspection = recognise(path)
    title = next((title for title, (_, known) in LAYOUTS.items() if known is inspection))
    seen = SIGHTS[title](path.absolute(), title, side)
    if "test_fraction" not in seen.data:
        return seen
    # What a sweep needs, and any training that is stopped by a validation loss.
    words = "data.val_fraction=0.1 takes a validation split out of the training part, as sslmed sweep needs; "
    return replace(seen, remarks=(*seen.remarks, f"{words}the test stays the same"))


def build(data: Mapping[str, Any], split: str) -> Dataset:
    """One split of the section ``data``."""
    dataset: Dataset = registry.build(DATASETS, data, "data", split=split)
    return dataset


def short_side(dataset: Dataset) -> int:
    """The shorter side of a dataset's first image in pixels."""
    first = torch.tensor([0])
    images = dataset.fetch(first, seed=0, epoch=0, draw=torch.zeros_like(first))["images"]
    return int(min(images.shape[-2:]))


def splits_of(dataset: Dataset) -> tuple[str, ...]:
    """The splits that a set of images comes with."""
    if isinstance(dataset, Packed):
        return tuple(dataset.splits)
    if isinstance(dataset, ImageFiles):
        return tuple(name for name in SPLITS if name in set(dataset.listing.splits))
    return tuple(dataset.dropped) or ("train", "test")  # of MedMNIST those of its file, else the published two


def published(name: str, medical: bool = False) -> Callable[[Path, str, int], Seen]:
    """How to see a set whose layout says everything."""

    def see(root: Path, title: str, side: int) -> Seen:
        data: Tree = {"name": name, "root": str(root)}
        accepted, _ = registry.schema(DATASETS[name])
        dataset = build(data, "train")
        short = short_side(dataset)
        if "size" in accepted and side < short:
            data["size"] = side
        splits = splits_of(dataset)
        return Seen(title, data, splits, short, medical=medical, remarks=tuple(dataset.notices))

    return see


def cifar(root: Path, title: str, side: int) -> Seen:
    """CIFAR-10 or CIFAR-100."""
    coarse = root.name == "cifar-100-python" or (root / "cifar-100-python").is_dir()
    return published("cifar100" if coarse else "cifar10")(root, title, side)


def archive(root: Path, title: str, side: int) -> Seen:
    """An ``.npz``: packed JPEG or MedMNIST. ``ValueError`` for packed episodes."""
    path = find_archive(root)
    names = archive_names(path)
    if HEAD in names:
        raise ValueError(
            f"{path}: packed episodes are for one-shot segmentation; allowed: sslmed list recipes chaos_cowpro"
        )
    if "jpeg" in names:
        return published("cifar10_jpeg")(path, "packed JPEG .npz", side)
    return published("medmnist", medical=True)(path, "MedMNIST .npz", side)


def folder(root: Path, title: str, side: int) -> Seen:
    """A folder of images, with or without folders of splits and classes."""
    known = split_folders(root)
    remarks = []
    if list(known) == ["train"]:
        root, known = root / known["train"], {}
        remarks.append("only a folder of training images is there, so the images in it are dealt to train and test")
    trees, aside = read_trees(root, known)
    files = [path for tree in trees.values() for paths in tree.values() for path in paths]
    if not files:
        raise ValueError(f"{root}: no image in the folders {', '.join(known.values()) or root.name}")
    seen = pixels.look(files)
    data: Tree = {"name": "image_folder", "root": str(root), "size": min(side, seen.short)}
    data |= {"channels": seen.channels, "bits": seen.bits}
    if not known:
        data["test_fraction"] = TEST_SHARE
        remarks.append(
            f"no folders train and test: {TEST_SHARE:.0%} of the images, drawn by their paths, are for testing"
        )
    keys, words = patients_of_files(
        {
            split: [p.relative_to(root).as_posix() for paths in tree.values() for p in paths]
            for split, tree in trees.items()
        }
    )
    remarks = [*seen.lines, *remarks, words]
    data |= keys
    remarks += [f"left aside: {walk.said(aside)}"] if aside else []
    if any(reason.split(" ")[0] in TABLES for reason in aside):
        remarks.append("a table beside images is not read: labels are the folders of classes, FOLDER/CLASS/IMAGE")
    return Seen(title, data, tuple(known) or ("train", "test"), seen.short, tuple(remarks))


def patients_of_files(names: Mapping[str, list[str]]) -> tuple[Tree, str]:
    """(the key ``patient``, where names of files look like several images of each of several patients; what is said of
    it). ``names``: the paths below the set's folder in each split, as the dataset reads patients from them; an image
    without such a name is there a patient of its own, and is none here."""
    of = {
        split: [name for name in found_patients(paths, PATIENT) if name is not None] for split, paths in names.items()
    }
    sizes = Counter(name for found in of.values() for name in found)
    everything = [name for paths in names.values() for name in paths]
    several = len(sizes) >= FEWEST_PATIENTS and len(everything) >= 1.5 * len(set(patients_in(everything, PATIENT)))
    if not several or max(sizes.values()) > 0.3 * len(everything):
        return {}, (
            "no patients are known: where one has several images, say by data.patient, a regular expression, how to "
            "find the patient in a path, else the figures are too good"
        )
    said = f"names of files look like NAME_1, NAME_2 of {plural(len(sizes), 'patient')} with {sizes.total()} images"
    if others := len(everything) - sizes.total():
        said += f" ({plural(others, 'other image')} each taken for a patient of its own)"
    seen_in = Counter(name for found in of.values() for name in set(found))
    both = sum(count > 1 for count in seen_in.values())
    if both:
        return {}, f"{said}, of whom {both} lie in more than one split: if they are patients, the figures are too good"
    return {"patient": PATIENT}, f"{said}: kept together in one split by data.patient (null, if they are no patients)"


def volumes(root: Path, title: str, side: int) -> Seen:
    """NIfTI volumes with masks: slices of exams, split by exam."""
    data: Tree = {"name": "abdominal", "root": str(root), "unit": "exam", "size": side}
    whole = build(data, "all")
    shape = min(min(record["shape"][:2]) for record in whole.records)
    data["size"] = min(side, shape)
    remarks = [f"{plural(len(whole), 'exam')}; organs: {', '.join(whole.classes) or 'no masks'}", *whole.notices]
    splits, fractions, words = shares(len(whole), "exams")
    return Seen(title, data | fractions, splits, shape, (*remarks, words), True, True, {"unit": "slice"})


def shares(patients: int, word: str) -> tuple[tuple[str, ...], Tree, str]:
    """(the splits, the key that makes them, what is said of it) of a set without splits."""
    if patients < FEWEST_PATIENTS:
        return ("train",), {}, f"{patients} {word}: too few to keep some for a test, so nothing is measured"
    share = FEW_SHARE if patients < FEW_PATIENTS else TEST_SHARE
    kept = round(share * patients)
    words = f"{kept} of {patients} {word} are kept for the test"
    words += ": intervals over so few are wide, and figures descriptive" if kept < FEW_TESTED else ""
    return ("train", "test"), {"test_fraction": share}, words


def mrnet(root: Path, title: str, side: int) -> Seen:
    """MRNet: one plane, the one that has most exams."""
    counts = {plane: len(list(root.glob(f"*/{plane}/*.npy"))) for plane in PLANES}
    plane = max(counts, key=lambda name: counts[name])
    pixels_per_side = side_of(sorted(root.glob(f"*/{plane}/*.npy")))
    data: Tree = {"name": "mrnet", "root": str(root), "plane": plane, "side": pixels_per_side}
    splits = tuple(name for name, part in FOLDERS.items() if (root / part / plane).is_dir())
    remark = f"exams: {', '.join(f'{n} {name}' for name, n in counts.items())}; one recipe trains on one plane"
    return Seen(title, data, splits, pixels_per_side, (remark,), True, True, {"clip": 16})


def kneemri(root: Path, title: str, side: int) -> Seen:
    """KneeMRI: its folders are its splits."""
    data: Tree = {"name": "kneemri", "root": str(root), "side": max(side, 8)}
    whole = build(data, "all")
    shape = min(min(record["shape"][1:]) for record in whole.records)
    present = {split for split, _ in find_volumes(root).values()}
    splits = tuple(name for name in SPLITS if name in present)
    return Seen(title, data, splits, shape, tuple(whole.notices), True, True, {"clip": 16})


def scans(root: Path, title: str, side: int) -> Seen:
    """Never a section: nothing tells which of the scans are of one patient, so splits could not be trusted.
    ``ValueError`` says in which order files can be pretrained on."""
    raise ValueError(
        f"{root}: {'a scan' if root.is_file() else 'scans'} without an examination around it; allowed: a folder of "
        "folders, one for each examination: FOLDER/EXAM/SCAN.nii.gz or FOLDER/EXAM/SERIES/*.dcm"
    )


def examinations(root: Path, title: str, side: int) -> Seen:
    """DICOM or NIfTI examinations: one slot, the plane that most exams have."""
    store = stored_exams(root, TABLE, {})
    counts = {slot: sum(slot in exam.slots for exam in store.exams) for slot in store.how.rules}
    slot = max(counts, key=lambda name: counts[name])
    if not counts[slot]:
        raise ValueError(f"{root}: no examination has a series for {', '.join(counts)}; sslmed data check says why")
    data: Tree = {"name": "exams", "root": str(root), "plane": slot}
    remarks = [f"examinations with a series: {', '.join(f'{n} {name}' for name, n in counts.items())}"]
    remarks.append("one recipe trains on one plane; of several series in it that with most pixels is taken")
    short = store.how.size
    if store.folder is None:
        facts = [exam.slots[slot].facts for exam in store.exams if slot in exam.slots]
        fields = [min(n * mm for n, mm in zip(f["shape"][1:], f["spacing_mm"][1:], strict=True)) for f in facts]
        short = int(statistics.median(min(fact["shape"][1:]) for fact in facts))
        data["size"] = max(min(side, short), 8)
        data["mm"] = min(max(round(statistics.median(fields) / data["size"], 2), 0.01), 100.0)
        remarks.append(
            f"fields of view {min(fields):.0f} to {max(fields):.0f} mm; what lies outside of the middle is cut"
        )
    if store.table is not None and "split" in store.table.columns:
        said = {row.split for row in rows_of(store).values()}
        splits: tuple[str, ...] = tuple(name for name in SPLITS if name in said)
        words = "the table has the splits"
    else:
        patients = len(set(patients_of(store, rows_of(store)).values()))
        splits, fractions, words = shares(patients, "patients")
        data |= fractions
    return Seen(title, data, splits, short, (*remarks, words), True, True, {"clip": 16})


def has_labels(dataset: Dataset) -> bool:
    """Whether there is something to be told apart: every sample has a label, and there are two of them. Labels of
    examinations may be missing."""
    if not dataset.classes:
        return False
    if dataset.task == "multi":
        return any(len(torch.unique(column[~column.isnan()])) > 1 for column in dataset.labels.unbind(1))
    return not bool(unlabelled(dataset.labels).any()) and len(torch.unique(dataset.labels)) > 1


# Layout, as ``sslmed data check`` calls it -> how it is seen.
SIGHTS: Mapping[str, Callable[[Path, str, int], Seen]] = {
    "packed set": published("packed"),
    "CIFAR-10 or -100": cifar,
    "STL-10": published("stl10"),
    "Tiny-ImageNet": published("tiny_imagenet"),
    "ImageNet": published("imagenet"),
    "Flowers-17": published("flowers17"),
    "MURA": published("mura", medical=True),
    "ISIC 2016": published("isic2016", medical=True),
    "Chaoyang": published("chaoyang", medical=True),
    "MHIST": published("mhist", medical=True),
    "exams with masks (prepared, Decathlon, nnU-Net, TotalSegmentator, BTCV, FLARE22, MOGaMBO)": volumes,
    "MRNet": mrnet,
    "KneeMRI": kneemri,
    "scans (NIfTI files, or one DICOM series)": scans,
    "examinations": examinations,
    "packed JPEG or MedMNIST .npz": archive,
    "image folder": folder,
}
