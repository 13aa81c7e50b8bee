"""``inspect``: what a file or folder of images holds, and what is wrong with it.

The report is for the owner of the data at their own terminal: it may name files. Of the header text of medical formats,
where patients are named, it prints only descriptions of series, which rules are written for, and names of scanners.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from sslmed_dist.data.check.arrays import inspect_archive, inspect_cifar, inspect_stl10
from sslmed_dist.data.check.examinations import holds_examinations, inspect_examinations
from sslmed_dist.data.check.exams import inspect_kneemri, inspect_mrnet, inspect_volumes
from sslmed_dist.data.check.files import inspect_images, inspect_listing, inspect_pack
from sslmed_dist.data.check.findings import Findings
from sslmed_dist.data.check.scans import holds_scans, inspect_scans
from sslmed_dist.data.exams.exam_layouts import ANNOTATED, layout_of
from sslmed_dist.data.exams.kneemri import TABLE
from sslmed_dist.data.exams.mrnet import FOLDERS
from sslmed_dist.data.images.decode import SUFFIXES
from sslmed_dist.data.images.flowers import read_flowers17
from sslmed_dist.data.images.medical_files import ISIC, read_chaoyang, read_isic2016, read_mhist, read_mura
from sslmed_dist.data.images.walk import holds_images
from sslmed_dist.data.images.wordnet import is_wnid, read_imagenet, read_tiny_imagenet
from sslmed_dist.printable import printable

PLANES = ("axial", "coronal", "sagittal")
Inspection = Callable[[Path, Findings], None]


def holds(*names: str) -> Callable[[Path], bool]:
    """A test of a folder: does it hold anything that matches one of the patterns ``names``?"""
    return lambda root: any(True for name in names for _ in root.glob(name))


def is_mrnet(root: Path) -> bool:
    """Whether the folder has a split with a plane in it, such as train/axial."""
    return any((root / split / plane).is_dir() for split in FOLDERS.values() for plane in PLANES)


def is_ilsvrc(root: Path) -> bool:
    """Whether ``train`` has folders named by WordNet ids."""
    train = (root / "ILSVRC/Data/CLS-LOC/train", root / "train")
    return any(is_wnid(entry.name) for folder in train if folder.is_dir() for entry in folder.iterdir())


def is_annotated(root: Path) -> bool:
    """Whether this is a set of exams in a layout that says which file is a mask; a damaged one is, too."""
    try:
        return layout_of(root, ANNOTATED) is not None
    except ValueError:
        return True


def is_cifar(root: Path) -> bool:
    """Whether this is a folder of CIFAR, or holds one."""
    return any(folder.name.startswith("cifar-") for folder in (root, *root.glob("cifar-*")))


# Name of a layout -> (test whether a folder has it, its inspection); the first that fits is taken.
LAYOUTS: dict[str, tuple[Callable[[Path], bool], Inspection]] = {
    "packed set": (holds("pack.json", "shard-*.npz", "shard-*.bin"), inspect_pack),
    "CIFAR-10 or -100": (is_cifar, inspect_cifar),
    "STL-10": (holds("train_X.bin", "test_X.bin", "stl10_binary"), inspect_stl10),
    "Tiny-ImageNet": (holds("wnids.txt", "tiny-imagenet-200"), inspect_listing("Tiny-ImageNet", read_tiny_imagenet)),
    "ImageNet": (is_ilsvrc, inspect_listing("ImageNet (ILSVRC)", read_imagenet)),
    "Flowers-17": (
        holds("datasplits.mat", "jpg/image_0001.jpg", "image_0001.jpg"),
        inspect_listing("Flowers-17", read_flowers17),
    ),
    "MURA": (holds("MURA-v1.1", "*_image_paths.csv", "*_labeled_studies.csv"), inspect_listing("MURA", read_mura)),
    "ISIC 2016": (holds(f"{ISIC}_*"), inspect_listing("ISIC 2016 part 3", read_isic2016)),
    "Chaoyang": (holds("train.json", "test.json"), inspect_listing("Chaoyang", read_chaoyang)),
    "MHIST": (
        lambda root: (root / "annotations.csv").is_file() and (root / "images").is_dir(),
        inspect_listing("MHIST", read_mhist),
    ),
    "exams with masks (prepared, Decathlon, nnU-Net, TotalSegmentator, BTCV, FLARE22, MOGaMBO)": (
        is_annotated,
        inspect_volumes,
    ),
    "MRNet": (is_mrnet, inspect_mrnet),
    "KneeMRI": (lambda root: (root / TABLE).is_file() and any(root.glob("vol[0-9][0-9]")), inspect_kneemri),
    "scans (NIfTI files, or one DICOM series)": (holds_scans, inspect_scans),
    "examinations": (holds_examinations, inspect_examinations),
    "packed JPEG or MedMNIST .npz": (lambda root: len(list(root.glob("*.npz"))) == 1, inspect_archive),
    "image folder": (holds_images, inspect_images),
}


def inspect(path: str | Path, series: Mapping[str, str] | None = None) -> tuple[list[str], list[str]]:
    """(report lines, problems) of the set in ``path``.

    The lines name its layout, samples per split and class, sizes, channels, depth and geometry. Problems are corrupt,
    constant, repeated, missing or unlabelled images, empty classes, patients in two splits and masks that do not fit;
    without any, nothing about the set needs attention. ``series`` are the rules of a recipe for examinations, which are
    tried out. ``ValueError`` when ``path`` does not exist or has none of the layouts that can be read, and for
    ``series`` with another layout.
    """
    root = Path(path)
    findings = Findings()
    inspection = recognise(root)
    if series is not None and not (root.is_dir() and inspection in (inspect_examinations, inspect_scans)):
        raise ValueError(f"series: {root} is no folder of examinations, which alone has series to be chosen")
    if series is not None:
        inspect_examinations(root, findings, series)
    else:
        inspection(root, findings)
    # names out of files and of files may hold anything, also what a terminal obeys
    return [printable(line) for line in findings.lines], [printable(p) for p in findings.problems]


def recognise(root: Path) -> Inspection:
    """The function that inspects the layout of ``root``. ``ValueError`` when it is none of ``LAYOUTS``, is not there
    or is empty."""
    if not root.exists():
        raise ValueError(f"{root}: no such file or folder")
    if root.is_file() and root.stat().st_size == 0:
        raise ValueError(f"{root}: an empty file")
    if root.is_dir() and not any(root.iterdir()):
        raise ValueError(f"{root}: an empty folder")
    if root.is_file() and root.suffix.lower() in SUFFIXES:
        raise ValueError(f"{root}: one image; give the folder that it lies in")
    if root.is_file() and root.suffix == ".npz":
        return inspect_archive
    if root.is_file() and holds_scans(root):
        return inspect_scans
    if root.is_dir():
        for fits, inspection in LAYOUTS.values():
            if fits(root):
                return inspection
    raise ValueError(f"{root}: not a layout that can be read; allowed: {', '.join(LAYOUTS)}")
