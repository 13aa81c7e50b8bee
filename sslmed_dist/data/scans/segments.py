"""Masks out of a DICOM segmentation (PS3.3, A.51): binary, fractional, or a label map; segments may overlap."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslmed_dist.data.damage import damage_named
from sslmed_dist.data.scans.dicom import affine_of
from sslmed_dist.data.scans.dicom_header import read_header
from sslmed_dist.data.scans.frames import Frame, frames_of
from sslmed_dist.data.scans.masks import Mask, Masks, name_of, require_label
from sslmed_dist.data.scans.scan import StoredScan

OFF_GRID = 0.1  # voxels: how far a frame's pixels may lie from the scan's
MAKER = "sslmed-dist"  # of our own files, whose segments name the label id that they had
OWN_ID = re.compile(r"label (\d{1,5})")


def read_segments(path: Path, scan: StoredScan, frame_of_reference: str | None) -> Masks:
    """The segments of a DICOM-SEG file in the grid of its ``scan``. A label is the segment's number; in a file of this
    program it is the id that the label had.

    ``frame_of_reference`` is the scan's UID, None where it is unknown (NIfTI): then places in mm alone count, which is
    said. ``ValueError`` naming the file: damaged, another frame of reference, frames that do not lie on the scan's
    voxels, frames of no segment, or a segmentation type that is unknown.
    """
    header = read_header(path, pixels=True, kinds=("Segmentation Storage",))
    if header is None:
        raise ValueError(f"{path}: no DICOM segmentation with pixels")
    with damage_named(path, "cannot be read, truncated or not a DICOM segmentation"):
        kind = str(header.get("SegmentationType", ""))
        if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
            raise ValueError(f"{path}: segmentation of type {kind!r}; allowed: BINARY, FRACTIONAL, LABELMAP")
        notices = [of_frame(path, str(header.get("FrameOfReferenceUID", "")), frame_of_reference)]
        labels = segment_labels(path, header)
        frames = frames_of(path, header)
        places = [on_grid(path, frame, scan) for frame in frames]
        by_segment = frames_by_segment(path, header, kind, [item[1] for item in labels.values()])
    if kind == "FRACTIONAL":
        notices.append("a fractional segmentation: a voxel belongs to a segment from half of the highest value on")
    names = {label: name for label, (name, number) in labels.items() if by_segment[number]}
    empty = [name for name, number in labels.values() if not by_segment[number]]
    notices += [f"segments without a frame: {', '.join(empty)}"] if empty else []

    def read(label: int) -> Mask:
        mask = np.zeros(scan.voxels.shape, np.bool_)
        number = labels[label][1]
        for index in by_segment[number]:
            pixels = belongs(path, header, kind, index, number)
            place(mask, places[index], pixels)
        return mask

    i, j, k = scan.voxels.shape
    return Masks(path, (i, j, k), scan.affine, scan.oriented, names, read, tuple(filter(None, notices)))


def of_frame(path: Path, own: str, scan: str | None) -> str:
    """What is to be said about two frames of reference, empty where they agree. ``ValueError`` where they differ."""
    if not own or scan is None or not scan:
        return "the frames of reference cannot be compared: that both are in the same millimetres is taken for granted"
    if own != scan:
        raise ValueError(
            f"{path}: its frame of reference {own} is not the scan's, {scan}; its places mean others there"
        )
    return ""


def segment_labels(path: Path, header: Any) -> dict[int, tuple[str, int]]:
    """Label -> (name, segment number), ascending. Our own files say in a segment's description which id it had."""
    segments: dict[int, tuple[str, int]] = {}
    own = str(header.get("Manufacturer", "")) == MAKER
    for item in header.get("SegmentSequence") or []:
        number = int(item.SegmentNumber)
        if number == 0 and header.get("SegmentationType") == "LABELMAP":
            continue  # the background of a label map
        said = OWN_ID.fullmatch(str(item.get("SegmentDescription") or item.get("SegmentLabel") or "")) if own else None
        label = require_label(path, "segment", int(said[1]) if said else number, segments)
        segments[label] = (str(item.get("SegmentLabel") or name_of(label)), number)
    return dict(sorted(segments.items()))


