"""``inspect``: what a file or folder of images holds, and what is wrong with it.

The report is for the owner of the data at their own terminal: it may name files, but it never prints header text of
medical formats, where patients are named.
"""

from collections.abc import Callable
from pathlib import Path

from sslmed_dist.data.check.arrays import inspect_archive, inspect_cifar, inspect_stl10
from sslmed_dist.data.check.exams import inspect_mrnet, inspect_volumes
from sslmed_dist.data.check.files import inspect_images, inspect_listing, inspect_pack
from sslmed_dist.data.check.findings import Findings
from sslmed_dist.data.exams.abdominal import NAME
from sslmed_dist.data.exams.mrnet import FOLDERS
from sslmed_dist.data.images.decode import SUFFIXES
from sslmed_dist.data.images.flowers import read_flowers17
from sslmed_dist.data.images.medical_files import ISIC, read_chaoyang, read_isic2016, read_mhist, read_mura
from sslmed_dist.data.images.wordnet import is_wnid, read_imagenet, read_tiny_imagenet

PLANES = ("axial", "coronal", "sagittal")
Inspection = Callable[[Path, Findings], None]


def holds(*names: str) -> Callable[[Path], bool]:
    """Whether any of ``names`` (patterns) is in the folder."""
    return lambda place: any(True for name in names for _ in place.glob(name))


def is_mrnet(place: Path) -> bool:
    """Whether a plane's folder is where MRNet has it."""
    return any((place / split / plane).is_dir() for split in FOLDERS.values() for plane in PLANES)


def is_ilsvrc(place: Path) -> bool:
    """Whether train/ has folders named by WNIDs."""
    train = (place / "ILSVRC/Data/CLS-LOC/train", place / "train")
    return any(is_wnid(entry.name) for folder in train if folder.is_dir() for entry in folder.iterdir())


def is_cifar(place: Path) -> bool:
    """Whether this is a folder of CIFAR, or holds one."""
    return any(folder.name.startswith("cifar-") for folder in (place, *place.glob("cifar-*")))


# Name of a layout -> (does the folder have it, its inspection); the first that fits is taken.
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
        lambda place: (place / "annotations.csv").is_file() and (place / "images").is_dir(),
        inspect_listing("MHIST", read_mhist),
    ),
    "NIfTI exams": (lambda place: any(NAME.fullmatch(entry.name) for entry in place.iterdir()), inspect_volumes),
    "MRNet": (is_mrnet, inspect_mrnet),
    "packed JPEG or MedMNIST .npz": (lambda place: len(list(place.glob("*.npz"))) == 1, inspect_archive),
    "image folder": (lambda place: any(e.suffix.lower() in SUFFIXES for e in place.rglob("*")), inspect_images),
}


def inspect(path: str | Path) -> tuple[list[str], list[str]]:
    """(report lines, problems): the layout of ``path``, samples per split and class, sizes, channels, depth, geometry;
    and corrupt, constant, repeated, missing or unlabelled images, empty classes, patients in two splits, masks that do
    not fit.

    An empty list of problems means that nothing about the set needs attention. ``ValueError`` when ``path`` does not
    exist or is none of the layouts that can be read.
    """
    place = Path(path)
    if not place.exists():
        raise ValueError(f"{place}: no such file or folder")
    findings = Findings()
    recognise(place)(place, findings)
    return findings.lines, findings.problems


def recognise(place: Path) -> Inspection:
    """The function that inspects the layout of ``place``. ``ValueError`` when it is none of ``LAYOUTS``."""
    if place.is_file() and place.suffix == ".npz":
        return inspect_archive
    if place.is_dir():
        for fits, inspection in LAYOUTS.values():
            if fits(place):
                return inspection
    raise ValueError(f"{place}: not a layout that can be read; allowed: {', '.join(LAYOUTS)}")
