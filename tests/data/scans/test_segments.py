"""DICOM-SEG to masks on the scan's voxels: our own files back again, those of others, and what does not fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslmed_dist.data.exams.mask_files import read_masks
from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.data.scans.dicom_seg import read_headers, write_dicom_seg
from sslmed_dist.data.scans.scan import StoredScan, read_scan

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

SHAPE = (12, 10, 5)


@pytest.fixture
def scan(tmp_path: Path) -> StoredScan:
    """A phantom of an oblique series, whose slices run against their normal."""
    turn = np.linalg.qr(np.array([[-0.9, 0.1, 0.1], [0.1, -0.9, 0.2], [0.2, 0.1, 0.9]]))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [1.5, 1.25, 4.0], [20.0, -10.0, 30.0]
    voxels = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    write_series(tmp_path / "scan", voxels, affine)
    return read_scan(tmp_path / "scan")


def label_map() -> np.ndarray[Any, Any]:
    values = np.zeros(SHAPE, np.uint16)
    values[2:5, 3:9, 1:4], values[6:9, 1:3, 0:2], values[0, 0, 4] = 7, 300, 2
    return values


@contextmanager
def changed(path: Path) -> Iterator[Any]:
    header = pydicom.dcmread(path)
    yield header
    header.save_as(path)


def test_our_own_file_comes_back(scan: StoredScan, tmp_path: Path) -> None:
    values, names = label_map(), {7: "liver", 300: "left kidney", 2: "label 2"}
    path = write_dicom_seg(tmp_path / "seg.dcm", scan.path, scan.series, values, names, model="0" * 64)
    masks = read_masks(path, scan)
    assert masks.names == {2: "label 2", 7: "liver", 300: "left kidney"} and masks.notices == ()
    assert masks.shape == SHAPE and np.array_equal(masks.affine, scan.affine)
    for label in names:
        assert np.array_equal(masks.read(label), values == label)
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / "1")
    assert np.array_equal(read_masks(tmp_path / "folder", scan).read(7), values == 7)


def described(number: int, name: str) -> Any:
    from pydicom.sr.codedict import codes

    return highdicom.seg.SegmentDescription(
        number, name, codes.SCT.AnatomicalStructure, codes.SCT.Organ, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
    )


def written_elsewhere(path: Path, scan: StoredScan, pixels: np.ndarray[Any, Any], kind: str, count: int) -> Path:
    """A segmentation as others write it: (slices, rows, columns) or with segments as a fourth axis."""
    highdicom.seg.Segmentation(
        read_headers(scan.path, scan.series), pixels, kind,
        [described(number, f"organ {number}") for number in range(1, count + 1)],
        series_instance_uid="1.2.3", series_number=1, sop_instance_uid="1.2.3.4", instance_number=1,
        manufacturer="Somebody", manufacturer_model_name="x", software_versions="1", device_serial_number="1",
    ).save_as(path)  # fmt: skip
    return path


def test_segments_overlap(scan: StoredScan, tmp_path: Path) -> None:
    first, second = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    first[2:8, 2:8, 1:4], second[5:11, 4:9, 2:5] = True, True
    pixels = np.stack([first, second], -1).transpose(2, 1, 0, 3).astype(np.uint8)
    masks = read_masks(written_elsewhere(tmp_path / "seg.dcm", scan, pixels, "BINARY", 2), scan)
    assert masks.names == {1: "organ 1", 2: "organ 2"} and (first & second).any()
    assert np.array_equal(masks.read(1), first) and np.array_equal(masks.read(2), second)


@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
def test_other_types(scan: StoredScan, tmp_path: Path, kind: str) -> None:
    values = np.where(label_map() == 7, 1, np.where(label_map() == 300, 2, 0)).transpose(2, 1, 0)
    shares = np.stack([values == 1, values == 2], -1) * np.where(values == 1, 0.4, 0.6)[..., None]
    pixels = shares.astype(np.float32) if kind == "FRACTIONAL" else values.astype(np.uint8)
    masks = read_masks(written_elsewhere(tmp_path / "seg.dcm", scan, pixels, kind, 2), scan)
    first = masks.read(1)
    assert np.array_equal(first, label_map() == 7) if kind == "LABELMAP" else not first.any(), "0.4 is below one half"
    assert np.array_equal(masks.read(2), label_map() == 300)


def test_a_scan_stored_in_another_order(scan: StoredScan, tmp_path: Path) -> None:
    """The same scan as NIfTI, axes swapped and flipped: the masks follow, and that the frames of reference cannot be
    compared is said."""
    values = label_map()
    path = write_dicom_seg(tmp_path / "seg.dcm", scan.path, scan.series, values, {7: "liver"}, model="0" * 64)
    affine = scan.affine[:, [2, 0, 1, 3]].copy()
    affine[:3, 3] += affine[:3, 1] * (SHAPE[0] - 1)
    affine[:3, 1] *= -1
    other = StoredScan(tmp_path / "x.nii", scan.voxels.transpose(2, 0, 1)[:, ::-1], affine, oriented=True)
    masks = read_masks(path, other)
    assert np.array_equal(masks.read(7), (values == 7).transpose(2, 0, 1)[:, ::-1])
    assert len(masks.notices) == 1 and masks.notices[0].startswith("the frames of reference cannot be compared")


def test_what_does_not_fit_is_refused(scan: StoredScan, tmp_path: Path) -> None:
    path = write_dicom_seg(tmp_path / "seg.dcm", scan.path, scan.series, label_map(), {7: "liver"}, model="0" * 64)
    half = scan.affine.copy()
    half[:3, 3] += half[:3, 0] / 2
    coarse = scan.affine @ np.diag([2.0, 1.0, 1.0, 1.0])
    for affine in (half, coarse):
        with pytest.raises(ValueError, match=f"^{path}: seg.dcm frame 1 does not lie on the voxels of scan"):
            read_masks(path, StoredScan(scan.path, scan.voxels, affine, True, series=scan.series))
    cut = StoredScan(scan.path, scan.voxels[:, :, :3], scan.affine, True, series=scan.series)
    with pytest.raises(ValueError, match="does not lie on the voxels of scan"):
        read_masks(path, cut)
    with changed(path) as header:
        header.FrameOfReferenceUID = "1.2.3"
    with pytest.raises(ValueError, match=f"^{path}: its frame of reference 1.2.3 is not the scan's, 2.25"):
        read_masks(path, scan)
    with changed(path) as header:
        header.SegmentationType = "OTHER"
    with pytest.raises(ValueError, match="segmentation of type 'OTHER'; allowed: BINARY, FRACTIONAL, LABELMAP"):
        read_masks(path, scan)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=f"^{path}: "):
        read_masks(path, scan)
