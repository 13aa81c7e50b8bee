"""Where the scans and masks of a set lie, and what its masks' values mean, in each of the layouts sets come in.

A layout is a function from a folder to what it holds, or None where the folder has another one; ``LAYOUTS`` is the
table of all. Nothing is read here but names and ``dataset.json``.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslmed_dist.data.scans.dicom_file import begins_as_dicom
from sslmed_dist.data.scans.nifti import SUFFIXES
from sslmed_dist.data.scans.scan import stem
from sslmed_dist.data.text_files import read_json
from sslmed_dist.printable import plural

DIGITS = 15  # of an exam's number at most: 4,096 times it has to fit 64 bits
NAME = re.compile(r"(image|label)_(\d+)\.nii(\.gz)?")
NUMBER = re.compile(r"(\d+)\D*")  # the last digits of a case's name
COUNTED = "exams are numbered 1, 2, ... in the order of their names, which do not end in numbers of their own"
CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net: CASE_0000 is the first channel of CASE
DESCRIPTION, PARTS = "dataset.json", "segmentations"
# Landman et al. 2015 (BTCV, "beyond the cranial vault"), values 1 to 13.
BTCV = (
    *("spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta"),
    *("inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland", "left adrenal gland"),
)
# Ma et al. 2023 (FLARE22), values 1 to 13.
FLARE22 = (
    *("liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland"),
    *("left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum", "left kidney"),
)
# Manna et al. 2025 (MOGaMBO, pelvic MR, CC BY 4.0), values 1 to 4.
MOGAMBO = ("urinary bladder", "rectum", "sigmoid colon", "femoral heads")


@dataclass(frozen=True)
class Layout:
    """What a folder holds: ``images`` and ``masks`` by ascending exam number, each a file, or a folder of DICOM files
    (image) or of one NIfTI file for each organ (mask). ``organs`` are the names of the masks' values, ascending; empty
    where the set does not say. ``aside`` says what was left alone, a line each."""

    name: str
    images: dict[int, Path]
    masks: dict[int, Path]
    organs: dict[int, str] = field(default_factory=dict)
    aside: tuple[str, ...] = ()


def scans_in(folder: Path) -> dict[str, Path]:
    """Name without suffix -> NIfTI file, for all right in the folder, sorted. Files of macOS that begin with a dot are
    none. ``ValueError`` for two files of one name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file():
            if stem(path) in found:
                raise ValueError(f"{path}: a second file of the name {stem(path)}")
            found[stem(path)] = path
    return found


def numbered(names: Iterable[str]) -> dict[str, int]:
    """The exam number of every case: the last digits of its name, where every name has some, 15 at most, and no two are
    equal; else 1, 2, ... in the order of the names."""
    ordered = sorted(names)
    digits = [match[-1] if (match := NUMBER.findall(name)) else "" for name in ordered]
    sized = all(digits) and all(len(number.lstrip("0")) <= DIGITS for number in digits)
    if sized and len({int(number) for number in digits}) == len(ordered):
        return dict(sorted(zip(ordered, map(int, digits), strict=True), key=lambda item: item[1]))
    return {name: number for number, name in enumerate(ordered, start=1)}


def require_number(path: Path, digits: str) -> int:
    """The exam number that the name of ``path`` writes. ``ValueError`` for one of more than ``DIGITS`` digits."""
    if len(digits.lstrip("0")) > DIGITS:
        raise ValueError(f"{path}: an exam number of {len(digits)} digits; allowed: {DIGITS}")
    return int(digits)


def paired(
    name: str, images: dict[str, Path], masks: dict[str, Path], organs: dict[int, str], aside: tuple[str, ...] = ()
) -> Layout:
    """A layout of images and masks that go by the names of their cases."""
    numbers = numbered(images.keys() | masks.keys())
    if any(not NUMBER.findall(case) or int(NUMBER.findall(case)[-1]) != number for case, number in numbers.items()):
        aside = (*aside, COUNTED)
    of = [{number: files[case] for case, number in numbers.items() if case in files} for files in (images, masks)]
    return Layout(name, of[0], of[1], organs, aside)


