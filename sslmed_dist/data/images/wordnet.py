"""Tiny-ImageNet and ImageNet: photographs in folders named by a WordNet id (WNID, "n" and eight digits).

In both sets the test part was published without labels, so results are reported on the labelled validation part. That
part is the split "test" here. Data for choosing hyperparameters are held out of "train".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslmed_dist.data.dataset import Split
from sslmed_dist.data.images.files import ImageFiles, Listing, Row, image_names, ordered, takes_duplicates, unpacked
from sslmed_dist.data.images.walk import hidden
from sslmed_dist.data.listed_paths import Below
from sslmed_dist.data.text_files import add_once, read_lines, read_rows
from sslmed_dist.printable import excerpt

SOLUTION = "LOC_val_solution.csv"


@takes_duplicates
def tiny_imagenet(
    root: str | Path, split: Split = "train", size: int = 64, workers: int = 2, **files: Any
) -> ImageFiles:
    """Tiny-ImageNet (Stanford CS231n, 2015): 200 classes, 100,000 train and 10,000 test images of 64 x 64.

    ``root`` holds ``tiny-imagenet-200``, or is it, as the archive of cs231n.stanford.edu unpacks:
    ``train/WNID/images/*.JPEG``, ``val/images/*.JPEG`` with ``val/val_annotations.txt`` (file name, WNID and a box,
    tab-separated), ``wnids.txt``, ``words.txt``. Classes are numbered by sorted WNID and named by the WNID and, where
    ``words.txt`` exists, its first word for it. The split "test" is val/. Images as ``ImageFiles`` says.
    ``ValueError`` names the missing file or folder, the unknown WNID, the corrupt image.
    """
    return ImageFiles(read_tiny_imagenet(Path(root)), split, size=size, workers=workers, **files)


def read_tiny_imagenet(root: Path) -> Listing:
    """The listing of Tiny-ImageNet."""
    folder = unpacked(root, "tiny-imagenet-200", "wnids.txt")
    wnids = sorted(read_wnids(folder / "wnids.txt"))
    codes = {wnid: code for code, wnid in enumerate(wnids)}
    rows: list[Row] = []
    for wnid in wnids:
        image_folder = f"train/{wnid}/images"
        rows += [("train", f"{image_folder}/{name}", codes[wnid], 0) for name in image_names(folder / image_folder)]
    annotations = folder / "val" / "val_annotations.txt"
    below = Below(folder)
    for line_number, line in read_lines(annotations):
        cells = line.split("\t")
        if len(cells) < 2 or cells[1].strip() not in codes:
            expected = "expected a file name and a WNID of wnids.txt"
            raise ValueError(f"{annotations}: line {line_number} is {excerpt(line)!r}; {expected}")
        name = below(f"val/images/{cells[0].strip()}", f"{annotations}: line {line_number}")
        rows.append(("test", name, codes[cells[1].strip()], 0))
    return ordered("tiny_imagenet", folder, rows, name_classes(folder / "words.txt", wnids))


def read_wnids(path: Path) -> list[str]:
    """The WNIDs in the first column of a text file, in its order. ``ValueError`` for a line without one, and for one
    that stands there twice."""
    lines_by_wnid: dict[str, int] = {}
    for line_number, line in read_lines(path):
        wnid = line.split()[0]
        if not is_wnid(wnid):
            raise ValueError(f"{path}: line {line_number} is {excerpt(line)!r}; expected a WNID such as n01440764")
        add_once(lines_by_wnid, wnid, line_number, f"{path}: line {line_number}")
    return list(lines_by_wnid)


def name_classes(words: Path, wnids: Sequence[str]) -> list[str]:
    """ "WNID word" of each class, or the WNID alone where ``words`` does not exist or does not name it."""
    lines = read_lines(words) if words.is_file() else []
    words_by_wnid: dict[str, str] = {}
    for line_number, line in lines:
        wnid, _, word = line.partition("\t")
        add_once(words_by_wnid, wnid.strip(), word, f"{words}: line {line_number}")
    return [
        f"{wnid} {words_by_wnid[wnid].split(',')[0].strip()}" if words_by_wnid.get(wnid) else wnid for wnid in wnids
    ]


@takes_duplicates
def imagenet(
    root: str | Path,
    split: Split = "train",
    classes: str | tuple[str, ...] | None = None,
    size: int = 256,
    workers: int = 2,
    **files: Any,
) -> ImageFiles:
    """ImageNet-1k (ILSVRC 2012; Russakovsky et al. 2015): 1000 classes, 1,281,167 train and 50,000 test images.

    ``root`` holds ``train/WNID/*.JPEG`` and the validation images, which are the split "test", in one of two forms.
    Either ``val/WNID/*.JPEG``, as torchvision and most scripts arrange them, or flat ``val/*.JPEG`` with
    ``LOC_val_solution.csv`` (ImageId, PredictionString that begins with the WNID) in ``root``. The flat form is that of
    Kaggle's archive, whose top folder with ``ILSVRC/Data/CLS-LOC`` in it may also be ``root``. Without ``val`` there is
    only "train". The class numbers of the devkit's ground truth are not read, for they need a MATLAB table.

    ``classes``: WNIDs, or a text file with one in the first column of every line. Only those classes are read, and
    their numbers follow the order of the list (ImageNet-100 is such a list). Without it all folders of ``train`` are
    classes, numbered by sorted WNID.
    ids: positions in the list of the chosen classes' files sorted by WNID and name, so a choice of classes has the
    same ids whether the other classes are on the disk or not. Images as ``ImageFiles`` says.
    ``ValueError`` names the missing file or folder, the unknown WNID, the corrupt image.
    """
    return ImageFiles(read_imagenet(Path(root), classes), split, size=size, workers=workers, **files)


def read_imagenet(root: Path, classes: str | Sequence[str] | None = None) -> Listing:
    """The listing of ImageNet or of the chosen ``classes``."""
    folder = root / "ILSVRC" / "Data" / "CLS-LOC"
    folder = folder if folder.is_dir() else root
    train, val = folder / "train", folder / "val"
    known = wnid_folders(train)
    # WNID -> class number
    codes = {wnid: code for code, wnid in enumerate(known if classes is None else choose(classes, known, train))}
    rows: list[Row] = []
    for wnid in sorted(codes):
        rows += [("train", f"train/{wnid}/{name}", codes[wnid], 0) for name in image_names(train / wnid)]
    # without a single class folder in it, val/ is flat and Kaggle's list says which class an image shows
    is_flat = val.is_dir() and not any(entry.is_dir() and not hidden(entry.name) for entry in val.iterdir())
    if val.is_dir():
        rows += flat_rows(folder, root / SOLUTION, codes, set(known)) if is_flat else folder_rows(val, codes)
    return ordered("imagenet", folder, rows, list(codes), listed=is_flat)


def wnid_folders(train: Path) -> list[str]:
    """The folders of ``train``, sorted. ``ValueError`` when there is none, or one that is not named by a WNID."""
    if not train.is_dir():
        raise ValueError(f"{train}: no such folder; this is not the ILSVRC layout")
    names = sorted(entry.name for entry in train.iterdir() if entry.is_dir() and not hidden(entry.name))
    wrong = [name for name in names if not is_wnid(name)]
    if wrong or not names:
        problem = f"folder {wrong[0]!r} in it" if wrong else "no folder in it"
        raise ValueError(f"{train}: {problem}; expected folders named by a WNID such as n01440764")
    return names


def is_wnid(name: str) -> bool:
    """Whether ``name`` is "n" and eight digits."""
    return len(name) == 9 and name[0] == "n" and name[1:].isdecimal() and name.isascii()


def choose(classes: str | Sequence[str], known: Sequence[str], train: Path) -> list[str]:
    """The WNIDs of a list or of a text file, in its order. ``ValueError`` for one that is unknown or listed twice."""
    where = classes if isinstance(classes, str) else "imagenet: classes"
    chosen = read_wnids(Path(classes)) if isinstance(classes, str) else list(classes)
    unknown = [wnid for wnid in chosen if wnid not in set(known)]
    if unknown:
        raise ValueError(f"{where}: {unknown[0]!r} is no folder of {train} ({len(unknown)} of {len(chosen)} are not)")
    if len(set(chosen)) < len(chosen) or not chosen:
        raise ValueError(f"{where}: is empty or names a WNID twice")
    return chosen


def folder_rows(val: Path, codes: dict[str, int]) -> list[Row]:
    """The validation rows of the chosen classes from ``val/WNID`` folders. ``ValueError`` when a class has none."""
    return [
        ("test", f"val/{wnid}/{name}", codes[wnid], 0) for wnid in sorted(codes) for name in image_names(val / wnid)
    ]


def flat_rows(folder: Path, solution: Path, codes: dict[str, int], known: set[str]) -> list[Row]:
    """The validation rows of the chosen classes from Kaggle's list; ``folder`` holds ``val``. ``ValueError`` for a WNID
    of no class, and a path that leads out of the folder."""
    rows: list[Row] = []
    below = Below(folder)
    for line_number, cells in read_rows(solution):
        if line_number == 1 and cells[:1] == ["ImageId"]:
            continue
        wnid = cells[1].split()[0] if len(cells) == 2 and cells[1].split() else ""
        if wnid not in known:
            raise ValueError(
                f"{solution}: line {line_number} is {excerpt(','.join(cells))!r}; expected ImageId,WNID ... of train"
            )
        if wnid in codes:
            rows.append(("test", below(f"val/{cells[0]}.JPEG", f"{solution}: line {line_number}"), codes[wnid], 0))
    return rows
