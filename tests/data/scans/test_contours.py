"""RTSTRUCT to masks on the scan's voxels: filled by even-odd, holes kept, each contour in its own slice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslmed_dist.data.exams.mask_files import frame_of_reference, read_masks
from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.data.scans.contours import fill
from sslmed_dist.data.scans.scan import StoredScan, read_scan

pydicom = pytest.importorskip("pydicom")

SHAPE = (20, 18, 6)
SQUARE = [(2.5, 3.5), (2.5, 9.5), (8.5, 9.5), (8.5, 3.5)]  # voxels 3 to 8 by 4 to 9 of a slice
HOLE = [(4.5, 5.5), (4.5, 7.5), (6.5, 7.5), (6.5, 5.5)]


@pytest.fixture
def scan(tmp_path: Path) -> StoredScan:
    """A phantom of an oblique series."""
    turn = np.linalg.qr(np.array([[-0.9, 0.1, 0.1], [0.1, -0.9, 0.2], [0.2, 0.1, 0.9]]))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [1.5, 1.25, 4.0], [20.0, -10.0, 30.0]
    write_series(tmp_path / "scan", np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16), affine)
    return read_scan(tmp_path / "scan")


def write(
    path: Path, scan: StoredScan, rois: dict[int, tuple[str, Sequence[tuple[str, Any]]]], frame: str | None = None
) -> Path:
    """An RTSTRUCT phantom: for each number a name and contours (type, (N, 3) points in voxels)."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
    header.Modality, header.StructureSetROISequence, header.ROIContourSequence = "RTSTRUCT", [], []
    for number, (name, contours) in rois.items():
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        roi.ReferencedFrameOfReferenceUID = frame_of_reference(scan) if frame is None else frame
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for kind, points in contours:
            contour = Dataset()
            mm = (np.asarray(points) @ scan.affine[:3, :3].T + scan.affine[:3, 3]) * [-1, -1, 1]
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(mm)
            contour.ContourData = [f"{value:.6f}"[:16] for value in mm.ravel()]
            drawn.ContourSequence.append(contour)
        header.StructureSetROISequence.append(roi)
        header.ROIContourSequence.append(drawn)
    header.save_as(path, enforce_file_format=True)
    return path


def closed(corners: Sequence[tuple[float, float]], slice_number: float) -> tuple[str, Any]:
    return "CLOSED_PLANAR", [(i, j, slice_number) for i, j in corners]


def test_regions_with_holes_and_overlaps(scan: StoredScan, tmp_path: Path) -> None:
    rois = {
        4: ("Liver", [closed(SQUARE, 1), closed(HOLE, 1), closed(SQUARE, 2)]),
        2: ("Rib", [closed([(i + 3, j) for i, j in SQUARE], 2), ("POINT", [(1, 1, 1)])]),
        9: ("Marker", [("POINT", [(1, 1, 1)])]),
        11: ("Beyond", [closed(SQUARE, 6), closed(SQUARE, 5)]),
    }
    masks = read_masks(write(tmp_path / "rt.dcm", scan, rois), scan)
    assert masks.names == {2: "Rib", 4: "Liver", 11: "Beyond"}
    assert masks.notices == (
        "2 points or open contours: left out",
        "1 contours beyond the scan: left out",
        "regions without a closed contour in the scan: Marker",
    )
    liver, rib, last = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    liver[3:9, 4:10, 1:3], liver[5:7, 6:8, 1] = True, False
    rib[6:12, 4:10, 2], last[3:9, 4:10, 5] = True, True
    for label, wanted in ((4, liver), (2, rib), (11, last)):
        assert np.array_equal(masks.read(label), wanted), label
    assert (masks.read(4) & masks.read(2)).any()


def test_a_circle_has_its_area_and_a_neighbour_its_border() -> None:
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    circle = np.stack([50 + 30 * np.sin(angle), 60 + 30 * np.cos(angle)], 1)
    inside = fill([circle], (100, 120))
    rows, columns = np.ogrid[:100, :120]
    distance = np.hypot(rows - 50, columns - 60)
    assert inside[distance < 29.9].all() and not inside[distance > 30.1].any()
    assert inside.sum() == pytest.approx(np.pi * 30**2, rel=0.01)
    left, right = np.array([(2.0, 2), (2, 5), (6, 5), (6, 2)]), np.array([(2.0, 5), (2, 9), (6, 9), (6, 5)])
    parts = [fill([one], (10, 12)) for one in (left, right)]
    assert not (parts[0] & parts[1]).any() and np.array_equal(parts[0] | parts[1], fill([left, right], (10, 12)))
    assert parts[0].sum() == 4 * 3 and parts[1].sum() == 4 * 4, "corners on voxels: as large as the polygons"
    beyond = fill([np.array([(-5.0, -5), (-5, 3.5), (4.5, 3.5), (4.5, -5)])], (10, 12))
    assert np.array_equal(np.argwhere(beyond).max(0), [4, 3]) and beyond.sum() == 20, "cut at the image's border"


def test_what_does_not_fit_is_refused(scan: StoredScan, tmp_path: Path) -> None:
    tilted = [(i, j, 2 + 0.1 * i) for i, j in SQUARE]
    for contours, message in (
        ([closed(SQUARE, 1.5)], r"a contour of Liver lies in no slice of the scan \(at \[2.5, 3.5, 1.5\], counted"),
        ([("CLOSED_PLANAR", tilted)], "a contour of Liver lies in no slice of the scan"),
        ([("CLOSED_PLANAR", tilted[:2])], "a contour of 6 numbers"),
    ):
        path = write(tmp_path / "rt.dcm", scan, {4: ("Liver", contours)})
        with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
            read_masks(path, scan)
    path = write(tmp_path / "rt.dcm", scan, {4: ("Liver", [closed(SQUARE, 1)])}, frame="1.2.3")
    with pytest.raises(ValueError, match=f"^{path}: its frame of reference 1.2.3 is not the scan's, 2.25"):
        read_masks(path, scan)
    for number in (0, -3, 100_000):  # 0 would be the background, and the others are in no label map
        path = write(tmp_path / "rt.dcm", scan, {number: ("Liver", [closed(SQUARE, 1)])})
        with pytest.raises(ValueError, match=f"^{path}: ROINumber {number}; allowed: 1 to 65535"):
            read_masks(path, scan)
    with pytest.raises(ValueError, match=f"^{path}: no region"):
        read_masks(write(path, scan, {}), scan)


def test_a_nifti_scan_has_no_frame_of_reference(scan: StoredScan, tmp_path: Path) -> None:
    path = write(tmp_path / "rt.dcm", scan, {4: ("Liver", [closed(SQUARE, 1)])})
    other = StoredScan(tmp_path / "x.nii", scan.voxels, scan.affine, oriented=True)
    masks = read_masks(path, other)
    assert masks.read(4).sum() == 36 and "frames of reference cannot be compared" in masks.notices[0]
