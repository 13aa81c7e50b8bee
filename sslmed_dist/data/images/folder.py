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
    """``root/{train,val,test}/CLASS/*``, or ``root/CLASS/*``, or images without a class (labels -1) in place of CLASS.
    Files: png, jpg, jpeg, bmp, tif, tiff, at any depth below the class folder; decoded as ``ImageFiles`` says.

    Without split folders a file goes to test, val or train by a hash of (seed, its path below ``root``), in expected
    shares ``test_fraction``, ``val_fraction`` and the rest; adding a file moves no other. ids: positions in the list of
    all files sorted by path (of train, then val, then test).
    ``ValueError``: no image, a class without one, a bad fraction; the first image is decoded as a probe.
    """
    place = Path(root)
    if size < 1 or val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise ValueError(f"{root}: size must be at least 1, val_fraction + test_fraction at least 0 and below 1")
    places = split_folders(place)
    if places and (val_fraction or test_fraction):
        raise ValueError(f"{root}: has folders {', '.join(places)}; val_fraction and test_fraction must be 0")
    files, classes = list_files(place, places)
    names = [path.relative_to(place).as_posix() for _, _, path in files]
    part = [name for name, _, _ in files] if places else keyed_parts(names, val_fraction, test_fraction, seed)
    codes = {kind: code for code, kind in enumerate(classes)} | {"": -1}
    listing = Listing(place.name, place, names, [codes[kind] for _, kind, _ in files], part, classes)
    return ImageFiles(listing, split, size=size, channels=channels, bits=bits, workers=workers)


def split_folders(root: Path) -> list[str]:
    """Those of train, val, test that are folders in ``root``. ``ValueError`` when ``root`` is no folder."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    return [name for name in SPLITS if (root / name).is_dir()]


def list_files(root: Path, places: Sequence[str]) -> tuple[list[tuple[str, str, Path]], tuple[str, ...]]:
    """((split folder or "all", class or "", path) of every image in order, class names). ``ValueError`` as the
    ``image_folder``."""
    trees = {name: read_tree(root / name) for name in places} or {"all": read_tree(root)}
    classes = tuple(sorted({name for tree in trees.values() for name in tree} - {""}))
    if classes and any("" in tree for tree in trees.values()):
        raise ValueError(f"{root}: some images lie in class folders and some outside of any")
    files = [(name, kind, path) for name, tree in trees.items() for kind in sorted(tree) for path in tree[kind]]
    empty = sorted(set(classes) - {kind for _, kind, _ in files})
    if empty or not files:
        found = f"class {empty[0]!r} has no image" if empty else "no image in it"
        raise ValueError(f"{root}: {found}; allowed: {', '.join(SUFFIXES)}")
    return files, classes


def read_tree(folder: Path) -> dict[str, list[Path]]:
    """Image files by class folder, sorted by path; those directly in ``folder`` under the name ""."""
    tree: dict[str, list[Path]] = {}
    flat = find_images(folder, "*")
    if flat:
        tree[""] = flat
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.name.startswith("."):
            tree[place.name] = find_images(place, "**/*")
    return tree


def find_images(folder: Path, pattern: str) -> list[Path]:
    """The image files in ``folder``, hidden ones left out."""
    found = folder.glob(pattern)
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())


def keyed_parts(names: Sequence[str], val_fraction: float, test_fraction: float, seed: int) -> list[str]:
    """The split of each file by a hash of (seed, path)."""
    u = randomness.uniform(seed, "split", torch.tensor([randomness.word(name) for name in names])).tolist()
    limits = (test_fraction, test_fraction + val_fraction)
    return ["test" if value < limits[0] else "val" if value < limits[1] else "train" for value in u]