def frames_by_segment(path: Path, header: Any, kind: str, numbers: list[int]) -> dict[int, list[int]]:
    """Segment number -> indices of its frames. In a label map every frame may hold every segment. ``ValueError`` for a
    frame of a segment that is not described."""
    if kind == "LABELMAP":
        return {number: list(range(int(header.NumberOfFrames))) for number in numbers}
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    frames: dict[int, list[int]] = {number: [] for number in numbers}
    for index, groups in enumerate(header.PerFrameFunctionalGroupsSequence):
        named = [group.SegmentIdentificationSequence[0] for group in (groups, *shared) if has_segment(group)]
        number = int(named[0].ReferencedSegmentNumber) if named else -1
        if number not in frames:
            raise ValueError(f"{path}: frame {index + 1} is of no segment that the file describes")
        frames[number].append(index)
    return frames


def has_segment(group: Any) -> bool:
    """Whether functional groups say which segment a frame belongs to."""
    return bool(group.get("SegmentIdentificationSequence"))


def belongs(path: Path, header: Any, kind: str, index: int, number: int) -> Mask:
    """Bool (rows, columns): which pixels of the frame ``index`` belong to the segment ``number``. ``ValueError`` where
    they cannot be decoded."""
    from pydicom.pixels import iter_pixels

    with damage_named(path, "pixels cannot be decoded"):
        pixels: NDArray[Any] = next(iter(iter_pixels(header, indices=[index])))
    if kind == "LABELMAP":
        return np.asarray(pixels == number)
    lowest = 1 if kind == "BINARY" else max(int(header.MaximumFractionalValue), 1) / 2
    return np.asarray(pixels >= lowest)


Place = tuple[
    tuple[int | slice, ...], Callable[[Mask], Mask]
]  # index into the volume; (rows, columns) as it lies there


def on_grid(path: Path, frame: Frame, scan: StoredScan) -> Place:
    """Where a frame lies in the scan's voxels. ``ValueError`` unless each of its pixels is one of them."""
    to_voxels = np.linalg.inv(scan.affine) @ affine_of(frame, frame.normal)  # (column, row, 1 mm) -> voxel
    start = np.round(to_voxels[:3, 3]).astype(int)
    axes = [int(np.abs(to_voxels[:3, side]).argmax()) for side in range(2)]  # of the columns' index, of the rows'
    counts = (frame.shape[1], frame.shape[0])
    index: list[int | slice] = [int(at) for at in start]
    off = np.abs(to_voxels[:3, 3] - start).max()
    backwards = []
    for side, (axis, count) in enumerate(zip(axes, counts, strict=True)):
        sign = 1 if to_voxels[axis, side] > 0 else -1
        unit = np.zeros(3)
        unit[axis] = sign
        off = max(off, float(np.abs((to_voxels[:3, side] - unit) * (count - 1)).max()))
        low = int(start[axis]) if sign > 0 else int(start[axis]) - count + 1
        index[axis] = slice(low, low + count)
        backwards.append(slice(None, None, sign))
    ends = [(at, at + 1) if isinstance(at, int) else (at.start, at.stop) for at in index]
    within = all(low >= 0 and high <= side for (low, high), side in zip(ends, scan.voxels.shape, strict=True))
    if axes[0] == axes[1] or off > OFF_GRID or not within:
        raise ValueError(f"{path}: {frame.name} does not lie on the voxels of {scan.path.name}; allowed: its own grid")

    def turned(pixels: Mask) -> Mask:
        columns, rows = backwards
        laid = pixels[rows, columns]
        return laid.T if axes[0] < axes[1] else laid

    return tuple(index), turned


def place(mask: Mask, where: Place, pixels: Mask) -> None:
    """Add the ``pixels`` of a frame to ``mask``."""
    index, turned = where
    mask[index] |= turned(pixels)
