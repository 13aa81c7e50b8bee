"""``sslmed data check`` on plain scans: what each is, and nothing about slots that nobody asked for."""

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from sslmed_dist.cli import main
from sslmed_dist.data.check import inspect
from sslmed_dist.data.phantom.chaos import write_series

VOXELS = np.random.default_rng(0).integers(1, 900, (6, 5, 4)).astype(np.int16)
AFFINE = np.diag([-1.5, -2.0, 5.0, 1.0])
GEOMETRY = "6 x 5 x 4 voxels of 1.5 x 2 x 5 mm (field of view 9 x 10 x 20 mm); axes left, posterior, superior"


def save(path: Path, voxels: Any = VOXELS, affine: Any = AFFINE, *, unit: str = "mm", stated: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units(unit)
    if not stated:
        image.set_sform(affine, 0)
        image.set_qform(affine, 0)
    nibabel.save(image, path)
    return path


def test_a_folder_of_nifti_files(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz")
    metres = AFFINE.copy()
    metres[:3] /= 1000
    save(tmp_path / "b.nii", VOXELS + 1, metres, unit="meter")
    save(tmp_path / "c.nii", VOXELS + 2, stated=False)
    save(tmp_path / "d.nii.gz", (VOXELS > 450).astype(np.uint8) * 3)
    (tmp_path / "torn.nii.gz").write_bytes(b"torn")
    save(tmp_path / "same.nii.gz")
    save(tmp_path / "flat.nii.gz", np.full_like(VOXELS, 7))
    lines, problems = inspect(tmp_path)
    low, high = VOXELS.min(), VOXELS.max()
    assert lines[0] == "layout: 7 NIfTI files"
    assert f"a: {GEOMETRY}; left and right stated; unit millimetre; values {low} to {high}" in lines
    assert f"b: {GEOMETRY}; left and right stated; unit metre; values {low + 1} to {high + 1}" in lines
    assert "b: its unit is the metre: converted to mm" in lines
    (unknown,) = [line for line in lines if line.startswith("c: 6 x 5 x 4")]
    assert "left and right unknown" in unknown and "c: has neither a qform nor an sform: where left" in "\n".join(lines)
    (labels,) = [line for line in lines if line.startswith("d: 6 x 5")]
    assert labels.endswith("values 0 to 3 (a label map by its 2 whole values)")
    assert [problem.split(": ")[0] for problem in problems] == [
        str(tmp_path / "flat.nii.gz"),
        str(tmp_path / "torn.nii.gz"),
        "all",
    ]
    assert problems[0].endswith("all voxels are 7") and problems[2] == "all: 1 scan repeats an earlier one: same"


def test_one_series_of_dicom_and_one_file(tmp_path: Path) -> None:
    files = write_series(tmp_path / "exam", VOXELS, AFFINE, tags={"SeriesDescription": "t2", "ImagesInAcquisition": 4})
    lines, problems = inspect(tmp_path / "exam")
    assert lines[0] == "layout: 1 DICOM series" and not problems
    assert lines[1].startswith("exam | t2 plane=axial oblique=0 slices=4 size=5x6 ")
    said = f"exam: MR; {GEOMETRY}; left and right stated; unit DICOM's mm; values {VOXELS.min()} to {VOXELS.max()}"
    assert lines[2:] == [said]
    write_series(tmp_path / "padded", VOXELS, AFFINE, tags={"PixelPaddingValue": int(VOXELS.min())})
    assert any(line.startswith("padded: padding, as the files state it: ") for line in inspect(tmp_path / "padded")[0])
    files[1].unlink()
    _, problems = inspect(tmp_path / "exam")
    assert len(problems) == 1 and "1 slice missing, between" in problems[0]
    alone = save(tmp_path / "alone.nii.gz")
    assert inspect(alone)[0][1].startswith(f"alone: {GEOMETRY}")


def test_several_series_are_examinations_and_rules_may_be_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tags = {"SeriesDescription": "t2"}
    write_series(tmp_path / "one", VOXELS, AFFINE, tags=tags)
    assert main(["data", "check", str(tmp_path / "one"), "series.axial=t2"]) == 0
    assert "examinations with a series for: axial 1" in capsys.readouterr().out
    names = [f"b{k}.dcm" for k in range(4)]
    write_series(tmp_path / "two", VOXELS, AFFINE, tags=tags)
    write_series(tmp_path / "two", VOXELS, AFFINE, series="other", names=names, tags=tags)
    shutil.copytree(tmp_path / "one", tmp_path / "below" / "one")
    for folder in ("two", "below"):
        assert inspect(tmp_path / folder)[0][0] == "layout: examinations (DICOM or NIfTI)"
