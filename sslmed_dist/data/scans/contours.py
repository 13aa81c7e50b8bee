"""Masks out of an RT structure set (DICOM PS3.3, A.19): closed contours, filled in the voxels of the scan."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslmed_dist.data.damage import damage_named
from sslmed_dist.data.scans.dicom import LPS_TO_RAS
from sslmed_dist.data.scans.masks import Mask, Masks, name_of, require_label
from sslmed_dist.data.scans.scan import StoredScan
from sslmed_dist.data.scans.segments import of_frame

OFF_PLANE = 0.2  # voxels: how far the points of a contour may lie from the middle of its slice
ROUNDED = 6  # decimals of a voxel, so that a point on a voxel's centre stays on it
Points = NDArray[np.float64]


def read_structures(path: Path, scan: StoredScan, frame_of_reference: str | None) -> Masks:
    """The regions of an RTSTRUCT file in the grid of its ``scan``; a label is the region's number (ROINumber).

    A voxel belongs to a region when its centre lies within an odd number of the contours of its slice (even-odd rule),
    so a contour inside another is a hole. Nothing is filled in between slices. ``frame_of_reference`` as for
    ``read_segments``. ``ValueError`` naming the file: damaged, another frame of reference, a contour that lies in no
    slice of the scan. Points, open contours and those beyond the scan are left out, which is said.
    """
    from sslmed_dist.data.scans.dicom_file import read_dicom

    with damage_named(path, "cannot be read, truncated or not an RT structure set"):
        header = read_dicom(path)
        names, notices = regions(path, header, frame_of_reference)
        contours: dict[int, list[Points]] = {}
        other = 0
        for item in header.get("ROIContourSequence") or []:
            of_region = contours.setdefault(int(item.ReferencedROINumber), [])
            for contour in item.get("ContourSequence") or []:
                if str(contour.get("ContourGeometricType")) in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
                    of_region.append(to_voxels(contour.ContourData, scan.affine))
                else:
                    other += 1
    notices += [f"{other} points or open contours: left out"] if other else []
    slices = {label: by_slice(path, names[label], contours.get(label, ()), scan.voxels.shape) for label in names}
    beyond = sum(count for _, count in slices.values())
    notices += [f"{beyond} contours beyond the scan: left out"] if beyond else []
    empty = [names[label] for label, (filled, _) in slices.items() if not filled]
    notices += [f"regions without a closed contour in the scan: {', '.join(empty)}"] if empty else []
    kept = {label: name for label, name in sorted(names.items()) if slices[label][0]}

    def read(label: int) -> Mask:
        mask = np.zeros(scan.voxels.shape, np.bool_)
        for (axis, number), polygons in slices[label][0].items():
            index: list[int | slice] = [slice(None)] * 3
            index[axis] = number
            plane = mask[tuple(index)]  # a view
            plane ^= fill(polygons, plane.shape)
        return mask

    i, j, k = scan.voxels.shape
    return Masks(path, (i, j, k), scan.affine, scan.oriented, kept, read, tuple(notices))


def regions(path: Path, header: Any, frame_of_reference: str | None) -> tuple[dict[int, str], list[str]]:
    """(number -> name of every region, what is to be said of their frames of reference). ``ValueError`` naming one that
    is not the scan's, and for a file without regions."""
    names: dict[int, str] = {}
    said: set[str] = set()
    for item in header.get("StructureSetROISequence") or []:
        number = require_label(path, "ROINumber", int(item.ROINumber), names)
        names[number] = str(item.get("ROIName") or name_of(number))
        said.add(of_frame(path, str(item.get("ReferencedFrameOfReferenceUID", "")), frame_of_reference))
    if not names:
        raise ValueError(f"{path}: no region (StructureSetROISequence) in it")
    return names, sorted(said - {""})


def to_voxels(data: Sequence[Any], affine: NDArray[np.float64]) -> Points:
    """(N, 3): the points x, y, z, x, y, z, ... in DICOM's millimetres as voxel indices. ``ValueError`` for fewer than 3
    points, or numbers that are no triples."""
    values = np.array([float(value) for value in data])
    if len(values) < 9 or len(values) % 3 or not np.isfinite(values).all():
        raise ValueError(f"a contour of {len(values)} numbers; it takes three or more points of three")
    points = values.reshape(-1, 3) @ LPS_TO_RAS.T
    inverse = np.linalg.inv(affine)
    voxels: Points = np.round(points @ inverse[:3, :3].T + inverse[:3, 3], ROUNDED)
    return voxels


def by_slice(
    path: Path, name: str, contours: Sequence[Points], shape: tuple[int, ...]
) -> tuple[dict[tuple[int, int], list[Points]], int]:
    """((axis, slice) -> polygons (N, 2) in the other two axes, number of contours beyond the scan). ``ValueError`` for
    a contour that does not lie in one slice."""
    polygons: dict[tuple[int, int], list[Points]] = {}
    beyond = 0
    for points in contours:
        axis = int(np.ptp(points, axis=0).argmin())
        number = int(round(float(np.median(points[:, axis]))))
        if np.abs(points[:, axis] - number).max() > OFF_PLANE:
            raise ValueError(
                f"{path}: a contour of {name} lies in no slice of the scan (at {points[0].round(2).tolist()}, counted "
                "in voxels); allowed: contours drawn on its slices"
            )
        if 0 <= number < shape[axis]:
            polygons.setdefault((axis, number), []).append(np.delete(points, axis, axis=1))
        else:
            beyond += 1
    return polygons, beyond


def fill(polygons: Sequence[Points], shape: tuple[int, ...]) -> Mask:
    """Bool (H, W): the pixels whose centre lies within an odd number of ``polygons`` (N, 2) of rows and columns.

    Along a row a polygon's border is where inside and outside change. It belongs to the pixel at or after it, so
    polygons that touch neither overlap nor leave a gap.
    """
    changes = np.zeros((shape[0], shape[1] + 1), np.int64)
    for polygon in polygons:
        for (row, column), (next_row, next_column) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            low, high = sorted((row, next_row))
            # the rows that this edge crosses: at or after its lower end, before its upper one
            rows = np.arange(max(int(np.ceil(low)), 0), min(int(np.ceil(high)), shape[0]))
            if len(rows):
                crossings = column + (rows - row) / (next_row - row) * (next_column - column)
                firsts = np.ceil(np.round(crossings, ROUNDED)).clip(0, shape[1]).astype(int)
                np.add.at(changes, (rows, firsts), 1)
    return np.asarray(changes[:, :-1].cumsum(axis=1) % 2 == 1)
