"""``data prepare chaos``: the MR part of CHAOS (Kavur et al. 2021) from DICOM and PNG masks to NIfTI exams.

The recipe is that of Ouyang et al. 2020 (published code), with two differences. The affine is changed along with the
crop. Organs in the masks are recognised by their published grey ranges, and not by the rank of their grey value, which
gives wrong labels when an organ is missing.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sslmed_dist.data.damage import reason
from sslmed_dist.data.exams.abdominal import ORGANS
from sslmed_dist.data.prepare.orientation import arrangement_scores
from sslmed_dist.data.prepare.prepared_set import Note, PreparedExam, numbered, require_raw, silent, write_set
from sslmed_dist.data.scans.dicom import ENDS_UNKNOWN, Series, read_series
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
AXIAL = np.cos(np.deg2rad(45))  # the least cosine between the normal of axial slices and the body's axis
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

    Masks lie there for all patients or for none (the published test set). What is written: int16 images and uint8
    masks of 256 x 256 voxels in the plane, 1.25 x 1.25 x 7.7 mm, axes left, anterior, superior; a picture per exam;
    ``manifest.json``. All of it or nothing, and the same bytes from the same source and versions.
    ``ValueError`` in one line: another layout, a prepared set, a series as ``read_series``, slices that are not axial,
    masks that do not match, an unknown grey value, image and mask in different orientations.
    """
    patients = find_patients(Path(source))
    masked = [patient for patient, folder in patients.items() if (folder / "T2SPIR" / "Ground").is_dir()]
    for patient, folder in patients.items():
        if masked and patient not in masked:
            raise ValueError(f"{folder / 'T2SPIR' / 'Ground'}: no such folder, other patients have masks")
    return write_set(out, "chaos", STEPS, read_patients(patients, bool(masked), note), note, source)


def find_patients(source: Path) -> dict[int, Path]:
    """Patient folders by number, in ``source`` or in MR, Train_Sets/MR, ... below it. ``ValueError`` for none."""
    require_raw(source)
    for below in ("", "MR", "Train_Sets/MR", "CHAOS_Train_Sets/Train_Sets/MR", "Test_Sets/MR"):
        folder = source / below
        numbered_folders = (
            numbered((path for path in folder.iterdir() if path.is_dir()), r"(\d+)") if folder.is_dir() else {}
        )
        patients = {patient: path for patient, path in numbered_folders.items() if (path / "T2SPIR").is_dir()}
        if not patients:
            continue
        for path in numbered_folders.values():
            if not (path / "T2SPIR" / "DICOM_anon").is_dir():
                raise ValueError(f"{path / 'T2SPIR' / 'DICOM_anon'}: no such folder, other patients have one")
        return numbered_folders
    raise ValueError(f"{source}: no patient of CHAOS MR in it; expected folders like 1/T2SPIR/DICOM_anon")


def read_patients(patients: dict[int, Path], masked: bool, note: Note) -> Iterator[PreparedExam]:
    """The prepared scans, one by one."""
    for patient, folder in patients.items():
        series = read_series(folder / "T2SPIR" / "DICOM_anon")
        # a mask for each slice, and no more, is a count as well
        for notice in (line for line in series.notices if not (masked and line == ENDS_UNKNOWN)):
            note(f"exam {patient:02d}: {notice}")
        if masked and series.resampled:
            raise ValueError(f"{folder}: tilted gantry or uneven slices: its masks are those of other slices")
        labels = read_masks(folder / "T2SPIR" / "Ground", series) if masked else None
        yield prepare_scan(patient, series, labels, note, place=str(folder))


def trailing_number(name: str) -> int | None:
    """The number at the end of a file's name before its suffix; None without one."""
    match = re.search(r"(\d+)$", Path(name).stem)
    return int(match[1]) if match else None


def read_masks(folder: Path, series: Series) -> Labels:
    """Masks (columns, rows, slices) in the order of the series. Each PNG belongs to the DICOM file whose name ends in
    the same number; its rows are the rows of the slice. ``ValueError`` naming a file without a partner, of another
    size, or with an unknown grey value."""
    # the two kinds of files by the number at the end of their names: each slice must have one mask, each mask one slice
    files: dict[int, str] = {}
    for name in series.files:
        slice_number = trailing_number(name)
        if slice_number is None or slice_number in files:
            raise ValueError(f"{folder}: the number of DICOM file {name} is missing or not its own; it has no mask")
        files[slice_number] = name
    pictures = numbered((path for path in folder.iterdir() if path.suffix.lower() == ".png"), r".*?(\d+)\.(?:png|PNG)")
    for slice_number, name in files.items():
        if slice_number not in pictures:
            raise ValueError(f"{folder}: no mask for the slice {name} ({len(pictures)} masks, {len(files)} slices)")
    for slice_number, path in pictures.items():
        if slice_number not in files:
            raise ValueError(f"{path}: no slice with number {slice_number} in the DICOM series")
    size = series.voxels.shape[:2]
    order = [trailing_number(name) for name in series.files]
    return np.stack(
        [read_mask(pictures[slice_number], size).T for slice_number in order if slice_number is not None], axis=2
    )


