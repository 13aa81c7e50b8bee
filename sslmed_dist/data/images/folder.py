"""Folders of image files, one folder per class or none, decoded when fetched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from sslmed_dist import randomness
from sslmed_dist.data.dataset import SPLITS, Split
from sslmed_dist.data.images.decode import SUFFIXES
from sslmed_dist.data.images.files import ImageFiles, Listing


def image_folder(
    root: str | Path,
    split: Split = "train",
    size: int = 224,
    channels: Literal[1, 3] = 3,
    bits: Literal[8, 16] = 8,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    seed: int = 0,
    workers: int = 2,
) -> ImageFiles:
    """Images in ``root/{train,val,test}/CLASS/*`` or ``root/CLASS/*``, or the same without class folders (labels -1).

    Files are png, jpg, jpeg, bmp, tif or tiff, at any depth below the class folder; decoded as ``ImageFiles`` says.
    Without split folders a hash of (seed, path below ``root``) puts a file into test, val or train, in expected shares
    ``test_fraction``, ``val_fraction`` and the rest. A file that is added later therefore moves no other. ids:
    positions in the list of all files sorted by path; with split folders those of train, then val, then test.
    ``ValueError``: no image, a class without one, a bad fraction, or a first image that cannot be decoded.
    """
    root_folder = Path(root)
    if size < 1 or val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise ValueError(f"{root}: size must be at least 1, val_fraction + test_fraction at least 0 and below 1")
    split_names = split_folders(root_folder)
    if split_names and (val_fraction or test_fraction):
        raise ValueError(f"{root}: has folders {', '.join(split_names)}; val_fraction and test_fraction must be 0")
    files, classes = list_files(root_folder, split_names)
    names = [path.relative_to(root_folder).as_posix() for _, _, path in files]
    splits = [name for name, _, _ in files] if split_names else keyed_parts(names, val_fraction, test_fraction, seed)
    # a listing has class numbers; -1 for the images outside of any class folder
    codes = {kind: code for code, kind in enumerate(classes)} | {"": -1}
    listing = Listing(root_folder.name, root_folder, names, [codes[kind] for _, kind, _ in files], splits, classes)
    return ImageFiles(listing, split, size=size, channels=channels, bits=bits, workers=workers)


def split_folders(root: Path) -> list[str]:
    """Those of train, val, test that are folders in ``root``. ``ValueError`` when ``root`` is no folder."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    return [name for name in SPLITS if (root / name).is_dir()]


def list_files(root: Path, split_names: Sequence[str]) -> tuple[list[tuple[str, str, Path]], tuple[str, ...]]:
    """((split folder or "all", class or "", path) of every image in order, class names). ``ValueError`` for no image,
    a class without one, or images both inside and outside of class folders."""
    # split -> class -> files; without split folders everything is the split "all"
    trees = {split: read_tree(root / split) for split in split_names} or {"all": read_tree(root)}
    classes = tuple(sorted({kind for tree in trees.values() for kind in tree} - {""}))
    if classes and any("" in tree for tree in trees.values()):
        raise ValueError(f"{root}: some images lie in class folders and some outside of any")
    files = [(split, kind, path) for split, tree in trees.items() for kind in sorted(tree) for path in tree[kind]]
    empty = sorted(set(classes) - {kind for _, kind, _ in files})
    if empty or not files:
        problem = f"class {empty[0]!r} has no image" if empty else "no image in it"
        raise ValueError(f"{root}: {problem}; allowed: {', '.join(SUFFIXES)}")
    return files, classes


def read_tree(folder: Path) -> dict[str, list[Path]]:
    """Image files by class folder, sorted by path; those directly in ``folder`` have the class name ""."""
    tree: dict[str, list[Path]] = {}
    loose_files = find_images(folder, "*")
    if loose_files:
        tree[""] = loose_files
    for class_folder in sorted(folder.iterdir()):
        if class_folder.is_dir() and not class_folder.name.startswith("."):
            tree[class_folder.name] = find_images(class_folder, "**/*")
    return tree


def find_images(folder: Path, pattern: str) -> list[Path]:
    """The image files in ``folder``, hidden ones left out."""
    paths = folder.glob(pattern)
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())


def keyed_parts(names: Sequence[str], val_fraction: float, test_fraction: float, seed: int) -> list[str]:
    """The split of each file by a hash of (seed, path): a uniform draw below ``test_fraction`` is test, and so on."""
    draws = randomness.uniform(seed, "split", torch.tensor([randomness.word(name) for name in names])).tolist()
    limits = (test_fraction, test_fraction + val_fraction)
    return ["test" if draw < limits[0] else "val" if draw < limits[1] else "train" for draw in draws]
