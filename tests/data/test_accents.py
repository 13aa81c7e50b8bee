"""Names of lists meet names of the disk, however their accents are written: in one character or in two."""

import unicodedata
from pathlib import Path

import pytest
import torch

from sslmed_dist.data import SUBSETS
from sslmed_dist.data.exams import kneemri
from sslmed_dist.data.exams.exam_files import find_exams
from sslmed_dist.data.exams.exam_table import read_exam_table
from sslmed_dist.data.images.medical_files import read_mhist
from sslmed_dist.data.listed_paths import Below, composed
from sslmed_dist.data.phantom import write_kneemri

ONE, TWO = (unicodedata.normalize(form, "Müller Ångström") for form in ("NFC", "NFD"))
WAYS = pytest.mark.parametrize(("listed", "stored"), [(ONE, TWO), (TWO, ONE), (ONE, ONE), (TWO, TWO)])
BOTH = "means 2 names in .* that differ only in how their accents are written; allowed: one"


@WAYS
def test_exams_of_a_table_find_their_folders(tmp_path: Path, listed: str, stored: str) -> None:
    (tmp_path / stored / "knee").mkdir(parents=True)
    (tmp_path / stored / "knee" / "x.dcm").write_bytes(b"x")
    (tmp_path / "labels.csv").write_text(f"exam,acl\n{listed}/knee,1\n", encoding="utf-8")
    found = find_exams(tmp_path, read_exam_table(tmp_path / "labels.csv"))
    assert found.files == {f"{listed}/knee": [tmp_path / stored / "knee" / "x.dcm"]} and not found.without_files


def test_two_rows_for_one_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / TWO).mkdir()
    (tmp_path / "labels.csv").write_text(f"exam,acl\n{ONE},1\n{TWO},0\n", encoding="utf-8")
    with pytest.raises(ValueError, match="two rows name this folder"):
        find_exams(tmp_path, read_exam_table(tmp_path / "labels.csv"))


@pytest.mark.parametrize("listed", [ONE, TWO])
def test_two_names_that_look_alike_are_a_collision(tmp_path: Path, listed: str) -> None:
    for name in (ONE, TWO):
        (tmp_path / "in" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=f"^table: line 2: the path .* {BOTH}") as caught:
        Below(tmp_path)(f"in/{listed}/x.png", "table: line 2")
    assert str(tmp_path / "in") in str(caught.value)


def test_what_is_not_there_stays_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in (TWO, f"{ONE}/{TWO}", f"file/{TWO}", "plain/a.png"):
        assert Below(tmp_path)(name, "list") == name
    assert composed(TWO) == ONE == composed(ONE)


@WAYS
def test_listings_of_images(tmp_path: Path, listed: str, stored: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f"{stored}.png").touch()
    heading = "Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"
    (tmp_path / "annotations.csv").write_text(f"{heading}\n{listed}.png,HP,1,train\n", encoding="utf-8")
    assert list(read_mhist(tmp_path).names) == [f"images/{stored}.png"]


@WAYS
def test_a_list_of_a_subset(tmp_path: Path, listed: str, stored: str) -> None:
    (tmp_path / "list.txt").write_text(f"train/{listed}.png 1\n", encoding="utf-8")
    zero, names = torch.zeros(2, dtype=torch.int64), ["a.png", f"{stored}.png"]
    chosen = SUBSETS["listed"](zero, zero, torch.arange(2), seed=0, names=names, file=str(tmp_path / "list.txt"))
    assert chosen.tolist() == [1]


@WAYS
def test_volumes_of_knees(tmp_path: Path, listed: str, stored: str) -> None:
    root = write_kneemri(tmp_path / "set", exams=10, size=16, slices=(1, 1))
    table = (root / kneemri.TABLE).read_text(encoding="utf-8")
    first = next(iter(kneemri.read_rows(root / kneemri.TABLE)))
    path = kneemri.find_volumes(root)[first][1]
    path.rename(path.with_name(f"{stored}.pck"))
    (root / kneemri.TABLE).write_text(table.replace(first, f"{listed}.pck"), encoding="utf-8")
    assert len(kneemri.KneeMRI(root, "all")) == 10
    for form in (ONE, TWO):
        (path.parent / f"{form}.pck").write_bytes(b"")
    with pytest.raises(ValueError, match="stands in it twice"):
        kneemri.find_volumes(root)
