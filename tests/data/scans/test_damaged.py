"""A damaged slice never vanishes out of its series, and a missing one at an end is noticed where anything shows it."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest

from sslmed_dist.data.check import inspect
from sslmed_dist.data.exams.exam_series import Preparation
from sslmed_dist.data.exams.exam_store import prepare_exam
from sslmed_dist.data.exams.one_series import read_one
from sslmed_dist.data.exams.series import DAMAGED, read_examination
from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.data.scans.completeness import STRIDE_UNKNOWN, ends_missing, stride_of
from sslmed_dist.data.scans.dicom import ENDS_UNKNOWN, read_series
from sslmed_dist.data.scans.dicom_file import begins_as_dicom

VOXELS = np.arange(1, 8 * 6 * 5 + 1, dtype=np.int16).reshape(8, 6, 5)
AFFINE = np.diag([-1.5, -1.5, 4.0, 1.0])
NAMES = {"suffix": "IM{}.dcm", "none": "IM{}", "uid": "1.2.840.9.{}", "siemens": "{}.IMA"}


def before_pixels(content: bytes) -> int:
    return content.rindex(b"\xe0\x7f\x10\x00")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "0 bytes": lambda content: b"",
    "100 bytes": lambda content: content[:100],
    "400 bytes": lambda content: content[:400],
    "no pixel data": lambda content: content[: before_pixels(content)],
    "no pixels behind the tag": lambda content: content[: before_pixels(content) + 12],
    "20 bytes short": lambda content: content[:-20],
    "overwritten": lambda content: b"\x1f\x8b" + bytes(range(256)) * 2,
}


def series(folder: Path, names: str = "suffix", **tags: Any) -> list[Path]:
    files = [NAMES[names].format(k + 1) for k in range(VOXELS.shape[2])]
    tags = {"ImageType": ["ORIGINAL", "PRIMARY"], "SeriesDescription": "t2"} | tags
    return write_series(folder, VOXELS, AFFINE, names=files, tags=tags)


@pytest.mark.parametrize("which", [0, 2, 4])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_slice_is_named_by_every_reader(damage: str, which: int, tmp_path: Path) -> None:
    names = list(NAMES)[(which // 2 + list(DAMAGES).index(damage)) % len(NAMES)]
    path = series(tmp_path, names)[which]
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=f"^{path}: ") as caught:
        read_one(tmp_path)
    assert "\n" not in str(caught.value)
    assert any(str(path) in problem for problem in inspect(tmp_path)[1])
    # a pack of exams leaves the series or the file aside, and counts it
    exam, _ = prepare_exam(("p", sorted(tmp_path.iterdir()), ""), Preparation({"axial": ""}, size=8, mm=2.0))
    assert exam.aside and ("axial" not in exam.slots or any(item.reason == DAMAGED for item in exam.aside))


def test_damaged_files_alone_in_a_folder_are_named(tmp_path: Path) -> None:
    for path in series(tmp_path / "p1"):
        path.write_bytes(path.read_bytes()[:400])
    assert len([line for line in inspect(tmp_path)[1] if "its end is missing" in line]) == 5


def test_what_is_no_image_is_passed_over_and_counted(tmp_path: Path) -> None:
    files = series(tmp_path, "none")
    report = pydicom.dcmread(files[0])
    del report.PixelData, report.Rows, report.Columns
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"  # basic text
    report.save_as(tmp_path / "SR1")
    segments = pydicom.dcmread(files[0])
    segments.SOPClassUID = segments.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    segments.save_as(tmp_path / "SEG1")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "README").write_text("nothing\n")
    (tmp_path / ".hidden").write_text("")
    scan, notes = read_one(tmp_path)
    assert np.array_equal(scan.voxels, VOXELS) and notes == [
        "passed over: 4 files without an image",
        ENDS_UNKNOWN,
    ]


def test_files_without_preamble_are_dicom(tmp_path: Path) -> None:
    for path in series(tmp_path, "none"):
        path.write_bytes(path.read_bytes()[132:])
        assert begins_as_dicom(path)
    assert np.array_equal(read_one(tmp_path)[0].voxels, VOXELS)
    path = tmp_path / "IM3"
    for kept in (400, 60):
        shutil.copy(tmp_path / "IM2", path)
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ValueError, match=f"^{path}: "):
            read_one(tmp_path)


def private(path: Path, creator: str, group: int, element: int, count: int) -> None:
    header = pydicom.dcmread(path)
    header.private_block(group, creator, create=True).add_new(element, "SL", count)
    header.save_as(path)


ENDS: dict[str, tuple[dict[str, Any], tuple[str, int, int, int] | None, int, str]] = {
    # kind: tags, private element, slice that is taken away, what is said
    "ImagesInAcquisition": ({"ImagesInAcquisition": 5}, None, 4, "4 slices, but its files count 5 slices: 1 missing"),
    "the first": ({"ImagesInAcquisition": 5}, None, 0, "4 slices, but its files count 5 slices: 1 missing"),
    "phases": ({"ImagesInAcquisition": 15, "NumberOfTemporalPositions": 3}, None, 4, "its files count 5 slices"),
    "NumberOfSlices": ({"NumberOfSlices": 5}, None, 4, "its files count 5 slices"),
    "of the series": ({"NumberOfSeriesRelatedInstances": "5"}, None, 4, "its files count 5 slices"),
    "Philips": ({}, ("Philips Imaging DD 001", 0x2001, 0x18, 5), 4, "its files count 5 slices"),
    "GE": ({}, ("GEMS_RELA_01", 0x0021, 0x4F, 5), 4, "its files count 5 slices"),
    "InstanceNumber": ({}, None, 0, "4 slices, but its InstanceNumbers begin with 2: 1 missing"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_a_slice_missing_at_an_end_is_caught(kind: str, tmp_path: Path) -> None:
    tags, element, gone, message = ENDS[kind]
    files = series(tmp_path, **tags)
    for path in files if element else ():
        private(path, *element)  # type: ignore[misc]
    whole, (known,) = read_series(tmp_path), read_examination(files).series
    assert known.missing == 0 and known.ends_known == (kind != "InstanceNumber")
    assert whole.notices == ((ENDS_UNKNOWN,) if kind == "InstanceNumber" else ())
    files.pop(gone).unlink()
    with pytest.raises(ValueError, match=f"^{tmp_path}: .*{message}"):
        read_one(tmp_path)
    (short,) = read_examination(files).series
    assert short.missing == 1 and "at an end" in short.holes[0]
    assert any("1 slice missing, at an end" in problem for problem in inspect(tmp_path)[1])


@pytest.mark.parametrize(
    ("instances", "stated", "inside", "missing"),
    [
        ([1, 2, 3], [None] * 3, 0, 0),
        ([3, 2], [None] * 2, 0, 1),
        ([2, 4, 5], [None] * 3, 1, 1),  # a gap, and the first
        ([20, 21, 22], [None] * 3, 0, 0),  # goes on from another series
        ([2, 4, 6], [None] * 3, 0, 0),  # second echo
        ([3, 2, 4], [None] * 3, 0, 0),  # in no order
        ([1, 2, 3], [6] * 3, 0, 0),  # of two volumes
        ([1, 2, 3], [5, 5, 4], 0, 0),  # they disagree
        ([1, 2, 4], [5] * 3, 1, 1),  # a gap that is counted already
        ([None, 2, 3], [None] * 3, 0, 0),
    ],
)
def test_what_counts_as_missing(instances: list[Any], stated: list[Any], inside: int, missing: int) -> None:
    assert ends_missing(instances, stated, inside)[0] == missing


@pytest.mark.parametrize(
    ("tag", "value", "kind"),
    [
        ("PatientID", "somebody else", "patients"),
        ("Modality", "CT", "modalities"),
        ("FrameOfReferenceUID", "2.25.77", "frames of reference"),
        ("PhotometricInterpretation", "MONOCHROME1", "photometric interpretations"),
    ],
)
def test_slices_of_another_kind_are_no_slices_of_the_volume(tmp_path: Path, tag: str, value: str, kind: str) -> None:
    path = series(tmp_path, PatientID="one")[2]
    header = pydicom.dcmread(path)
    setattr(header, tag, value)
    header.save_as(path)
    with pytest.raises(ValueError, match=rf"^{path}: {tag} is not that of IM1\.dcm; one volume has one$"):
        read_one(tmp_path)
    assert f"several {kind}" in " ".join([*inspect(tmp_path)[0], *inspect(tmp_path)[1]])


STRIDES: dict[str, tuple[float | None, float | None, Sequence[int | None], int, str]] = {
    # kind: SpacingBetweenSlices, SliceThickness, InstanceNumbers, every n-th is there, what is said; 10 mm apart
    "spacing": (5.0, 5.0, (1, 3, 5, 7), 2, "SpacingBetweenSlices is 5 mm, but its slices lie 10 mm apart"),
    "spacing alone": (3.33, None, (None,) * 4, 3, "SpacingBetweenSlices is 3.33 mm"),
    "spacing of overlapping slices": (5.0, 10.0, (2, 4, 6, 8), 2, "SpacingBetweenSlices is 5 mm"),
    "numbers and thickness": (None, 5.0, (7, 5, 3, 1), 2, "its InstanceNumbers go in steps of 2"),
    "two of three": (None, 10 / 3, (1, 4, 7, 10), 3, "its InstanceNumbers go in steps of 3"),
    "all there": (10.0, 8.0, (1, 2, 3, 4), 1, ""),
    "echoes that take turns": (None, 10.0, (2, 4, 6, 8), 1, ""),
    "the gap in place of the spacing": (2.0, 8.0, (1, 2, 3, 4), 1, ""),
    "contradicted": (5.0, 3.0, (4, 3, 2, 1), 1, "none missing by InstanceNumber"),
    "wide gaps": (None, 4.0, (1, 2, 3, 4), 1, ""),
    "thin slices": (None, 4.0, (9, 1, 4, 2), 1, "every second slice may be missing"),
    "nothing said": (None, None, (None,) * 4, 1, STRIDE_UNKNOWN),
    "numbers alone": (None, None, (1, 2, 3, 4), 1, ""),
}


@pytest.mark.parametrize("kind", STRIDES)
def test_slices_that_are_missing_in_turn(kind: str) -> None:
    between, thickness, instances, every, said = STRIDES[kind]
    frames = [SimpleNamespace(between=between, thickness=thickness, instance=instance) for instance in instances]
    stride = stride_of(10.0, frames)
    assert stride.every == every and said in stride.why + stride.doubt and bool(said) == bool(stride.why + stride.doubt)
    assert not (stride.why and stride.doubt)


def test_every_second_slice_of_a_series(tmp_path: Path) -> None:
    """The one reader refuses it by name; the reader of examinations counts what is missing."""
    files = series(tmp_path, SpacingBetweenSlices=str(AFFINE[2, 2]))
    assert read_examination(files).series[0].missing == 0 and read_one(tmp_path)
    files.pop(3).unlink()
    files.pop(1).unlink()
    message = "3 slices, but SpacingBetweenSlices is 4 mm, but its slices lie 8 mm apart: 2 missing"
    with pytest.raises(ValueError, match=f"^{tmp_path}: {message} between them$"):
        read_one(tmp_path)
    (short,) = read_examination(files).series
    assert short.missing == 2 and short.holes[0].startswith("in turn (SpacingBetweenSlices")
    assert any("2 slices missing, in turn" in problem for problem in inspect(tmp_path)[1])
