"""Which scans a path means, and which series of a study: listed and asked for, never guessed."""

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet

from sslmed_dist.data.exams.one_series import read_one
from sslmed_dist.data.exams.studies import one_source, studies_at
from sslmed_dist.verbs.segment.files import find_queries
from tests.data.exams.dicom_series import affine_of, edit, enhance, values, write
from tests.real_data import real_data


def names(path: Path, *excluded: Path) -> list[tuple[str, int]]:
    return [(source.name, len(source.files or ())) for source in find_queries(path, excluded)]


def test_studies_are_found_at_any_depth_and_named_by_their_folders(tmp_path: Path) -> None:
    for study in ("1", "2"):
        for series in ("a", "b"):
            folder = tmp_path / f"P{study}" / "2011" / series
            write(folder, series, StudyInstanceUID=f"2.25.{study}")
            for path in folder.iterdir():
                edit(path, SOPInstanceUID=f"2.25.{study}.{ord(series)}.{path.stem[-1]}")
    write(tmp_path / "flat", "x", StudyInstanceUID="2.25.3")
    for path in write(tmp_path / "flat", "y", StudyInstanceUID="2.25.4"):
        edit(path, SOPInstanceUID=f"2.25.4.{path.stem[-1]}")
    (tmp_path / "notes.txt").write_text("nothing")
    assert names(tmp_path) == [("P1_2011", 8), ("P2_2011", 8), ("flat_1", 4), ("flat_2", 4)]
    assert names(tmp_path / "P1") == [("2011", 8)] and names(tmp_path / "P1" / "2011") == [("2011", 8)]
    assert names(tmp_path / "P1" / "2011" / "a") == [("a", 4)]
    left = names(tmp_path, tmp_path / "flat", tmp_path / "P1" / "2011" / "a")
    assert left == [("P1_2011_b", 4), ("P2_2011", 8)]


def test_files_without_a_study_are_one_of_their_folder(tmp_path: Path) -> None:
    for path in write(tmp_path / "p", "t2"):
        edit(path, StudyInstanceUID=None)
    assert names(tmp_path) == [("p", 4)]


def several(folder: Path) -> None:
    """Two series of a study in two folders, a repetition, a localizer, and a map."""
    for number, (name, tags) in enumerate(
        {
            "t2": {},
            "t1": {},
            "t2 again": {"SeriesDescription": "t2"},
            "localizer": {},
            "t2 adc": {"ImageType": ["DERIVED", "PRIMARY", "ADC"]},
        }.items(),
        start=1,
    ):
        write(folder / name, name, **({"SeriesNumber": number} | tags))


def test_a_rule_chooses_and_nothing_is_guessed(tmp_path: Path) -> None:
    several(tmp_path)
    with pytest.raises(
        ValueError, match=r"3 series in it that would do \(t2 plane.*number=1; t1 .*; t2 .*number=3\); "
    ):
        read_one(tmp_path)
    with pytest.raises(ValueError, match="2 series in it that would do .*; choose one by --series RULE"):
        read_one(tmp_path, "^T2 ")
    with pytest.raises(ValueError, match=r"none of its series fits --series 'flair' \("):
        read_one(tmp_path, "flair")
    with pytest.raises(ValueError, match=r"^--series '\(': not a regular expression"):
        read_one(tmp_path, "(")
    with pytest.raises(ValueError, match="choose one by --support-series RULE"):
        read_one(tmp_path, "^T2 ", "--support-series")
    scan, notices = read_one(tmp_path, "t2.*number=3")
    assert (
        np.array_equal(scan.voxels, values(affine_of("axial"), 2)) and scan.series.files[0] == "t2 again/t2 again-0.dcm"
    )
    assert "left aside: 4 images, a localizer by its name" in notices
    assert any(line.startswith("chosen by --series among 3 series: t2 plane=axial") for line in notices)
    assert read_one(tmp_path, "adc")[0].series.files[0].startswith("t2 adc/"), "made of others: only where asked for"


@pytest.mark.parametrize("stored", ["axial", "coronal"])
def test_one_file_of_several_frames_is_a_scan(stored: str, tmp_path: Path) -> None:
    files = write(tmp_path / "plain", "s", stored, axis=0)
    enhanced = enhance(files, tmp_path / "IM1", [2, 0, 3, 1])
    shutil.copy(enhanced, tmp_path / "all.dcm")
    plain = read_one(tmp_path / "plain")[0]
    for path in (enhanced, tmp_path / "all.dcm"):
        assert names(path) == [(path.stem, 1)]
        scan = read_one(path)[0]
        assert np.array_equal(scan.voxels, plain.voxels) and np.allclose(scan.affine, plain.affine)


def disc(root: Path, tmp_path: Path) -> Path:
    """The two series below ``root`` as a disc with a DICOMDIR."""
    files = FileSet()
    for path in sorted(root.rglob("*.dcm")):
        files.add(path)
    files.write(tmp_path / "disc")
    return tmp_path / "disc" / "DICOMDIR"


def test_a_dicomdir_means_what_it_lists(tmp_path: Path) -> None:
    for number, name in enumerate(("t2", "t1"), start=1):
        for path in write(tmp_path / "source" / name, name, SeriesNumber=number):
            edit(path, StudyDate="20260101", StudyTime="120000", StudyID="1")
    directory = disc(tmp_path / "source", tmp_path)
    assert [count for _, count in names(directory)] == [8] and len(names(directory.parent)) == 1
    assert read_one(directory, "t2")[0].voxels.shape == (6, 5, 4)
    with pytest.raises(ValueError, match="2 series in it that would do"):
        read_one(directory)
    first = (one_source(directory).files or ())[0]
    lower = first.with_name(first.name.lower())
    first.rename(lower)
    assert len(one_source(directory).files or ()) == 8, "copied in small letters"
    lower.unlink()
    for path in (directory, directory.parent):
        with pytest.raises(ValueError, match=f"^{directory}: lists 8 files, of which 1 are not there"):
            find_queries(path, ())
    header: Any = pydicom.dcmread(directory)
    for record in header.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.ReferencedFileID = ["..", "x"]
    header.save_as(directory)
    with pytest.raises(ValueError, match=f"^{directory}: lists a file outside of its folder"):
        find_queries(directory, ())


def test_nifti_files_are_scans_by_themselves(tmp_path: Path) -> None:
    for name in ("image_01.nii.gz", "label_01.nii.gz", "b.nii"):
        nibabel.save(nibabel.Nifti1Image(values(affine_of("axial"), 0), affine_of("axial")), tmp_path / name)
    assert names(tmp_path, tmp_path / "b.nii") == [("image_01", 0)]
    assert names(tmp_path / "b.nii") == [("b", 0)]


def test_real_examinations_are_listed_and_chosen_from() -> None:
    """Three patients: a rule that fits one series of two, and a repeated one of the third."""
    root = real_data("prostatex-dicom")
    first, second, third = studies_at(root)
    assert [source.name.split("_")[0] for source in (first, second, third)] == [
        "ProstateX-0000",
        "ProstateX-0001",
        "ProstateX-0218",
    ]
    with pytest.raises(ValueError, match=r"4 series in it that would do \(t2_tse_sag plane=sagittal"):
        read_one(first)
    with pytest.raises(
        ValueError, match=r"2 series in it that would do \(t2_tse_tra .*number=6; t2_tse_tra .*number=10\)"
    ):
        read_one(second, "t2.*tra")
    scan, notices = read_one(third, "t2.*tra")
    assert (
        scan.voxels.shape == (320, 320, 20)
        and "left aside: 13 images, a localizer (its images lie in 3 planes)" in notices
    )