def prepared(folder: Path) -> Layout | None:
    """``image_PP.nii[.gz]`` and ``label_PP.nii[.gz]`` in one folder, as ``sslmed data prepare`` writes them."""
    paths: dict[str, dict[int, Path]] = {"image": {}, "label": {}}
    for path in sorted(folder.iterdir()):
        match = NAME.fullmatch(path.name)
        if match:
            require_number(path, match[2])
        if match and int(match[2]) in paths[match[1]]:
            raise ValueError(f"{path}: a second {match[1]} of exam {int(match[2])}")
        if match:
            paths[match[1]][int(match[2])] = path
    if not paths["image"]:
        return None
    return Layout("NIfTI exams", dict(sorted(paths["image"].items())), dict(sorted(paths["label"].items())))


def described(folder: Path) -> Layout | None:
    """``imagesTr``, ``labelsTr`` and ``dataset.json``: the Medical Segmentation Decathlon (CASE.nii.gz), nnU-Net of
    version 1 and 2 (CASE_0000.nii.gz, a file for each channel). ``ValueError`` for more than one channel."""
    if not ((folder / DESCRIPTION).is_file() and (folder / "imagesTr").is_dir()):
        return None
    description = read_description(folder / DESCRIPTION)
    labels, files = scans_in(folder / "labelsTr"), scans_in(folder / "imagesTr")
    channels = description.get("channel_names", description.get("modality"))
    by_channel = {case: match for case in files if (match := CHANNEL.fullmatch(case))}
    # CASE_0000 is a channel where CASE is what the masks are called, or where every file is called so
    nnunet = bool(files) and len(by_channel) == len(files) and not labels.keys() & files.keys()
    if nnunet and len(set(match[2] for match in by_channel.values())) > 1:
        names = ", ".join(map(str, channels.values() if isinstance(channels, dict) else channels or ()))
        raise ValueError(f"{folder}: images of several channels ({names}); allowed: one, as files of their own folder")
    images = {by_channel[case][1]: path for case, path in files.items()} if nnunet else files
    kind = "nnU-Net" if nnunet else "Medical Segmentation Decathlon"
    if nnunet:
        kind += " (version 2)" if "channel_names" in description else " (version 1)"
    tests = scans_in(folder / "imagesTs")
    aside = (f"imagesTs: {plural(len(tests), 'image')} without masks are left aside",) if tests else ()
    return paired(kind, images, labels, organs_of(folder / DESCRIPTION, description.get("labels")), aside)


