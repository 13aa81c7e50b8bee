"""Published medical sets of image files: MURA, Chaoyang, ISIC 2016 and MHIST, each in the layout of its archive."""

import re
from pathlib import Path
from typing import Any, Literal

from sslmed_dist.data.dataset import Split
from sslmed_dist.data.images.files import ImageFiles, Listing, Row, ordered, takes_duplicates, unpacked
from sslmed_dist.data.listed_paths import Below
from sslmed_dist.data.text_files import add_once, read_json, read_lines, read_rows, read_table
from sslmed_dist.printable import excerpt

STUDY = re.compile(r"(train|valid)/(XR_[A-Z]+)/patient([0-9]{1,18})/study[0-9]+_(positive|negative)/[^/]+")
CHAOYANG = ("normal", "serrated", "adenocarcinoma", "adenoma")
ISIC = "ISBI2016_ISIC_Part3"
ISIC_LABELS = {"benign": 0, "0.0": 0, "0": 0, "malignant": 1, "1.0": 1, "1": 1}
MHIST = ("Image Name", "Majority Vote Label", "Partition")
Channels = Literal[1, 3]


@takes_duplicates
def mura(
    root: str | Path, split: Split = "train", size: int = 224, channels: Channels = 1, workers: int = 2, **files: Any
) -> ImageFiles:
    """MURA v1.1 (Rajpurkar et al. 2018): radiographs of the upper limb, 36,808 train and 3,197 test images.

    An image has the label of its study, negative 0 or positive 1; its group is the patient. ``root`` holds
    ``MURA-v1.1``, or is it, as Stanford's archive unpacks:
    ``{train,valid}/XR_REGION/patientNNNNN/studyN_{positive,negative}/imageN.png``. ``{train,valid}_image_paths.csv``
    lists the images (one path per line, from "MURA-v1.1/"), ``{train,valid}_labeled_studies.csv`` the labels (path of
    a study, 0 or 1). The split "test" is valid/, for the authors' own test part was never released.
    ``ValueError`` names the missing file, the line that is no path of the layout, or the study whose label contradicts
    its folder's name.
    """
    return ImageFiles(read_mura(Path(root)), split, size=size, channels=channels, workers=workers, **files)


def read_mura(root: Path) -> Listing:
    """The listing of MURA."""
    folder = unpacked(root, "MURA-v1.1", "train_image_paths.csv")
    rows: list[Row] = []
    below = Below(folder)
    for split, folder_name in (("train", "train"), ("test", "valid")):
        studies = read_studies(folder / f"{folder_name}_labeled_studies.csv")
        path = folder / f"{folder_name}_image_paths.csv"
        for line_number, line in read_lines(path):
            name = below(line.strip().split("MURA-v1.1/")[-1], f"{path}: line {line_number}")
            match = STUDY.fullmatch(name)
            if match is None or match[1] != folder_name:
                expected = f"expected {folder_name}/XR_*/patient*/study*_*/image*"
                raise ValueError(f"{path}: line {line_number} is {excerpt(line)!r}; {expected}")
            # the folder's name and the list of studies must agree on the label
            study, label = name.rsplit("/", 1)[0], int(match[4] == "positive")
            if studies.get(study) != label:
                raise ValueError(
                    f"{path}: line {line_number}: {study} has label {studies.get(study)} in the list of studies"
                )
            rows.append((split, name, label, int(match[3])))
    return ordered("mura", folder, rows, ("negative", "positive"), grouped=True)


def read_studies(path: Path) -> dict[str, int]:
    """Study folder (from train/ or valid/) -> 0 or 1. ``ValueError`` for a line that is not one, or a study named
    twice."""
    labels: dict[str, int] = {}
    for line_number, cells in read_rows(path):
        if len(cells) != 2 or cells[1] not in ("0", "1"):
            line = excerpt(",".join(cells))
            raise ValueError(f"{path}: line {line_number} is {line!r}; expected path of a study,0 or 1")
        study = cells[0].split("MURA-v1.1/")[-1].rstrip("/")
        add_once(labels, study, int(cells[1]), f"{path}: line {line_number}")
    return labels


@takes_duplicates
def chaoyang(
    root: str | Path, split: Split = "train", size: int = 224, channels: Channels = 3, workers: int = 2, **files: Any
) -> ImageFiles:
    """Chaoyang (Zhu et al. 2021): colon histology, 4,021 train and 2,139 test patches of 512 x 512 in four classes:
    normal, serrated, adenocarcinoma, adenoma.

    ``root`` holds ``train.json`` and ``test.json``, each a list of {"name": path below root, "label": 0 to 3}, as the
    authors' loader reads them. ``ValueError`` names the missing file, the malformed entry or the unknown label.
    """
    return ImageFiles(read_chaoyang(Path(root)), split, size=size, channels=channels, workers=workers, **files)