def read_mask(path: Path, size: tuple[int, ...]) -> Labels:
    """One PNG as labels 0 to 4, uint8 (rows, columns). ``size`` is that of its slice, (columns, rows). ``ValueError``
    naming a file that cannot be read, is not 8-bit grey, or has another size or an unknown grey value."""
    from torchvision.io import ImageReadMode, read_image

    try:
        pixels = read_image(str(path), ImageReadMode.UNCHANGED).numpy()
    except RuntimeError as error:
        raise ValueError(f"{path}: corrupt or no PNG: {reason(error)}") from error
    if pixels.shape[0] != 1 or pixels.dtype != np.uint8:
        raise ValueError(f"{path}: expected 8-bit grey, got {pixels.shape[0]} channel(s) of {pixels.dtype}")
    columns, rows = size
    if pixels.shape[1:] != (rows, columns):
        raise ValueError(f"{path}: {pixels.shape[1]} rows x {pixels.shape[2]}, its slice has {rows} x {columns}")
    # grey value to label by a look-up table; 255 marks the grey values that mean nothing
    table = np.full(256, 255, np.uint8)
    table[0] = 0
    for low, high, label in GREYS:
        table[low : high + 1] = label
    labels: Labels = table[pixels[0]]
    if (labels == 255).any():
        allowed = ", ".join(f"{low}-{high} {ORGANS[label - 1]}" for low, high, label in GREYS)
        raise ValueError(f"{path}: grey value {int(pixels[0][labels == 255][0])}; allowed: 0, {allowed}")
    return labels


def prepare_scan(exam_number: int, series: Series, labels: Labels | None, note: Note, *, place: str) -> PreparedExam:
    """The steps of the recipe on one series and its ``labels`` (columns, rows, slices), where there are any. ``place``
    names the series in messages. ``ValueError`` for slices that are not axial."""
    # the cosine between the slices' normal and the body's axis
    upwards = abs(series.affine[2, 2]) / spacing(series.affine)[2]
    if upwards < AXIAL:
        raise ValueError(f"{place}: slices are not axial (their normal is more than 45 degrees from the body's axis)")
    top = float(np.percentile(series.voxels, PERCENTILE))
    clipped = np.minimum(series.voxels, np.float32(top))
    affine, turned = turn(series.affine, [clipped] if labels is None else [clipped, labels], "LAS")
    image: Volume = turned[0].astype(np.float32, copy=False)
    # resample, then crop or pad; where the new grid leaves the scan it holds the volume's minimum
    low = float(image.min())
    old_spacing = spacing(affine)
    positions = [positions_at(size, *sides) for size, *sides in zip(image.shape, old_spacing, SPACING, strict=True)]
    resampled_affine = moved(affine, positions)
    voxels, new_affine = crop_or_pad(resample(image, positions, low), resampled_affine, SIZE, low)
    record: dict[str, Any] = {
        "source": {"shape": list(series.voxels.shape), "spacing_mm": [round(side, 6) for side in series.spacing]},
        "clipped_above": round(top, 4),
    }
    mask: Labels | None = None
    scores: dict[str, float] = {}
    if labels is not None:
        organs: Labels = turned[1].astype(np.uint8, copy=False)
        # on the grid of the scan, where reversing an axis moves every voxel exactly onto another one
        scores = arrangement_scores(image, organs)
        resampled_mask = resample_labels(organs, positions, len(ORGANS))
        mask = crop_or_pad(resampled_mask, new_affine, SIZE, 0)[0].astype(np.uint8, copy=False)
        # what the crop takes away from each organ is worth a line to the user
        values = len(ORGANS) + 1
        lost = np.bincount(resampled_mask.ravel(), minlength=values) - np.bincount(mask.ravel(), minlength=values)
        cut_off = {organ: int(count) for organ, count in zip(ORGANS, lost[1:], strict=True)}
        record["voxels_cut_off"] = cut_off
        for organ, count in cut_off.items():
            if count:
                note(
                    f"exam {exam_number:02d}: {count} voxels of the {organ} lie outside the {SIZE[0]} x {SIZE[1]} crop"
                )
    return PreparedExam(exam_number, voxels.astype(np.float32, copy=False), mask, new_affine, scores, record)
