"""The reader of examinations: planes, order and sides by the geometry; what is no stack is left aside by name."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from sslmed_dist.data.exams.exam_series import candidates
from sslmed_dist.data.exams.one_series import read_one
from sslmed_dist.data.exams.planes import PLANES, mirrored
from sslmed_dist.data.exams.series import Examination, read_examination
from sslmed_dist.data.exams.series_stack import read_stack
from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.data.scans.dicom import ENDS_UNKNOWN
from tests.data.exams.dicom_series import SHAPE, SIDES, STORED, affine_of, edit, enhance, values, write
from tests.real_data import real_data

# The patient's axis (right 0, front 1, head 2) along slices, rows and columns, and whether it falls.
UPRIGHT = {
    "sagittal": ((0, True), (2, True), (1, True)),
    "coronal": ((1, True), (2, True), (0, True)),
    "axial": ((2, False), (1, True), (0, True)),
}


def read(folder: Path) -> Examination:
    return read_examination(sorted(path for path in folder.rglob("*") if path.is_file()))


def left_aside(folder: Path) -> list[tuple[int, str]]:
    return [(item.images, item.reason) for item in read(folder).aside]


@pytest.mark.parametrize("turn", [0.0, 19.0])
@pytest.mark.parametrize("stored", STORED)
def test_slices_rows_and_columns_run_one_way_however_they_are_stored(stored: str, turn: float, tmp_path: Path) -> None:
    plane = stored.split()[0]
    for axis in range(3):
        write(tmp_path / str(axis), "s", stored, axis=axis, turn=turn)
    for dimension, (axis, falls) in enumerate(UPRIGHT[plane]):
        (series,) = read(tmp_path / str(axis)).series
        assert (series.plane, round(series.oblique), series.missing) == (plane, round(turn), 0)
        stack = read_stack(series)
        assert stack.shape == series.shape and series.shape[0] == SHAPE[2]
        steps = np.diff(stack, axis=dimension)
        assert (steps < 0).all() if falls else (steps > 0).all()
        # ten times the millimetres along the axis, but for the turn
        assert (
            np.allclose(np.abs(steps), 10 * series.spacing_mm[dimension] * np.cos(np.deg2rad(turn)), atol=1.01) or turn
        )
    assert series.spacing_mm[0] == pytest.approx(SIDES[2])


def test_a_series_between_all_planes_is_of_none(tmp_path: Path) -> None:
    affine = np.eye(4)
    # the normal runs along (1, 1, 1), 54.7 degrees off every axis
    affine[:3, :3] = np.array([[1, -1, 0], [1, 1, -2], [1, 1, 1]]).T / np.sqrt([2, 6, 3]) * np.array(SIDES)
    write_series(tmp_path, values(affine, 0), affine)
    assert left_aside(tmp_path) == [(4, "of no plane (oblique by 55 degrees)")] and not read(tmp_path).series


@pytest.mark.parametrize("stored", ["axial", "coronal", "sagittal from left to right"])
def test_every_form_of_one_series_gives_the_same_slices(stored: str, tmp_path: Path) -> None:
    """Plain files, compressed ones, one enhanced file, files without preamble or suffix, and a NIfTI file."""
    files = write(tmp_path / "plain", "s", stored, axis=0)
    expected = read_stack(read(tmp_path / "plain").series[0])
    (tmp_path / "enhanced").mkdir()
    enhance(files, tmp_path / "enhanced" / "all.dcm", [2, 0, 3, 1])
    for name in ("compressed", "bare"):
        shutil.copytree(tmp_path / "plain", tmp_path / name)
    for path in (tmp_path / "compressed").iterdir():
        header = pydicom.dcmread(path)
        header.compress(RLELossless)
        header.save_as(path)
    for k, path in enumerate((tmp_path / "bare").iterdir()):
        content = path.read_bytes()[132:] if k % 2 else path.read_bytes()
        path.unlink()
        path.with_name(f"IM{k}").write_bytes(content)
    (tmp_path / "nifti").mkdir()
    affine = affine_of(stored)
    nibabel.save(nibabel.Nifti1Image(values(affine, 0), affine), tmp_path / "nifti" / "s.nii.gz")
    for form in ("compressed", "enhanced", "bare", "nifti"):
        (series,) = read(tmp_path / form).series
        assert np.array_equal(read_stack(series), expected), form
        assert series.plane == stored.split()[0] and not read(tmp_path / form).aside


def same_places(folder: Path) -> None:
    for k, path in enumerate(write(folder, "a")):
        edit(path, SOPInstanceUID=f"2.25.1{k}")
        second = path.with_name(f"b{k}.dcm")
        shutil.copy(path, second)
        edit(second, SOPInstanceUID=f"2.25.2{k}")


def mixed(folder: Path) -> None:
    first = pydicom.dcmread(write(folder, "a")[0]).SeriesInstanceUID
    for path in write(folder, "b", "coronal"):
        edit(path, SeriesInstanceUID=first)


def one_of_another_size(folder: Path) -> None:
    edit(write(folder, "a")[2], Rows=4, PixelData=np.zeros((4, 6), "<i2").tobytes())


def cut_header(folder: Path) -> None:
    write(folder, "a")[0].write_bytes(b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0")


# kind: (what is written, what is left aside, series that remain, slices missing of the first)
ASIDE: dict[str, tuple[Callable[[Path], Any], list[tuple[int, str]], int]] = {
    "localizer by its planes": (mixed, [(8, "a localizer (its images lie in 2 planes)")], 0),
    "localizer by its name": (lambda f: write(f, "t2_loc sag"), [(4, "a localizer by its name")], 0),
    "location is none": (lambda f: write(f, "t2_local"), [], 1),
    "several volumes": (same_places, [(8, "several volumes and not one (8 images in 4 places)")], 0),
    "ADC": (
        lambda f: write(f, "x", ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]),
        [(4, "a map computed from other series")],
        0,
    ),
    "computed b-value": (lambda f: write(f, "dwiCALC_BVAL"), [(4, "a map computed from other series")], 0),
    "derived": (lambda f: write(f, "x", ImageType=["DERIVED", "PRIMARY"]), [(4, "derived from other images")], 0),
    "derived by lossy compression alone": (
        lambda f: write(f, "x", ImageType=["DERIVED", "PRIMARY"], LossyImageCompression="01"),
        [],
        1,
    ),
    "reformatted": (
        lambda f: write(f, "x", ImageType=["ORIGINAL", "SECONDARY"]),
        [(4, "derived from other images")],
        0,
    ),
    "single": (lambda f: [p.unlink() for p in write(f, "a")[1:]], [(1, "a single image")], 0),
    "sizes": (one_of_another_size, [(4, "images of differing sizes")], 0),
    "no position": (
        lambda f: edit(write(f, "a")[3], ImagePositionPatient=None),
        [(1, "an image that does not say where it lies")],
        1,
    ),
    "damaged": (cut_header, [(1, "a damaged file")], 1),
    "no DICOM": (lambda f: [write(f, "a"), (f / "b.dcm").write_text("nothing")], [(1, "a damaged file")], 1),
    "no image": (lambda f: [write(f, "a"), (f / "note.txt").write_text("nothing")], [], 1),
    "copied": (lambda f: shutil.copy(write(f, "a")[1], f / "again.dcm"), [(1, "a second copy of an image")], 1),
    "4-D": (
        lambda f: nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3, 2), np.int16), np.eye(4)), f / "a.nii"),
        [(1, "a NIfTI file that is no volume of slices")],
        0,
    ),
}


@pytest.mark.parametrize("kind", ASIDE)
def test_what_is_no_stack_is_left_aside_with_the_reason(kind: str, tmp_path: Path) -> None:
    harm, expected, remaining = ASIDE[kind]
    harm(tmp_path)
    found = read(tmp_path)
    assert [(item.images, item.reason) for item in found.aside] == expected
    assert len(found.series) == remaining and found.other_files == (kind == "no image")
    assert not any(str(tmp_path) in item.reason for item in found.aside)  # reasons go into notices


def test_a_missing_slice_is_said_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    files = write(tmp_path, "a")
    files[1].unlink()
    (series,) = read(tmp_path).series
    assert (
        series.missing == 1
        and series.holes == (f"between {files[0].name} and {files[2].name}",)
        and series.shape[0] == 3
    )
    assert series.spacing_mm[0] == pytest.approx(SIDES[2])
    files[2].write_bytes(files[2].read_bytes()[:-20])
    with pytest.raises(ValueError, match=files[2].name):
        read_stack(read(tmp_path).series[0])


SIDE_TAGS = {
    "left by Laterality": ({"Laterality": "L"}, "left"),
    "right by ImageLaterality": ({"ImageLaterality": "R", "Laterality": "L"}, "right"),
    "left by the body part": ({"BodyPartExamined": "LKNEE"}, "left"),
    "right by the body part": ({"BodyPartExamined": "KNEE_RIGHT"}, "right"),
    "both": ({"ImageLaterality": "B"}, ""),
    "none": ({"BodyPartExamined": "KNEE"}, ""),
}


@pytest.mark.parametrize("kind", SIDE_TAGS)
def test_the_side_is_that_of_the_tags(kind: str, tmp_path: Path) -> None:
    tags, side = SIDE_TAGS[kind]
    write(tmp_path, "a", **tags)
    assert read(tmp_path).series[0].tags.laterality == side


@pytest.mark.parametrize("plane", PLANES)
def test_a_mirrored_stack_is_that_of_the_mirrored_patient(plane: str) -> None:
    stack = np.arange(24.0).reshape(2, 3, 4)
    other = mirrored(stack, plane)
    assert np.array_equal(other, stack[::-1] if plane == "sagittal" else stack[..., ::-1])
    assert np.array_equal(mirrored(other, plane), stack) and not np.array_equal(other, stack)


# Real examinations: (studies, usable series as plane, slices, rows, step in mm, degrees off the plane), images aside.
REAL = {
    "ProstateX-0000": (
        [
            ("sagittal", 19, 320, 3.6, 0),
            ("axial", 19, 384, 3.0, 18),
            ("coronal", 15, 320, 3.0, 18),
            ("axial", 16, 128, 3.0, 18),
        ],
        {57: "several volumes", 19: "map computed"},
        {"sagittal": 3, "axial": 4, "coronal": 5},
    ),
    "ProstateX-0001": (
        [
            *[("sagittal", 19, 320, 3.6, 0), ("coronal", 15, 320, 3.0, 6), ("axial", 19, 384, 3.0, 6)],
            *[("axial", 19, 384, 3.0, 6), ("axial", 16, 128, 3.0, 6)],
        ],
        {57: "several volumes", 19: "map computed", 13: "3 planes", 3: "localizer by its name"},
        {"sagittal": 4, "axial": 10, "coronal": 5},  # number 10 repeats number 6
    ),
    "ProstateX-0218": (
        [("sagittal", 23, 320, 3.6, 0), ("axial", 20, 320, 3.6, 23), ("coronal", 19, 320, 3.6, 23)],
        {13: "3 planes"},
        {"sagittal": 4, "axial": 5, "coronal": 6},
    ),
}


@pytest.mark.parametrize("patient", REAL)
def test_real_examinations_are_read_as_they_are(patient: str) -> None:
    usable, aside, chosen = REAL[patient]
    found = read(real_data(f"prostatex-dicom/{patient}"))
    facts = [(s.plane, s.shape[0], s.shape[1], round(s.spacing_mm[0], 2), round(s.oblique)) for s in found.series]
    assert facts == usable and len(found.studies) == 1 and found.other_files == 0
    assert all(aside[item.images] in item.reason for item in found.aside) and {i.images for i in found.aside} == set(
        aside
    )
    for plane, number in chosen.items():
        best = candidates(found.series, plane, "t2_tse")[0]
        assert best.tags.number == number and best.missing == 0
    stack = read_stack(candidates(found.series, "axial", "t2_tse")[0])
    assert stack.shape[0] == usable[1 if patient != "ProstateX-0001" else 2][1] and stack.max() > 300


def test_one_series_of_a_folder_is_read_and_several_are_listed(tmp_path: Path) -> None:
    """What ``segment`` asks for: a localizer in the folder is left aside, a second series is refused."""
    write(tmp_path, "t2", "axial", axis=0)
    alone, notes = read_one(tmp_path)
    write(tmp_path, "localizer", "coronal")
    scan, notes = read_one(tmp_path)
    assert notes == ["left aside: 4 images, a localizer by its name", ENDS_UNKNOWN]
    assert np.array_equal(scan.voxels, alone.voxels) and np.array_equal(scan.affine, affine_of("axial"))
    files = write(tmp_path, "t1", "coronal")
    with pytest.raises(ValueError, match="2 series in it that would do .*t1 plane=coronal .*; t2 plane=axial"):
        read_one(tmp_path)
    for path in files:
        path.unlink()
    cut_header(tmp_path)
    with pytest.raises(ValueError, match="a-0.dcm: cannot be read"):
        read_one(tmp_path, "t2")


def test_a_tilted_gantry_is_straightened(tmp_path: Path) -> None:
    """Every slice shows the same places in the patient as the untilted one: a ramp along the columns' direction."""
    affine = affine_of("axial")
    ramp = values(affine, 1, (8, 12, 6))  # ten times mm to the front
    files = write_series(tmp_path, ramp, affine, tags={"SeriesDescription": "s"})
    straight = read_stack(read(tmp_path).series[0])
    for k, path in enumerate(files):
        x, y, z = (float(value) for value in pydicom.dcmread(path).ImagePositionPatient)
        shift = SIDES[1] * k  # a pixel for each slice, to the back, which is y above 0
        edit(path, ImagePositionPatient=[x, y + shift, z])
        rows = ramp[:, :, k].T - round(10 * shift)
        edit(path, PixelData=rows.astype("<i2").tobytes())
    (series,) = read(tmp_path).series
    said: list[str] = []
    stack = read_stack(series, said)
    assert "tilted gantry: slices moved to where they lie, 21.8 degrees" in said
    assert stack.shape == (6, 12 + 5, 8)
    for k in range(6):  # what the slice shows: the same place has the same value as without the tilt
        np.testing.assert_allclose(stack[k, k:12], straight[k, k:], atol=0.01)
    assert not [line for line in said if "uneven" in line]


def test_uneven_slices_are_said(tmp_path: Path) -> None:
    files = write(tmp_path, "s")
    place = pydicom.dcmread(files[2]).ImagePositionPatient
    edit(files[2], ImagePositionPatient=[*place[:2], float(place[2]) + 1.0])
    said: list[str] = []
    assert read_stack(read(tmp_path).series[0], said).shape[0] == SHAPE[2]
    assert said == ["uneven slices taken as they are, 4 to 6 mm apart"]