def read_chaoyang(root: Path) -> Listing:
    """The listing of Chaoyang."""
    rows: list[Row] = []
    below = Below(root)
    for split in ("train", "test"):
        path = root / f"{split}.json"
        content = read_json(path)
        if not isinstance(content, list):
            raise ValueError(f"{path}: expected a list, got {type(content).__name__}")
        for entry_number, entry in enumerate(content):
            name, label = (entry.get("name"), entry.get("label")) if isinstance(entry, dict) else (None, None)
            if not isinstance(name, str) or type(label) is not int or not 0 <= label < len(CHAOYANG):
                shown = excerpt(str(entry))
                raise ValueError(f"{path}: entry {entry_number} is {shown}; expected a name and a label of 0 to 3")
            rows.append((split, below(name, f"{path}: entry {entry_number}"), label, 0))
    return ordered("chaoyang", root, rows, CHAOYANG)


@takes_duplicates
def isic2016(
    root: str | Path, split: Split = "train", size: int = 224, channels: Channels = 3, workers: int = 2, **files: Any
) -> ImageFiles:
    """ISIC 2016, part 3 (Gutman et al. 2016): 900 train and 379 test dermoscopic images, benign 0 or malignant 1.

    ``root`` holds, as the challenge's archives unpack, ``ISBI2016_ISIC_Part3_{Training,Test}_Data/*.jpg`` and
    ``ISBI2016_ISIC_Part3_{Training,Test}_GroundTruth.csv`` without a heading: image id and benign or malignant
    (training), image id and 0.0 or 1.0 (test). ``ValueError`` names the missing file and the malformed line.
    """
    return ImageFiles(read_isic2016(Path(root)), split, size=size, channels=channels, workers=workers, **files)


def read_isic2016(root: Path) -> Listing:
    """The listing of ISIC 2016."""
    rows: list[Row] = []
    below = Below(root)
    for split, part_name in (("train", "Training"), ("test", "Test")):
        path = root / f"{ISIC}_{part_name}_GroundTruth.csv"
        for line_number, cells in read_rows(path):
            if len(cells) != 2 or cells[1] not in ISIC_LABELS:
                expected = "expected image id and benign, malignant, 0.0 or 1.0"
                raise ValueError(f"{path}: line {line_number} is {excerpt(','.join(cells))!r}; {expected}")
            name = below(f"{ISIC}_{part_name}_Data/{cells[0]}.jpg", f"{path}: line {line_number}")
            rows.append((split, name, ISIC_LABELS[cells[1]], 0))
    return ordered("isic2016", root, rows, ("benign", "malignant"))


@takes_duplicates
def mhist(
    root: str | Path, split: Split = "train", size: int = 224, channels: Channels = 3, workers: int = 2, **files: Any
) -> ImageFiles:
    """MHIST (Wei et al. 2021): 2,175 train and 977 test patches of colorectal polyps, 224 x 224.

    The label is the majority of seven pathologists: hyperplastic polyp (HP, 0) or sessile serrated adenoma (SSA, 1).
    ``root`` holds ``images/*.png`` and ``annotations.csv`` with the columns "Image Name", "Majority Vote Label" (HP or
    SSA), the number of annotators who chose SSA (not used) and "Partition" (train or test).
    ``ValueError`` names the missing file or column and the malformed line.
    """
    return ImageFiles(read_mhist(Path(root)), split, size=size, channels=channels, workers=workers, **files)


def read_mhist(root: Path) -> Listing:
    """The listing of MHIST."""
    path, classes = root / "annotations.csv", ("HP", "SSA")
    rows: list[Row] = []
    below = Below(root)
    for line_number, row in read_table(path, MHIST):
        name, label, split = (row[key] for key in MHIST)
        if not name or label not in classes or split not in ("train", "test"):
            cells = ", ".join(repr(excerpt(cell)) for cell in (name, label, split))
            raise ValueError(f"{path}: line {line_number} is {cells}; expected a name, HP or SSA, train or test")
        rows.append((split, below(f"images/{name}", f"{path}: line {line_number}"), classes.index(label), 0))
    return ordered("mhist", root, rows, classes)
