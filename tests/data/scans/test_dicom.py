"""A DICOM series read back: every voxel's value is where it was in millimetres, and what is wrong is one line."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.data.scans.dicom import read_series

SHAPE = (7, 5, 4)
SIDES = np.array([1.25, 0.8, 5.5])


def turned(angles: tuple[float, float, float]) -> NDArray[np.float64]:
    """Rotation about x, y and z by degrees."""
    result = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles)):
        one, two = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[one, one] = step[two, two] = np.cos(angle)
        step[one, two], step[two, one] = -np.sin(angle), np.sin(angle)
        result = step @ result
    return result


def affine_of(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = directions * SIDES
    affine[:3, 3] = (-113.3, 57.1, 902.4)
    return affine


# Columns of each matrix: where i, j and k run in RAS.
DIRECTIONS = {
    "axial": np.diag([-1.0, -1.0, 1.0]),
    "axial, feet last": np.diag([-1.0, -1.0, -1.0]),
    "rows to the front": np.diag([-1.0, 1.0, 1.0]),
    "columns to the right": np.diag([1.0, -1.0, -1.0]),
    "coronal": np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]).T,
    "sagittal": np.array([[0, -1.0, 0], [0, 0, -1], [-1, 0, 0]]).T,
    "rows and columns swapped": np.array([[0, -1.0, 0], [-1, 0, 0], [0, 0, 1]]).T,
    "oblique": turned((14, -22, 31)) @ np.diag([-1.0, -1.0, 1.0]),
    "oblique, mirrored": turned((-33, 12, 70)),
}


def voxels(dtype: Any = np.int16) -> NDArray[Any]:
    count = int(np.prod(SHAPE))
    return np.random.default_rng(3).permutation(np.arange(1, count + 1)).reshape(SHAPE).astype(dtype)


def series(folder: Path, directions: str = "axial", **options: Any) -> list[Path]:
    return write_series(folder, voxels(), affine_of(DIRECTIONS[directions]), **options)


@pytest.mark.parametrize("numbering", ["upwards", "reversed", "none"])
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_every_voxel_is_where_it_was(directions: str, numbering: str, tmp_path: Path) -> None:
    affine, source = affine_of(DIRECTIONS[directions]), voxels()
    names = ["c.dcm", "a.dcm", "d", "b.dcm"]  # says nothing about the order
    numbers = [1, 2, 3, 4] if numbering == "upwards" else [9, 7, 5, 3]
    for path in series(tmp_path, directions, names=names, instances=numbers):
        if numbering == "none":
            header = pydicom.dcmread(path)
            del header.InstanceNumber
            header.save_as(path)
    read = read_series(tmp_path)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1).reshape(-1, 3)
    place = index @ affine[:3, :3].T + affine[:3, 3]
    found = (place - read.affine[:3, 3]) @ np.linalg.inv(read.affine[:3, :3]).T
    assert np.abs(found - found.round()).max() < 1e-5
    there = tuple(found.round().astype(int).T)
    assert read.voxels.dtype == np.float32 and read.voxels.shape == SHAPE
    assert np.array_equal(read.voxels[there], source[tuple(index.T)])
    np.testing.assert_allclose(read.spacing, SIDES, rtol=1e-9)
    # DICOM's normal is right-handed: row x column direction, whichever way the slices were written
    assert np.linalg.det(read.affine[:3, :3]) * np.linalg.det(np.diag([-1.0, -1.0, 1.0])) > 0
    for k, name in enumerate(read.files):
        wanted = names.index(name)
        assert np.array_equal(read.voxels[:, :, k], source[:, :, wanted])
        assert read.instance_numbers[k] == (None if numbering == "none" else numbers[wanted])


def test_it_is_a_nifti_as_it_is(tmp_path: Path) -> None:
    series(tmp_path / "dicom", "oblique")
    read = read_series(tmp_path / "dicom")
    nibabel.Nifti1Image(read.voxels, read.affine).to_filename(tmp_path / "volume.nii.gz")
    image = nibabel.load(tmp_path / "volume.nii.gz")
    np.testing.assert_allclose(image.affine, affine_of(DIRECTIONS["oblique"]), atol=1e-4)
    assert np.array_equal(np.asarray(image.dataobj), voxels())
    assert read.modality == "MR"


def test_values_are_rescaled_and_unsigned_ones_stay_positive(tmp_path: Path) -> None:
    high = voxels(np.uint16) + np.uint16(40000)
    write_series(tmp_path, high, affine_of(DIRECTIONS["axial"]), slope=0.5, intercept=-1000.0)
    assert np.array_equal(read_series(tmp_path).voxels, high.astype(np.float32) * 0.5 - 1000)


def test_run_lengths_are_decoded_and_other_files_passed_over(tmp_path: Path) -> None:
    files = series(tmp_path)
    for path in files:
        header = pydicom.dcmread(path)
        header.compress(pydicom.uid.RLELossless)
        header.save_as(path)
    report = pydicom.dcmread(files[0])
    del report.PixelData
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"  # basic text
    report.save_as(tmp_path / "report.dcm")
    (tmp_path / "notes.txt").write_text("not DICOM")
    (tmp_path / "below").mkdir()
    read = read_series(tmp_path)
    assert np.array_equal(read.voxels, voxels()) and read.files == tuple(path.name for path in files)


def edit(path: Path, **values: Any) -> None:
    header = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    header.save_as(path)


def same_place(files: list[Path]) -> None:
    header = pydicom.dcmread(files[1])
    header.save_as(files[1].with_name("echo 2.dcm"))


def undecodable(files: list[Path]) -> None:
    header = pydicom.dcmread(files[1])
    header.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8nonsense"])
    header.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    header["PixelData"].is_undefined_length = True
    header.save_as(files[1])


def sheared(files: list[Path]) -> None:
    for k, path in enumerate(files):
        place = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[place[0], place[1] + 2.0 * k, place[2]])


def keep(*numbers: int) -> Callable[[list[Path]], None]:
    return lambda files: [path.unlink() for k, path in enumerate(files) if k not in numbers] and None


BROKEN: dict[str, tuple[Callable[[list[Path]], Any], str]] = {
    "no file": (keep(), "no DICOM image in it"),
    "single": (keep(2), r"a single slice \(IMG-0001-00003.dcm\)"),
    "two series": (
        lambda f: edit(f[2], SeriesInstanceUID="2.25.5"),
        "two series, IMG-0001-00001.dcm and IMG-0001-00003",
    ),
    "gap": (keep(0, 1, 3), "11.000 mm from .*00002.dcm to .*00004.dcm, elsewhere 5.500 mm: a slice is missing"),
    "uneven": (lambda f: edit(f[2], ImagePositionPatient=[113.3, -57.1, 910.0]), "(2.1|8.9)00 mm from .*uneven"),
    "one place": (same_place, "IMG-0001-00002.dcm and echo 2.dcm|echo 2.dcm and IMG-0001-00002.dcm.* lie in one place"),
    "no position": (lambda f: edit(f[1], ImagePositionPatient=None), "00002.dcm: has no ImagePositionPatient"),
    "no spacing": (lambda f: edit(f[1], PixelSpacing=None), "00002.dcm: has no PixelSpacing"),
    "spacing 0": (lambda f: edit(f[1], PixelSpacing=[0, 1]), "PixelSpacing must be above 0"),
    "other spacing": (lambda f: edit(f[1], PixelSpacing=[0.8, 1.3]), "00002.dcm: pixel spacing"),
    "turned": (lambda f: edit(f[1], ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "00002.dcm: is turned against"),
    "no plane": (lambda f: edit(f[1], ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "two unit vectors at right angles"),
    "short": (lambda f: edit(f[1], ImagePositionPatient=[1, 2]), "ImagePositionPatient must be 3 finite number"),
    "other size": (
        lambda f: edit(f[1], Rows=4, PixelData=np.zeros((4, 7), "<i2").tobytes()),
        "00002.dcm: 4 x 7 pixels, IMG-0001-00001.dcm has 5 x 7",
    ),
    "truncated": (lambda f: edit(f[1], PixelData=b"\0" * 30), "00002.dcm: pixels .* cannot be decoded"),
    "undecodable": (undecodable, r"00002.dcm: pixels \(JPEG-LS.* cannot be decoded"),
    "frames": (lambda f: edit(f[1], NumberOfFrames=3), "3 frames in one file"),
    "colour": (lambda f: edit(f[1], PhotometricInterpretation="RGB", SamplesPerPixel=3), "pixels are RGB"),
    "slope 0": (lambda f: edit(f[1], RescaleSlope=0), "RescaleSlope must not be 0"),
    "one aside": (lambda f: edit(f[1], ImagePositionPatient=[115.3, -57.1, 907.9]), "00002.dcm lies 2.000 mm beside"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_is_one_line_that_names_it(kind: str, tmp_path: Path) -> None:
    harm, message = BROKEN[kind]
    harm(series(tmp_path))
    with pytest.raises(ValueError, match=message) as caught:
        read_series(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_cut_file_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    files = series(tmp_path)
    files[2].write_bytes(files[2].read_bytes()[:-20])
    with pytest.raises(ValueError, match="00003.dcm"):
        read_series(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        read_series(tmp_path)


def ramp(folder: Path, positions: list[tuple[float, float, float]]) -> list[Path]:
    """Slices at ``positions`` (LPS mm) whose values are a linear function of the place in the patient."""
    shape = (12, 10, len(positions))
    files = write_series(folder, np.zeros(shape, np.int16), affine_of(np.diag([-1.0, -1.0, 1.0])))
    i, j = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    for path, (x, y, z) in zip(files, positions, strict=True):
        place = value_at(x + i * SIDES[0], y + j * SIDES[1], z)
        edit(path, ImagePositionPatient=[x, y, z], PixelData=np.rint(place).astype("<i2").T.tobytes())
    return files


def value_at(x: Any, y: Any, z: Any) -> Any:
    return 1000 + 40 * x + 25 * y + 30 * z


STACKS: dict[str, tuple[list[tuple[float, float, float]], str]] = {
    "tilted": ([(3.0, 2.0 + 1.7 * k, 5.5 * k) for k in range(6)], "tilted gantry (17.2 degrees)"),
    "tilted the other way": ([(3.0, 2.0 - 0.8 * k, 5.5 * k) for k in range(6)], "tilted gantry (8.3 degrees)"),
    "uneven": ([(3.0, 2.0, z) for z in (0, 5.5, 11.5, 16.5, 22, 27.5)], "slices 5 to 6 mm apart: resampled to 5.5 mm"),
}


@pytest.mark.parametrize("kind", STACKS)
def test_tilted_and_uneven_slices_come_to_a_grid_where_they_were(kind: str, tmp_path: Path) -> None:
    positions, line = STACKS[kind]
    ramp(tmp_path, positions)
    read = read_series(tmp_path)
    assert read.resampled and any(notice.startswith(line) for notice in read.notices)
    sides = read.affine[:3, :3] / np.linalg.norm(read.affine[:3, :3], axis=0)
    assert np.allclose(sides.T @ sides, np.eye(3), atol=1e-9), "at right angles"
    np.testing.assert_allclose(read.spacing, SIDES, rtol=1e-6)
    # inside what every slice shows each voxel has the value of its own place
    index = np.argwhere(read.voxels > read.voxels.min())
    index = index[((index[:, :2] > 0) & (index[:, :2] < np.array(read.voxels.shape[:2]) - 1)).all(1)]
    x, y, z = (index @ read.affine[:3, :3].T + read.affine[:3, 3]).T * np.array([[-1], [-1], [1]])
    # not at the rims, where half a pixel beyond a slice holds the value of its outer pixel
    shown = np.array([2.0 + (positions[-1][1] - positions[0][1]) * depth / 27.5 for depth in z])
    within = (x >= 3.0) & (x <= 3.0 + 11 * SIDES[0]) & (y >= shown) & (y <= shown + 9 * SIDES[1])
    found = read.voxels[tuple(index.T)]
    assert within.sum() > 400
    np.testing.assert_allclose(found[within], value_at(x, y, z)[within], atol=1.01)


def test_a_distance_within_a_hundredth_is_no_reason_to_resample(tmp_path: Path) -> None:
    ramp(tmp_path, [(3.0, 2.0, z) for z in (0, 5.5, 11.04, 16.5)])
    assert not read_series(tmp_path).resampled
