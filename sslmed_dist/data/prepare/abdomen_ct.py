"""``data prepare abdomen-ct``: abdominal CT in the layout of BTCV (Landman et al. 2015) to NIfTI exams.

The recipe is that of Ouyang et al. 2020 (published code): window, crop of the border, 256 x 256 in the plane. The
affine is changed along with the crop and the resampling, so voxels stay where they are in the patient.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslmed_dist.data.exams.abdominal import ORGANS
from sslmed_dist.data.prepare.orientation import arrangement_scores
from sslmed_dist.data.prepare.prepared_set import Note, PreparedExam, numbered, require_raw, silent, write_set
from sslmed_dist.data.scans.nifti import read_canonical, require_stated_orientation
from sslmed_dist.data.scans.regrid import (
    Affine,
    Labels,
    Volume,
    moved,
    resample,
    resample_labels,
    spacing,
    turn,
)

WINDOW = (-125.0, 275.0)  # Hounsfield units that become 0 and 255
BORDER = 32  # pixels cut from each side of the plane
SIZE = 256
LARGEST = 13  # the highest label of BTCV
LABELS = {6: 1, 2: 2, 3: 3, 1: 4}  # BTCV's label to ours: liver, right kidney, left kidney, spleen
FOLDERS = (("imagesTr", "labelsTr"), ("img", "label"))
STEPS = [
    "turn to left, anterior, superior by swapping and flipping axes",
    f"window {WINDOW[0]:g} to {WINDOW[1]:g} HU to 0 ... 255",
    f"cut {BORDER} pixels from each side of the plane",
    f"resample the plane to {SIZE} x {SIZE}, linear; every (size / {SIZE})th position, the first on the first; "
    "masks per organ, 0.5 or more; slices stay as they are",
    "labels 6 liver, 2 right kidney, 3 left kidney, 1 spleen to 1, 2, 3, 4; others to 0",
    "round to int16",
]


def prepare_ct(source: str | Path, out: str | Path, *, note: Note = silent) -> Path:
    """Prepare ``source``: imagesTr/img0001.nii[.gz] and labelsTr/label0001.nii[.gz], or the folders img and label
    (also below RawData/Training), into the new folder ``out``; return it. ``note`` is told of each exam.

    What is written: int16 images (0 to 255) and uint8 masks of 256 x 256 voxels in the plane, slices as they were, axes
    left, anterior, superior; a picture per exam; ``manifest.json``. All of it or nothing.
    ``ValueError`` in one line naming the file: another layout, a prepared set, a file without its partner, not 3-D, one
    slice, NaN, truncated, spacing 0, orientation unknown, another grid than the image, a label outside 0 to 13, image
    and mask in different orientations.
    """
    pairs = find_pairs(Path(source))
    return write_set(out, "abdomen-ct", STEPS, (read_pair(n, *paths) for n, paths in pairs.items()), note, source)


def find_pairs(source: Path) -> dict[int, tuple[Path, Path]]:
    """(image, mask) by exam number. ``ValueError`` for no pair, or one without its partner."""
    require_raw(source)
    for below in ("", "RawData/Training", "Training"):
        for folders in FOLDERS:
            pair = [source / below / folder for folder in folders]
            if all(path.is_dir() for path in pair):
                return match_pairs(*pair)
    raise ValueError(f"{source}: expected the folders imagesTr and labelsTr, or img and label")


def match_pairs(images: Path, masks: Path) -> dict[int, tuple[Path, Path]]:
    """(image, mask) by exam number, from a folder of images and one of masks. ``ValueError`` as ``find_pairs``."""
    image_files = numbered(images.iterdir(), r"img(\d+)\.nii(?:\.gz)?")
    mask_files = numbered(masks.iterdir(), r"label(\d+)\.nii(?:\.gz)?")
    if not image_files:
        raise ValueError(f"{images}: no image in it; expected img0001.nii.gz, ...")
    for exam_number, path in image_files.items():
        if exam_number not in mask_files:
            raise ValueError(f"{path}: has no label{exam_number:04d}.nii.gz in {masks.name}")
    for exam_number, path in mask_files.items():
        if exam_number not in image_files:
            raise ValueError(f"{path}: has no img{exam_number:04d}.nii.gz in {images.name}")
    return {exam_number: (path, mask_files[exam_number]) for exam_number, path in image_files.items()}


def read_pair(exam_number: int, image: Path, mask: Path) -> PreparedExam:
    """The prepared exam of an image and a mask file. ``ValueError`` as ``prepare_ct``."""
    volumes: list[NDArray[Any]] = []
    affines: list[Affine] = []
    for path in (image, mask):
        require_stated_orientation(path)
        volume = read_canonical(path)
        volumes.append(volume.voxels)
        affines.append(np.asarray(volume.affine, dtype=np.float64))
    if volumes[0].shape != volumes[1].shape or not np.allclose(affines[0], affines[1], atol=1e-2):
        raise ValueError(f"{mask}: shape {volumes[1].shape} or position differs from its image {volumes[0].shape}")
    if min(volumes[0].shape[:2]) <= 2 * BORDER:
        raise ValueError(f"{image}: {volumes[0].shape[:2]} pixels; more than {2 * BORDER} are needed, a border is cut")
    if not np.isin(volumes[1], np.arange(LARGEST + 1)).all():
        raise ValueError(f"{mask}: holds a value that is not a whole number from 0 to {LARGEST} (labels of BTCV)")
    affine, (hounsfield, organs) = turn(affines[0], volumes, "LAS")
    # BTCV's labels to ours by a look-up table; organs that are not asked for become 0
    table = np.zeros(LARGEST + 1, np.uint8)
    table[list(LABELS)] = list(LABELS.values())
    return prepare_volume(exam_number, hounsfield.astype(np.float32), table[organs.astype(np.int64)], affine)


def prepare_volume(exam_number: int, image: Volume, labels: Labels, affine: Affine) -> PreparedExam:
    """Window, crop and resample one volume: ``image`` in Hounsfield units and ``labels`` 0 to 4, both (I, J, K) with
    axes left, anterior, superior."""
    low, high = WINDOW
    grey = (np.clip(image, low, high) - np.float32(low)) * np.float32(255 / (high - low))
    # where the plane's new voxels lie, counted in the old voxels of what is left when the border is cut off
    inner = [size - 2 * BORDER for size in image.shape[:2]]
    steps = [np.arange(SIZE) * (size / SIZE) for size in inner]
    core = np.s_[BORDER : BORDER + inner[0], BORDER : BORDER + inner[1]]
    slices = np.arange(image.shape[2], dtype=np.float64)
    positions = [*steps, slices]
    new_affine = moved(affine, [*(BORDER + step for step in steps), slices])
    record = {
        "source": {"shape": list(image.shape), "spacing_mm": [round(side, 6) for side in spacing(affine)]},
        "voxels_cut_off": {
            organ: int((labels == value).sum() - (labels[core] == value).sum())
            for value, organ in enumerate(ORGANS, start=1)
        },
    }
    voxels = resample(grey[core], positions, 0.0)
    mask = resample_labels(labels[core], positions, len(ORGANS))
    return PreparedExam(exam_number, voxels, mask, new_affine, arrangement_scores(voxels, mask), record)
