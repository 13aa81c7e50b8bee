"""``data prepare chaos``: the MR part of CHAOS (Kavur et al. 2021) from DICOM and PNG masks to NIfTI exams.

The recipe of Ouyang et al. 2020 (published code), with two differences: the affine moves with the crop, and masks are
told by their published grey ranges, not by rank, which shifts labels when an organ is missing.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sslmed_dist.data.exams.abdominal import ORGANS
from sslmed_dist.data.prepare.orientation import arrangement_scores
from sslmed_dist.data.prepare.prepared_set import Note, PreparedExam, numbered, require_raw, silent, write_set
from sslmed_dist.data.scans.dicom import Series, read_series
from sslmed_dist.data.scans.regrid import (
    Labels,
    Volume,
    crop_or_pad,
    moved,
    positions_at,
    resample,
    resample_labels,
    spacing,
    turn,
)

SPACING = (1.25, 1.25, 7.7)  # mm
SIZE = (256, 256)
PERCENTILE = 99.5
GREYS = ((55, 70, 1), (110, 135, 2), (175, 200, 3), (240, 255, 4))  # from, to (with it), label
AXIAL = np.cos(np.deg2rad(45))
STEPS = [
    f"clip above the {PERCENTILE}th percentile of the volume",
    "turn to left, anterior, superior by swapping and flipping axes",
    f"resample to {' x '.join(map(str, SPACING))} mm, linear; int(size * old / new + 1) voxels, the first on the "
    "first; the volume's minimum beyond the scan; masks per organ, 0.5 or more",
    f"crop or pad about the centre to {SIZE[0]} x {SIZE[1]} in the plane (minimum of the volume, label 0)",
    "round to int16; values are the scanner's, rescaled",
]


def prepare_chaos(source: str | Path, out: str | Path, *, note: Note = silent) -> Path:
    """Prepare ``source``, the folder MR of CHAOS or one that holds it: PATIENT/T2SPIR/DICOM_anon/*.dcm and
    PATIENT/T2SPIR/Ground/*.png, into the new folder ``out``; return it. ``note`` is told of each exam.

    Masks lie there for all patients or for none (the published test set). Written are int16 images and uint8 masks of
    256 x 256 voxels in the plane, 1.25 x 1.25 x 7.7 mm, axes left, anterior, superior, a picture per exam and
    ``manifest.json``, all or nothing; the same bytes from the same source and versions.
    ``ValueError`` in one line: another layout, a prepared set, a series as ``read_series``, slices that are not axial,
    masks that do not match, an unknown grey value, image and mask in different orientations.
    """
    patients = find_patients(Path(source))
    masked = [number for number, folder in patients.items() if (folder / "T2SPIR" / "Ground").is_dir()]
    for number, folder in patients.items():
        if masked and number not in masked:
            raise ValueError(f"{folder / 'T2SPIR' / 'Ground'}: no such folder, other patients have masks")
    return write_set(out, "chaos", STEPS, read_patients(patients, bool(masked), note), note, source)


def find_patients(source: Path) -> dict[int, Path]:
    """Patient folders by number, in ``source`` or in MR, Train_Sets/MR, ... below it. ``ValueError`` for none."""
    require_raw(source)
    for below in ("", "MR", "Train_Sets/MR", "CHAOS_Train_Sets/Train_Sets/MR", "Test_Sets/MR"):
        place = source / below
        found = numbered((path for path in place.iterdir() if path.is_dir()), r"(\d{1,9})") if place.is_dir() else {}
        patients = {number: path for number, path in found.items() if (path / "T2SPIR").is_dir()}
        if not patients:
            continue
        for path in found.values():
            if not (path / "T2SPIR" / "DICOM_anon").is_dir():
                raise ValueError(f"{path / 'T2SPIR' / 'DICOM_anon'}: no such folder, other patients have one")
        return found
    raise ValueError(f"{source}: no patient of CHAOS MR in it; expected folders like 1/T2SPIR/DICOM_anon")


def read_patients(patients: dict[int, Path], masked: bool, note: Note) -> Iterator[PreparedExam]:
    """The prepared scans, one by one."""
    for number, folder in patients.items():
        series = read_series(folder / "T2SPIR" / "DICOM_anon")
        labels = read_masks(folder / "T2SPIR" / "Ground", series) if masked else None
        yield prepare_scan(number, series, labels, note, place=str(folder))


def trailing_number(name: str) -> int | None:
    """The number at the end of a file's name before its suffix; None without one."""
    match = re.search(r"(\d+)$", Path(name).stem)
    return int(match[1]) if match else None


def read_masks(folder: Path, series: Series) -> Labels:
    """Masks (columns, rows, slices) in the order of the series: each PNG belongs to the DICOM file whose name ends in
    the same number; its rows are the rows of the slice. ``ValueError`` naming a file without a partner, of another
    size, or with an unknown grey value."""
    files: dict[int, str] = {}
    for name in series.files:
        number = trailing_number(name)
        if number is None or number in files:
            raise ValueError(f"{folder}: the number of DICOM file {name} is missing or not its own; it has no mask")
        files[number] = name
    pictures = numbered((path for path in folder.iterdir() if path.suffix.lower() == ".png"), r".*?(\d+)\.(?:png|PNG)")
    for number, name in files.items():
        if number not in pictures:
            raise ValueError(f"{folder}: no mask for the slice {name} ({len(pictures)} masks, {len(files)} slices)")
    for number, path in pictures.items():
        if number not in files:
            raise ValueError(f"{path}: no slice with number {number} in the DICOM series")
    size = series.voxels.shape[:2]
    order = [trailing_number(name) for name in series.files]
    return np.stack([read_mask(pictures[number], size).T for number in order if number is not None], axis=2)


def read_mask(path: Path, size: tuple[int, ...]) -> Labels:
    """One PNG (rows, columns) as labels 0 to 4. ``ValueError`` naming the file."""
    from torchvision.io import ImageReadMode, read_image

    try:
        picture = read_image(str(path), ImageReadMode.UNCHANGED).numpy()
    except RuntimeError as error:
        raise ValueError(f"{path}: corrupt or no PNG: {' '.join(str(error).split())[:200]}") from error
    if picture.shape[0] != 1 or picture.dtype != np.uint8:
        raise ValueError(f"{path}: expected 8-bit grey, got {picture.shape[0]} channel(s) of {picture.dtype}")
    columns, rows = size
    if picture.shape[1:] != (rows, columns):
        raise ValueError(f"{path}: {picture.shape[1]} rows x {picture.shape[2]}, its slice has {rows} x {columns}")
    table = np.full(256, 255, np.uint8)
    table[0] = 0
    for low, high, label in GREYS:
        table[low : high + 1] = label
    labels: Labels = table[picture[0]]
    if (labels == 255).any():
        allowed = ", ".join(f"{low}-{high} {ORGANS[label - 1]}" for low, high, label in GREYS)
        raise ValueError(f"{path}: grey value {int(picture[0][labels == 255][0])}; allowed: 0, {allowed}")
    return labels


def prepare_scan(number: int, series: Series, labels: Labels | None, note: Note, *, place: str) -> PreparedExam:
    """The steps of the recipe on one series. ``ValueError`` naming ``place`` for slices that are not axial."""
    upwards = abs(series.affine[2, 2]) / spacing(series.affine)[2]
    if upwards < AXIAL:
        raise ValueError(f"{place}: slices are not axial (their normal is more than 45 degrees from the body's axis)")
    top = float(np.percentile(series.voxels, PERCENTILE))
    clipped = np.minimum(series.voxels, np.float32(top))
    affine, turned = turn(series.affine, [clipped] if labels is None else [clipped, labels], "LAS")
    image: Volume = turned[0].astype(np.float32, copy=False)
    low = float(image.min())
    old = spacing(affine)
    where = [positions_at(size, *sides) for size, *sides in zip(image.shape, old, SPACING, strict=True)]
    fine = moved(affine, where)
    voxels, final = crop_or_pad(resample(image, where, low), fine, SIZE, low)
    facts: dict[str, Any] = {
        "source": {"shape": list(series.voxels.shape), "spacing_mm": [round(side, 6) for side in series.spacing]},
        "clipped_above": round(top, 4),
    }
    mask: Labels | None = None
    scores: dict[str, float] = {}
    if labels is not None:
        organs: Labels = turned[1].astype(np.uint8, copy=False)
        # on the grid of the scan, where a reversed axis is exactly that
        scores = arrangement_scores(image, organs)
        whole = resample_labels(organs, where, len(ORGANS))
        mask = crop_or_pad(whole, final, SIZE, 0)[0].astype(np.uint8, copy=False)
        lost = np.bincount(whole.ravel(), minlength=5) - np.bincount(mask.ravel(), minlength=5)
        cut_off = {organ: int(count) for organ, count in zip(ORGANS, lost[1:], strict=True)}
        facts["voxels_cut_off"] = cut_off
        for organ, count in cut_off.items():
            if count:
                note(f"exam {number:02d}: {count} voxels of the {organ} lie outside the {SIZE[0]} x {SIZE[1]} crop")
    return PreparedExam(number, voxels.astype(np.float32, copy=False), mask, final, scores, facts)
