"""Folders of image files, one folder per class or none, decoded when fetched."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from sslmed_dist import randomness
from sslmed_dist.data.dataset import SPLITS, Split, select_split
from sslmed_dist.data.images.decode import SUFFIXES
from sslmed_dist.data.images.files import Duplicates, ImageFiles, Listing
from sslmed_dist.data.images.walk import HIDDEN, hidden, is_folder, is_read, leads_back, said, walk

# What the folder of a split may be called, in small letters.
SYNONYMS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SPLIT_WORD = re.compile(rf"(?<![a-z])(?:{'|'.join(SYNONYMS)})(?![a-z])")  # a word of a folder's name in small letters
Tree = dict[str, list[Path]]  # class folder, "" for none -> image files


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
    duplicates: Duplicates | None = None,
    patient: str | None = None,
) -> ImageFiles:
    """Images in ``root/{train,val,test}/CLASS/*`` or ``root/CLASS/*``, or the same without class folders (labels -1).

    Files are png, jpg, jpeg, bmp, tif or tiff, at any depth below the class folder; decoded as ``ImageFiles`` says.
    Without split folders a hash of (seed, path below ``root``) puts a file into test, val or train, in expected shares
    ``test_fraction``, ``val_fraction`` and the rest. A file that is added later therefore moves no other. ids:
    positions in the list of all files sorted by path; with split folders those of train, then val, then test.
    ``duplicates``: training images whose bytes are also in val or test are said and kept (``keep``; null does so unless
    more than 20 GiB would have to be read), left out of training, ids unchanged (``drop``), or an error (``refuse``).
    ``patient``: a regular expression that finds the patient in a path below ``root`` (its first group, where it has
    one). Images of a patient are in one split, and one group; an image in whose path it finds nothing is a patient.
    ``ValueError``: no image, a class without one, a bad fraction, a first image that cannot be decoded, no regular
    expression, or folders that look like splits where classes are expected (``require_classes``).
    """
    if size < 1 or val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise ValueError(f"{root}: size must be at least 1, val_fraction + test_fraction at least 0 and below 1")
    listing = list_folder(Path(root), val_fraction, test_fraction, seed, True, patient)
    if not split_folders(Path(root)):
        require_classes(Path(root))
    select_split(listing.splits, split, str(root), hint=above(Path(root)) or held_out(Path(root), split))
    return ImageFiles(listing, split, size=size, channels=channels, bits=bits, workers=workers, duplicates=duplicates)


def list_folder(
    root_folder: Path,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    seed: int = 0,
    labelled: bool = True,
    patient: str | None = None,
) -> Listing:
    """The images of ``image_folder`` before any is opened; arguments and ``ValueError`` are its own. Where they are not
    to be ``labelled``, folders are no classes: one may be empty, and images may lie beside folders."""
    split_names = split_folders(root_folder)
    if split_names and (val_fraction or test_fraction):
        raise ValueError(
            f"{root_folder}: has folders {', '.join(split_names.values())}; val_fraction and test_fraction must be 0"
        )
    trees, aside = read_trees(root_folder, split_names)
    files, classes = list_files(root_folder, trees, labelled)
    names = [path.relative_to(root_folder).as_posix() for _, _, path in files]
    patients = names if patient is None else patients_in(names, patient)
    if split_names:
        splits = [split for split, _, _ in files]
    else:
        splits = keyed_parts(patients, val_fraction, test_fraction, seed)
    # a listing has class numbers; -1 for the images outside of any class folder
    codes = {kind: code for code, kind in enumerate(classes)} | {"": -1}
    labels = [codes[kind] for _, kind, _ in files]
    notices = [f"left aside: {said(aside)}"] if aside else []
    number = {name: position for position, name in enumerate(sorted(set(patients)))}
    groups = None if patient is None else [number[name] for name in patients]
    return Listing(root_folder.name, root_folder, names, labels, splits, classes, groups, notices=notices)


def patients_in(names: Sequence[str], pattern: str) -> list[str]:
    """The patient of each path by the regular expression ``pattern``; the path itself where that finds nothing.
    ``ValueError`` where it is none."""
    # a patient that is called like a path is another one
    return [
        f"path {name}" if found is None else f"patient {found}"
        for name, found in zip(names, found_patients(names, pattern), strict=True)
    ]


def found_patients(names: Sequence[str], pattern: str) -> list[str | None]:
    """What the regular expression ``pattern`` finds in each path; None where that is nothing. ``ValueError`` where it
    is none."""
    try:
        finds = re.compile(pattern).search
    except re.error as error:
        raise ValueError(f"data.patient: {pattern!r:.80} is no regular expression: {error}") from None
    return [str(of[1 if of.re.groups else 0]) if of else None for of in map(finds, names)]


def split_folders(root: Path) -> dict[str, str]:
    """Split -> the folder in ``root`` that holds it, in the order of ``SPLITS``; empty where there is none.

    A folder is a split's by any of ``SYNONYMS``, in any case of letters. ``ValueError`` when ``root`` is no folder,
    two folders mean one split, or one is a link to a folder above it.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    known: dict[str, str] = {}
    for folder in sorted(entry.name for entry in root.iterdir() if entry.is_dir()):
        split = SYNONYMS.get(folder.lower())
        if split in known:
            raise ValueError(f"{root}: the folders {known[split]} and {folder} both mean the split {split}; keep one")
        if split is not None and leads_back(root / folder):
            raise ValueError(f"{root / folder}: a link to a folder above it, which is no split of it; remove the link")
        if split is not None:
            known[split] = folder
    return {split: known[split] for split in SPLITS if split in known}


def above(root: Path) -> str:
    """What a message adds where ``root`` is one split of a set, and the set was meant; "" where it is none."""
    folder = Path(os.path.abspath(root))
    if folder.name.lower() not in SYNONYMS:
        return ""
    others = [name for name in folders_in(folder.parent) if name != folder.name and name.lower() in SYNONYMS]
    return f"; the folder above has {' and '.join([folder.name, *others])}: {root.parent}" if others else ""


def held_out(root: Path, split: str) -> str:
    """What a message adds where ``split`` is asked of a set that has no folders of splits."""
    if split not in ("val", "test") or split_folders(root):
        return ""
    return f"; data.{split}_fraction=0.2 would hold a fifth of the images out, or make folders train, val and test"


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in ``folder`` that are not hidden, sorted; none where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if is_folder(entry) and not hidden(entry.name))
    except OSError:
        return []


def require_classes(root: Path) -> None:
    """``ValueError`` where the folders in ``root`` would be read as classes and look like splits, or like whole sets:
    test images would be trained on. That is where folders are called like a train and another split and more
    ("train_images", "test2017"), or where a folder holds the folders of a train and another split."""
    folders = folders_in(root)
    alike = {folder: SYNONYMS[word[0]] for folder in folders if (word := SPLIT_WORD.search(folder.lower()))}
    if set(alike.values()) > {"train"}:
        raise ValueError(
            f"{root}: the folders {', '.join(alike)} look like splits, and would be read as classes; call them "
            f"{', '.join(split for split in SPLITS if split in alike.values())}"
        )
    for folder in folders:
        inside = {SYNONYMS.get(name.lower(), "") for name in folders_in(root / folder)} - {""}
        if inside > {"train"}:
            names = " and ".join(split for split in SPLITS if split in inside)
            raise ValueError(
                f"{root}: the folder {folder} would be read as a class, and holds folders of {names}; allowed: "
                f"ROOT/train/CLASS, ROOT/test/CLASS, or this folder alone, {root / folder}"
            )


def read_trees(root: Path, split_names: Mapping[str, str]) -> tuple[dict[str, Tree], Counter[str]]:
    """(split -> class -> files, what was left aside by reason); without split folders everything is the split "all".

    Images in folders beside those of the splits belong to none, so they are left aside, too.
    """
    if not split_names:
        tree, aside = read_tree(root)
        return {"all": tree}, aside
    trees, aside = {}, Counter[str]()
    for split, folder in split_names.items():
        trees[split], left = read_tree(root / folder)
        aside += left
    beside = [entry for entry in root.iterdir() if entry.is_dir() and entry.name not in split_names.values()]
    loose = walk(root, deep=False)
    strays = len(loose.files) + sum(len(walk(folder).files) for folder in beside if is_read(folder))
    if strays:
        aside[f"images outside of the folders {', '.join(split_names.values())}"] = strays
    return trees, aside + Counter({reason: n for reason, n in loose.aside.items() if reason != HIDDEN})


def list_files(
    root: Path, trees: Mapping[str, Tree], labelled: bool = True
) -> tuple[list[tuple[str, str, Path]], tuple[str, ...]]:
    """((split or "all", class or "", path) of every image in order, class names). ``ValueError`` for no image, and
    where they are ``labelled`` for a class without one, or images both inside and outside of class folders."""
    classes = tuple(sorted({kind for tree in trees.values() for kind in tree} - {""}))
    if labelled and classes and any("" in tree for tree in trees.values()):
        raise ValueError(f"{root}: some images lie in class folders and some outside of any")
    files = [(split, kind, path) for split, tree in trees.items() for kind in sorted(tree) for path in tree[kind]]
    empty = sorted(set(classes) - {kind for _, kind, _ in files}) if labelled else []
    if empty or not files:
        problem = f"class {empty[0]!r} has no image" if empty else "no image in it"
        raise ValueError(f"{root}: {problem}; allowed: {', '.join(SUFFIXES)}")
    return files, classes


def read_tree(folder: Path) -> tuple[Tree, Counter[str]]:
    """(image files by class folder, sorted by path, those directly in ``folder`` under the class name ""; what was left
    aside by reason). See ``walk``."""
    tree: Tree = {}
    loose = walk(folder, deep=False)
    aside = loose.aside
    if loose.files:
        tree[""] = loose.files
    for class_folder in sorted(entry for entry in folder.iterdir() if entry.is_dir() and is_read(entry)):
        images = walk(class_folder)
        tree[class_folder.name] = images.files
        aside += images.aside
    for place in (entry for entry in folder.iterdir() if entry.is_dir() and hidden(entry.name)):
        count = len(walk(place).files)
        if count:  # it may have been meant as a class; without images it is a program's own
            aside[HIDDEN] -= 1
            aside[f"images in the hidden folder {place.name}, which is no class"] = count
    return tree, +aside


def keyed_parts(names: Sequence[str], val_fraction: float, test_fraction: float, seed: int) -> list[str]:
    """The split of each name by a hash of (seed, name): a uniform draw below ``test_fraction`` is test, and so on."""
    draws = randomness.uniform(seed, "split", torch.tensor([randomness.word(name) for name in names])).tolist()
    limits = (test_fraction, test_fraction + val_fraction)
    return ["test" if draw < limits[0] else "val" if draw < limits[1] else "train" for draw in draws]
