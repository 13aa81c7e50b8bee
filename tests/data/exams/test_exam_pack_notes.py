"""What ``sslmed data pack exams`` says, and what it refuses to write."""

import shutil
from pathlib import Path

import pytest

from sslmed_dist.cli import main
from sslmed_dist.data.exams.exams import Exams
from tests.data.exams.test_exams import hospital

__all__ = ["hospital"]


@pytest.mark.slow
def test_a_pack_says_what_was_left_aside_and_one_of_nothing_is_refused(
    hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt rule would otherwise show when that plane is trained on, at the earliest."""
    small = ["size=8", "mm=1.5"]
    rules = ["series.sagittal=pd", "series.coronal=pdd"]
    assert main(["data", "pack", "exams", str(hospital), str(tmp_path / "pack"), *rules, *small]) == 0
    said = capsys.readouterr().err
    assert "note: data: 4 examinations without a series for coronal, which no examination has" in said
    bare = tmp_path / "bare"
    shutil.copytree(hospital / "p1" / "a", bare / "p1")
    assert main(["data", "pack", "exams", str(bare), str(tmp_path / "pack2"), "series.sagittal=pd", *small]) == 0
    assert "no table labels.csv" in capsys.readouterr().err
    nothing = ["series.sagittal=pdd", "series.axial=pd"]
    assert main(["data", "pack", "exams", str(hospital), str(tmp_path / "none"), *nothing, *small]) == 2
    assert "none of 4 exams has a series for sagittal or axial; sslmed data check" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_table_elsewhere_is_read_and_one_that_is_not_there_is_refused(
    hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "others.csv"
    other.write_text("exam,tear\np1/a,1\np2/a,0\n")
    exams = Exams(hospital, "all", labels=str(other), size=8, mm=1.5)
    assert exams.classes == ("tear",) and exams.labels.flatten().tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"^data\.labels: .*gone\.csv: no such file; allowed: a path from"):
        Exams(hospital, "all", labels="gone.csv", size=8, mm=1.5)
    semicolons = tmp_path / "semicolons.csv"
    semicolons.write_text("exam;tear\np1/a;1\n")
    with pytest.raises(ValueError, match="it has exam;tear; allowed: commas between columns"):
        Exams(hospital, "all", labels=str(semicolons), size=8, mm=1.5)
    with pytest.raises(ValueError, match="no split 'val'; allowed: train, all; data.val_fraction makes one"):
        Exams(hospital, "val", labels=str(other), size=8, mm=1.5)