def read_description(path: Path) -> dict[str, Any]:
    """The mapping in ``dataset.json``. ``ValueError`` for anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping")
    return content


def organs_of(path: Path, labels: Any) -> dict[int, str]:
    """Mask value -> organ, without the background. Version 1 and the Decathlon write {"1": "liver"}, version 2
    {"liver": 1}. ``ValueError`` for a region of several values, an ignore label, or no names at all."""
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f"{path}: has no labels")
    by_value: dict[int, str] = {}
    for key, value in labels.items():
        number, name = (key, value) if isinstance(value, str) else (value, key)
        if isinstance(number, list) or name == "ignore":
            raise ValueError(
                f"{path}: label {name!r} is a region of several values or is to be ignored; allowed: organs"
            )
        if not re.fullmatch(r"\d{1,5}", str(number)) or int(number) in by_value:
            raise ValueError(f"{path}: label {name!r} has the value {number!r}; allowed: a whole number of its own")
        if name in by_value.values():
            raise ValueError(f"{path}: two values are called {name!r}; allowed: each organ once")
        by_value[int(number)] = str(name)
    return {value: name for value, name in sorted(by_value.items()) if value}


def total_segmentator(folder: Path) -> Layout | None:
    """A folder for each case with ``ct.nii.gz`` or ``mri.nii.gz``, and ``segmentations`` with a mask for each organ
    (Wasserthal et al. 2023). The organs are those of all cases, by name."""
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    organs: set[str] = set()
    for case in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        found = scans_in(case)
        both = [found[modality] for modality in ("ct", "mri") if modality in found]
        if len(both) > 1 and (case / PARTS).is_dir():
            raise ValueError(f"{case}: holds {both[0].name} and {both[1].name}; allowed: the one that {PARTS} is of")
        if both:
            images[case.name] = both[0]
        if case.name in images and (case / PARTS).is_dir():
            masks[case.name] = case / PARTS
            organs |= scans_in(case / PARTS).keys()
    if not masks:
        return None
    return paired("TotalSegmentator", images, masks, dict(enumerate(sorted(organs), start=1)))


# Layouts of a folder of images and one of masks: name, pairs of folders, what precedes a case's name in either, organs.
PAIRS = (
    ("BTCV", (("imagesTr", "labelsTr"), ("img", "label")), (r"img(\d+)", r"label(\d+)"), BTCV),
    ("FLARE22", (("images", "labels"), ("imagesTr", "labelsTr")), (r"(FLARE22_\w+)_0000", r"(FLARE22_\w+)"), FLARE22),
    ("MOGaMBO", (("images", "labels"), ("images", "masks")), (r"(?i:(\w*mogambo\w*))",) * 2, MOGAMBO),
)


def two_folders(folder: Path) -> Layout | None:
    """BTCV, FLARE22 and MOGaMBO as they are downloaded: a folder of images beside one of masks, here or in
    ``RawData/Training`` or ``Training``. MOGaMBO's files were not at hand: their names have to hold the set's name."""
    for below in ("", "RawData/Training", "Training"):
        for name, folders, patterns, organs in PAIRS:
            for pair in folders:
                files = [matching(folder / below / part, pattern) for part, pattern in zip(pair, patterns, strict=True)]
                if all(files):
                    return paired(name, files[0], files[1], dict(enumerate(organs, start=1)))
    return None


def matching(folder: Path, pattern: str) -> dict[str, Path]:
    """Case -> file, for the files whose name without suffix fits ``pattern``."""
    return {
        match[1]: path for name, path in scans_in(folder).items() if (match := re.fullmatch(pattern, name)) is not None
    }


def any_nifti(folder: Path) -> Layout | None:
    """A folder of NIfTI files of any names, all of them images."""
    images = scans_in(folder)
    return paired("NIfTI files", images, {}, {}) if images else None


def dicom_folders(folder: Path) -> Layout | None:
    """A DICOM series right in the folder, or folders with one each."""
    places = [folder] if holds_dicom(folder) else [entry for entry in sorted(folder.iterdir()) if holds_dicom(entry)]
    images = {place.name: place for place in places}
    return paired("DICOM series", images, {}, {}) if images else None


def holds_dicom(folder: Path) -> bool:
    """Whether a file right in the folder, but hidden ones, begins as DICOM does, with or without its preamble
    (``dicom_file.begins_as_dicom``)."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return any(not path.name.startswith(".") and path.is_file() and begins_as_dicom(path) for path in entries)


# The first that fits is taken. Those of the first part say which file is a mask.
ANNOTATED: tuple[Callable[[Path], Layout | None], ...] = (prepared, described, total_segmentator, two_folders)
LAYOUTS = (*ANNOTATED, any_nifti, dicom_folders)


def layout_of(folder: Path, layouts: Iterable[Callable[[Path], Layout | None]]) -> Layout | None:
    """What ``folder`` holds in the first of the ``layouts`` that it has; None in none of them. ``ValueError`` as the
    layouts, for a folder that has one and is damaged."""
    return next((found for layout in layouts if (found := layout(folder)) is not None), None)


def find_layout(folder: Path, layouts: Iterable[Callable[[Path], Layout | None]] = LAYOUTS) -> Layout:
    """What ``folder`` holds. ``ValueError`` for no folder, no image, and as the layouts."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = layout_of(folder, layouts)
    if found is not None:
        return found
    raise ValueError(
        f"{folder}: no exam in it; expected image_01.nii.gz, label_01.nii.gz, ..., or imagesTr, labelsTr and "
        f"{DESCRIPTION}, or folders with ct.nii.gz and {PARTS}, or NIfTI files, or a DICOM series "
        "in it or in each folder right below it"
    )


def names_beside(mask: Path) -> tuple[dict[int, str], list[str]]:
    """(name of every value of a mask, what is to be said about them) by the set that the mask lies in: two folders up
    is a set in one of the layouts, and the mask is one of its masks. Empty where it is not."""
    root = mask.resolve().parent.parent
    try:
        layout = find_layout(root, ANNOTATED)
    except ValueError as error:
        why = str(error).replace(f"{root}/", "").replace(f"{root}: ", "")
        return {}, [f"names of labels could not be read: {why}"] if (root / DESCRIPTION).is_file() else []
    return (layout.organs if mask.resolve() in layout.masks.values() else {}), []
