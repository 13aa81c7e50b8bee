"""Volumes are read part by part: nibabel's numbers, one copy of them, a limit that a user can set, no chatter."""

import contextlib
import gzip
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.data.scans import dicom, dicom_file, dicom_header, memory, nifti

SHAPE = (5, 7, 6)
TURNS = {"RAS": np.diag([2.0, 3.0, 4.0, 1.0]), "LPI": np.diag([-2.0, -3.0, -4.0, 1.0]), "tilted": np.eye(4)}
TURNS["tilted"][:3, :3] = [[0.0, 1.2, 0.1], [-0.9, 0.0, 0.0], [0.0, -0.1, -2.0]]


def write(path: Path, kind: str = "<i2", scale: tuple[float, float] = (1.0, 0.0), turn: str = "RAS") -> Path:
    """A volume of stored numbers of type ``kind`` that ``scale`` (slope, intercept) turns into values."""
    stored = (np.random.default_rng(0).integers(0, 100, SHAPE) * 1.37).astype(kind)
    image = nibabel.Nifti1Image(stored, TURNS[turn])
    image.header.set_slope_inter(*scale)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("scale", [(1.0, 0.0), (0.1, -1024.3)])
@pytest.mark.parametrize("kind", ["|u1", "<i2", ">f4", "<f8"])
@pytest.mark.parametrize("part", [3, 80, 2**22])  # of a slice of 35 voxels: less than one, two, all
def test_parts_give_the_numbers_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scale: tuple[float, float], kind: str, part: int
) -> None:
    monkeypatch.setattr(nifti, "PART", part)
    path = write(tmp_path / name, kind, scale)
    whole: Any = nibabel.load(path)
    np.testing.assert_array_equal(nifti.load_nifti(path)[1], np.asarray(whole.dataobj, np.float32))


@pytest.mark.parametrize("turn", TURNS)
def test_turned_as_nibabel_turns(tmp_path: Path, turn: str) -> None:
    path = write(tmp_path / "a.nii.gz", scale=(0.1, 3.0), turn=turn)
    expected: Any = nibabel.as_closest_canonical(nibabel.load(path))
    read = nifti.read_canonical(path)
    np.testing.assert_array_equal(read.voxels, np.asarray(expected.dataobj, np.float32))
    np.testing.assert_array_equal(read.affine, expected.affine)
    assert read.spacing == tuple(float(side) for side in expected.header.get_zooms())


@pytest.mark.parametrize("kind", ["|u1", "<f8"])
def test_no_second_copy_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(nifti, "PART", 2**14)
    nibabel.save(nibabel.Nifti1Image(np.zeros((128, 128, 96), kind), TURNS["LPI"]), tmp_path / "a.nii.gz")
    nifti.read_canonical(tmp_path / "a.nii.gz")  # imports
    tracemalloc.start()
    try:
        voxels = nifti.read_canonical(tmp_path / "a.nii.gz").voxels
        assert tracemalloc.get_traced_memory()[1] < 1.25 * voxels.nbytes
    finally:
        tracemalloc.stop()


def test_a_limit_that_the_user_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file as of a series, whose voxels are counted slice by slice."""
    path, folder = write(tmp_path / "a.nii"), tmp_path / "series"
    write_series(folder, np.arange(210, dtype=np.uint16).reshape(7, 5, 6), np.diag([1.0, 1.0, 2.0, 1.0]))
    for most in ("210", "1000000"):
        monkeypatch.setenv(memory.VARIABLE, most)
        assert nifti.load_nifti(path)[1].size == dicom.read_series(folder).voxels.size == 210
    monkeypatch.setenv(memory.VARIABLE, "209")
    line = r"210 voxels in shape \(.*\) are 840 bytes in float32; allowed: at most 209 voxels; the environment "
    with pytest.raises(ValueError, match=f"a.nii: {line}variable {memory.VARIABLE} sets another limit"):
        nifti.load_nifti(path)
    with pytest.raises(ValueError, match=f"series: {line}"):
        dicom.read_series(folder)
    monkeypatch.setenv(memory.VARIABLE, "many")
    with pytest.raises(ValueError, match=f"{memory.VARIABLE}: expected a whole number of voxels, got 'many'"):
        nifti.load_nifti(path)


def test_a_dicom_file_of_more_bytes_than_a_slice_has_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "s", np.zeros((7, 5, 6), np.uint16), np.diag([1.0, 1.0, 2.0, 1.0]))
    monkeypatch.setattr(dicom_header, "MOST_BYTES", 600)
    with pytest.raises(ValueError, match=r"bytes for 35 pixels; allowed: 600"):
        dicom.read_series(tmp_path / "s")


def test_deflated_dicom_is_read_and_inflated_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of the syntax "deflated" is inflated as a whole by pydicom, even for its header alone."""
    folder = tmp_path / "s"
    write_series(folder, np.arange(210, dtype=np.uint16).reshape(7, 5, 6), np.diag([1.0, 1.0, 2.0, 1.0]))
    plain = dicom.read_series(folder)
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        header.ImageComments = "x" * 8000
        header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        header.save_as(path)
    read = dicom.read_series(folder)
    assert np.array_equal(read.voxels, plain.voxels) and np.array_equal(read.affine, plain.affine)
    monkeypatch.setattr(dicom_file, "PIECE", 64)
    for limit in (2000, 500):  # the files have some 700 bytes: of those above the limit only the header is asked for
        monkeypatch.setattr(dicom_file, "MOST_BYTES", limit)
        monkeypatch.setattr(dicom_header, "MOST_BYTES", limit)
        with pytest.raises(ValueError, match=rf"s/\S+: .*bytes inflate to more than {limit:,}, the most that are read"):
            dicom.read_series(folder)


def test_nibabel_is_not_heard(tmp_path: Path) -> None:
    """A header with codes that do not exist makes it speak, here through every way of reading and before and after."""
    path = write(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    data[252:254], data[76:80] = b"\x07\x70", b"\x00\x00\x20\x41"  # qform_code and qfac
    path.write_bytes(data)
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign, assignment]
    nibabel.imageglobals.logger.addHandler(handler)
    try:
        for read in (nifti.load_nifti, nifti.read_canonical, nifti.stored_axes, nifti.require_stated_orientation):
            with contextlib.suppress(ValueError):
                read(path)
        assert heard == []
        nibabel.load(path)
        assert heard != []
    finally:
        nibabel.imageglobals.logger.removeHandler(handler)


def test_a_bit_that_was_flipped_is_found_by_the_checksum(tmp_path: Path) -> None:
    """The voxels alone are read without a fault: what does not fit them stands behind them."""
    path = tmp_path / "a.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 900, (60, 60, 40)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, TURNS["RAS"]), path)
    stored = bytearray(gzip.decompress(path.read_bytes()))
    good = gzip.compress(bytes(stored), mtime=0)
    stored[-3] ^= 16
    path.write_bytes(gzip.compress(bytes(stored), mtime=0)[:-8] + good[-8:])
    with pytest.raises(ValueError, match=f"^{path}: cannot be read, .*CRC check failed"):
        nifti.load_nifti(path)


def test_a_suffix_in_capitals_is_one(tmp_path: Path) -> None:
    path = tmp_path / "A.NII.GZ"
    path.write_bytes(write(tmp_path / "a.nii.gz").read_bytes())
    assert nifti.load_nifti(path)[1].shape == SHAPE
