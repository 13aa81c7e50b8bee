"""``sslmed data check`` on examinations: the table of series and choices, and what needs attention."""

import csv
from pathlib import Path

import pytest

from sslmed_dist.cli import main
from sslmed_dist.data.check import inspect
from sslmed_dist.data.phantom import write_knee, write_knee_exams
from sslmed_dist.data.phantom.chaos import uid
from tests.data.exams.dicom_series import edit, write
from tests.real_data import real_data


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set") / "exams"
    return write_knee_exams(root, exams=4, scanners=2, size=16, slices=(2, 3), missing=0.3)


def test_every_series_and_what_the_recipe_takes_is_a_line(phantom: Path) -> None:
    lines, problems = inspect(phantom)
    assert lines[:2] == ["layout: examinations (DICOM or NIfTI)", "examinations: 4"]
    of_first = [line for line in lines if line.startswith("P0000/1 | ")]
    localizer = "P0000/1 | left aside | localizer (3 images): a localizer (its images lie in 3 planes)"
    assert of_first.count(localizer) == 1
    for plane in ("sagittal", "coronal"):
        (chosen,) = [line for line in of_first if line.split(" | ")[1].startswith(plane)]
        assert f"plane={plane}" in chosen
    assert "scanners: PHANTOM Model 0 3 T 2, PHANTOM Model 1 1.5 T 2" in lines
    assert any(line.startswith("label acl: ") and "missing" in line for line in lines)
    assert not [problem for problem in problems if "label" not in problem]


def test_rules_can_be_tried_out(phantom: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(phantom), "series.sagittal=pd_tse", "series.coronal_t1=t1"]) in (0, 2)
    out = capsys.readouterr().out
    chosen = [line for line in out.splitlines() if " | sagittal" in line]
    assert len(chosen) == 4 and all("pd_tse_fs_sag" in line for line in chosen)
    assert "examinations with a series for: sagittal 4, coronal_t1" in out
    assert main(["data", "check", str(phantom), "series.sagittal=("]) == 2
    assert main(["data", "check", str(phantom), "plane=axial"]) == 2
    assert "allowed: series.SLOT=RULE" in capsys.readouterr().err


def test_one_series_of_one_plane_has_nothing_wrong_with_it(tmp_path: Path) -> None:
    write(tmp_path / "a", "x", "sagittal")
    lines, problems = inspect(tmp_path)
    assert "examinations with a series for: sagittal 1" in lines and not problems
    _, problems = inspect(tmp_path, {"sagittal": "", "axial": ""})
    assert problems == ["examinations with a series for: 1 class without a sample: axial"]


def test_rules_for_another_layout_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_knee(tmp_path / "set", train=1, valid=1, size=16, slices=(2, 2))
    assert main(["data", "check", str(tmp_path / "set"), "series.sagittal=x"]) == 2
    assert "is no folder of examinations" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "set")]) in (0, 2)
    assert "2 to 2 slices of 16 x 16, 8 bit (not 256: to be read with data.side=16)" in capsys.readouterr().out


def test_what_needs_attention_is_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    files = write(root / "a", "x", "sagittal")
    files[1].unlink()
    (root / "a" / "bad.dcm").write_bytes(b"\0" * 128 + b"DICM")
    write(root / "b", "loc", "axial", StudyInstanceUID=uid("b"))
    for path in write(root / "c", "y", "coronal", StudyInstanceUID=uid("c")):
        edit(path, SeriesInstanceUID=uid("c", "y"))
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["exam", "torn"], ["a", 1], ["b", 1], ["gone", 1]])
    _, problems = inspect(root)
    text = "\n".join(problems)
    assert "1 row without an examination: gone" in text and "1 examination without a row" in text
    assert "bad.dcm: cannot be read, truncated" in text and "b: no series for any of sagittal, coronal, axial" in text
    assert "1 slice missing, between x-2.dcm and x-0.dcm" in text and "label torn: all known values are 1" in text


def test_a_pack_is_described(phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "pack", "exams", str(phantom), str(tmp_path / "pack"), "size=16", "--workers", "1"]) == 0
    lines, _ = inspect(tmp_path / "pack")
    assert lines[0] == "layout: pack of examinations"
    assert lines[1] == "examinations: 4, slices of 16 x 16 pixels of 0.6 mm, 8 bit"
    assert any(line.startswith("sagittal (rule ''): 4 exams, ") for line in lines)


def test_real_examinations_are_listed() -> None:
    lines, problems = inspect(real_data("prostatex-dicom"))
    assert "examinations with a series for: sagittal 3, coronal 3, axial 3" in lines and not problems
    assert sum(" | axial" in line and "t2_tse_tra" in line for line in lines) == 3
