"""KneeMRI: volumes in pickles that are never run, the split by folder, both targets."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslmed_dist.data import DATASETS
from sslmed_dist.data.check import inspect
from sslmed_dist.data.exams.exam_dataset import exams_of
from sslmed_dist.data.exams.kneemri import FOLDERS, KneeMRI
from sslmed_dist.data.phantom.kneemri import write_kneemri

HEADING = "examId,seriesNo,aclDiagnosis,kneeLR,roiX,roiY,roiZ,roiHeight,roiWidth,roiDepth,volumeFilename"


def volume(number: int, side: int = 12) -> "np.ndarray[Any, Any]":
    return np.random.default_rng(number).integers(0, 4000, (3 + number % 3, side, side)).astype(np.uint16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One volume in each folder; its diagnosis is its number modulo 3."""
    rows = [HEADING]
    for number in range(1, 11):
        folder = tmp_path / f"vol{number:02d}"
        folder.mkdir()
        with (folder / f"{700 + number}-4.pck").open("wb") as file:
            pickle.dump(volume(number), file, protocol=2)
        rows.append(f"{700 + number},4,{number % 3},{number % 2},1,2,3,4,5,6,{700 + number}-4.pck")
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_folders_are_the_split_and_slices_are_parts_of_the_maximum(root: Path) -> None:
    for split, numbers in FOLDERS.items():
        exams = KneeMRI(root, split, side=12)  # type: ignore[arg-type]
        assert exams.groups.tolist() == sorted(700 + int(number) for number in numbers)
        for position, exam in enumerate(exams.groups.tolist()):
            stored = volume(exam - 700)
            slices = exams.slices(position, torch.tensor([2, 0]))
            expected = stored[[2, 0]].astype(np.float32) / stored.max()
            assert np.allclose(slices[:, 0], expected) and exams.counts[position] == len(stored)
    assert KneeMRI(root, "all", side=24).slices(0, torch.tensor([0])).shape == (1, 1, 24, 24)
    whole, positions = exams_of(DATASETS["kneemri"](root, "all"))
    assert whole.ids.tolist() == list(range(10)) == positions.tolist()


def test_both_targets(root: Path) -> None:
    binary, classes = (KneeMRI(root, "all", target, side=12) for target in ("binary", "classes"))  # type: ignore[arg-type]
    assert classes.labels.tolist() == [number % 3 for number in range(1, 11)] and classes.task == "single"
    assert binary.labels[:, 0].tolist() == [float(number % 3 == 2) for number in range(1, 11)]
    assert (binary.task, binary.classes, len(classes.classes)) == ("multi", ("ruptured",), 3)
    assert [record["knee_lr"] for record in binary.records[:2]] == ["1", "0"]  # as it stands: no one says which is left


class Malicious:
    """Unpickled by Python itself it would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def dump(root: Path, value: Any) -> None:
    with (root / "vol08" / "708-4.pck").open("wb") as file:
        pickle.dump(value, file)


def edit_table(old: str, new: str) -> Callable[[Path], Any]:
    return lambda root: (root / "metadata.csv").write_text((root / "metadata.csv").read_text().replace(old, new))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "malicious": (lambda r: dump(r, Malicious(r / "made")), "708-4.pck: .*mkdir, which is not allowed"),
    "an object": (lambda r: dump(r, np.array([Path()], object)), "708-4.pck: not a readable pickle of plain arrays"),
    "two dimensions": (lambda r: dump(r, np.ones((3, 3))), r"708-4.pck: expected numbers \(slices, rows, columns\)"),
    "all zero": (lambda r: dump(r, np.zeros((3, 4, 4))), "708-4.pck: all of the volume is 0"),
    "NaN": (lambda r: dump(r, np.full((3, 4, 4), np.nan)), "708-4.pck: holds negative numbers, NaN"),
    "cut": (lambda r: (r / "vol08/708-4.pck").write_bytes(b"\x80\x02"), "708-4.pck: not a readable pickle"),
    "diagnosis": (edit_table("708,4,2", "708,4,3"), "line 9: aclDiagnosis '3'; allowed: 0, 1, 2"),
    "no row": (edit_table("708-4.pck", "799-4.pck"), "708-4.pck: has no row in metadata.csv"),
    "twice": (edit_table("707-4.pck", "708-4.pck"), "'708-4.pck' stands in it twice"),
    "no column": (edit_table("kneeLR", "side"), "no column 'kneeLR'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_is_one_line(kind: str, root: Path) -> None:
    harm, message = BROKEN[kind]
    harm(root)
    with pytest.raises(ValueError, match=message) as caught:
        KneeMRI(root, "train", side=12)
    assert "\n" not in str(caught.value) and not (root / "made").exists()


def test_a_row_without_its_volume_is_left_out_with_a_count(root: Path) -> None:
    (root / "vol08" / "708-4.pck").unlink()
    exams = KneeMRI(root, "all", side=12)
    assert len(exams) == 9 and exams.notices == ("1 row of the table without their volume, left out",)
    assert exams.ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]


def test_the_phantom_is_in_this_layout_and_check_reads_it(tmp_path: Path) -> None:
    folder = write_kneemri(tmp_path / "set", exams=20, size=16, slices=(2, 4))
    exams = KneeMRI(folder, "all", "classes", side=16)
    assert len(exams) == 20 and exams.labels.bincount().tolist() == [14, 4, 2]
    lines, _ = inspect(folder)
    assert lines[:2] == ["layout: KneeMRI", "train: healthy 8, partially injured 3, ruptured 1"]
    (folder / "vol08" / "500007-4.pck").write_bytes(b"nothing")
    (folder / "vol01" / "500010-4.pck").unlink()
    text = "\n".join(inspect(folder)[1])
    assert "500007-4.pck: not a readable pickle" in text and "1 row without its volume: 500010-4.pck" in text
