"""Small DICOM series for tests: each voxel's value says where in the patient it lies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from sslmed_dist.data.phantom.chaos import uid, write_series

# Columns, rows and slices of a stored series, in RAS; the second of each plane runs the other way round.
STORED = {
    "axial": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "axial from head to feet": ((-1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "coronal": ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),
    "coronal from back to front": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "sagittal": ((0, -1, 0), (0, 0, -1), (-1, 0, 0)),
    "sagittal from left to right": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
    "axial with swapped sides": ((0, -1, 0), (-1, 0, 0), (0, 0, 1)),
}
SHAPE = (6, 5, 4)  # columns, rows, slices
SIDES = (1.5, 2.0, 5.0)  # mm


def affine_of(stored: str, turn: float = 0.0) -> NDArray[np.float64]:
    """Index to RAS mm; ``turn`` degrees about the patient's left-right axis (front-back for sagittal slices)."""
    directions = np.array(STORED[stored], np.float64).T
    sine, cosine = np.sin(np.deg2rad(turn)), np.cos(np.deg2rad(turn))
    about_x = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    about_z = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (about_z if stored.startswith("sagittal") else about_x) @ directions * np.array(SIDES)
    affine[:3, 3] = (11.0, -7.0, 30.0)
    return affine


def values(affine: NDArray[np.float64], axis: int, shape: Sequence[int] = SHAPE) -> NDArray[np.int16]:
    """Ten times the millimetres along the patient's ``axis`` (0 right, 1 front, 2 head) of every voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    place = index @ affine[:3, :3].T + affine[:3, 3]
    return np.rint(10 * place[..., axis]).astype(np.int16)


def write(
    folder: Path, name: str, stored: str = "axial", *, axis: int = 2, turn: float = 0.0, **tags: Any
) -> list[Path]:
    """One series ``name`` of the study "study" in the folder; returns its files in slice order."""
    affine = affine_of(stored, turn)
    given = {"SeriesDescription": name, "StudyInstanceUID": uid("study"), "SeriesNumber": 1} | tags
    names = [f"{name}-{k}.dcm" for k in range(SHAPE[2])]
    return write_series(folder, values(affine, axis), affine, series=name, names=names, tags=given)


def edit(path: Path, **tags: Any) -> None:
    """Change attributes of a file; None takes one away."""
    header: Any = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    header.save_as(path)


def enhance(files: Sequence[Path], target: Path, order: Sequence[int]) -> Path:
    """The plain ``files`` as one enhanced multi-frame file, its frames in another ``order``."""
    plain: list[Any] = [pydicom.dcmread(files[k]) for k in order]
    header = pydicom.dcmread(files[0])
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([Dataset()]), Items([Dataset()])
    shared.PixelMeasuresSequence[0].PixelSpacing = plain[0].PixelSpacing
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = plain[0].ImageOrientationPatient
    frames = []
    for image in plain:
        own = Dataset()
        own.PlanePositionSequence, own.PixelValueTransformationSequence = Items([Dataset()]), Items([Dataset()])
        own.PlanePositionSequence[0].ImagePositionPatient = image.ImagePositionPatient
        own.PixelValueTransformationSequence[0].RescaleSlope = image.RescaleSlope
        own.PixelValueTransformationSequence[0].RescaleIntercept = image.RescaleIntercept
        frames.append(own)
    for name in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope", "RescaleIntercept"):
        delattr(header, name)
    header.NumberOfFrames = len(frames)
    header.SharedFunctionalGroupsSequence, header.PerFrameFunctionalGroupsSequence = Items([shared]), Items(frames)
    header.PixelData = b"".join(image.PixelData for image in plain)
    header.save_as(target)
    return target
