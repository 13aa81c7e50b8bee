"""Folders of examinations with a table: what is used, left out and refused; a pack gives what the folder gives."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslmed_dist.cli import main
from sslmed_dist.data import DATASETS
from sslmed_dist.data.exams.exam_series import Preparation, fixed_pixels
from sslmed_dist.data.exams.exams import Exams
from sslmed_dist.data.exams.series import read_examination
from sslmed_dist.data.exams.series_stack import read_stack
from sslmed_dist.data.phantom.chaos import uid
from tests.data.exams.dicom_series import edit, write

SMALL: dict[str, Any] = {"size": 8, "mm": 1.5}
COLUMNS = ("exam", "patient", "site", "scanner", "laterality", "split", "source", "acl", "meniscus")
# The table of ``hospital``: patient 1 has two exams, patient 3's has no coronal series.
ROWS: Sequence[Sequence[str]] = (
    ("p1/a", "1", "north", "A", "left", "train", "report", "1", "0"),
    ("p1/b", "1", "north", "B", "", "train", "expert", "", "1"),
    ("p2/a", "2", "south", "A", "right", "test", "report", "0", ""),
    ("p3/a", "3", "south", "C", "R", "val", "expert", "1", "1"),
)


def table(root: Path, rows: Sequence[Sequence[str]] = ROWS, columns: Sequence[str] = COLUMNS) -> None:
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def exam(folder: Path, number: int, planes: Mapping[str, int], **tags: Any) -> None:
    """An examination with a series of each plane (name -> series number)."""
    for name, series in planes.items():
        own = {"StudyInstanceUID": uid("study", number), "SeriesNumber": series, "PatientID": f"id {number}"} | tags
        for k, path in enumerate(write(folder / "deep" / "er", f"{name}{number}", name.split("_")[0], **own)):
            pixels = np.random.default_rng([number, series, k]).integers(0, 900, (5, 6)).astype("<i2").tobytes()
            uids = {"SOPInstanceUID": uid(name, number, k), "SeriesInstanceUID": uid(name, number)}
            edit(path, PixelData=pixels, **uids)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hospital")
    for number, name in enumerate(("p1/a", "p1/b", "p2/a", "p3/a")):
        planes = {"sagittal_pd": 3, "sagittal_t1": 4, "coronal_pd": 5}
        exam(root / name, number, planes if number < 3 else {"sagittal_pd": 3})
    table(root)
    return root


def test_labels_patients_sites_scanners_and_slots(hospital: Path) -> None:
    exams = Exams(hospital, "all", "coronal", **SMALL)
    assert (
        exams.ids.tolist() == [0, 1, 2] and exams.groups.tolist() == [0, 0, 1] and exams.classes == ("acl", "meniscus")
    )
    nan = float("nan")
    assert torch.allclose(exams.labels, torch.tensor([[1, 0], [nan, 1], [0, nan]]), equal_nan=True)
    assert exams.sites is not None and exams.sites.tolist() == [0, 0, 1]
    assert exams.scanners[0] == exams.scanners[2] != exams.scanners[1]
    assert exams.notices == ("1 examinations without a series for coronal, left out of this slot",)
    sagittal = Exams(hospital, "all", "sagittal", **SMALL)
    assert sagittal.ids.tolist() == [0, 1, 2, 3]
    assert [record["slots"] for record in sagittal.records][2:] == [["sagittal", "coronal"], ["sagittal"]]
    assert [Exams(hospital, s, "sagittal", **SMALL).ids.tolist() for s in ("train", "val", "test")] == [
        [0, 1],
        [3],
        [2],
    ]


def test_the_recipe_chooses_the_series(hospital: Path) -> None:
    """Without a rule the series with the most pixels counts, of equal ones the last."""
    any_series = Exams(hospital, "all", **SMALL)
    assert [record["description"] for record in any_series.records] == [
        "sagittal_t10",
        "sagittal_t11",
        "sagittal_t12",
        "sagittal_pd3",
    ]
    assert any("3 examinations with several series for sagittal" in notice for notice in any_series.notices)
    rules = {"sagittal_pd": "PD.*slices=4", "sagittal_t1": "_t1"}
    pd = Exams(hospital, "all", "sagittal_pd", series=rules, **SMALL)
    assert [record["description"][:11] for record in pd.records] == ["sagittal_pd"] * 4 and not pd.notices
    t1 = Exams(hospital, "all", "sagittal_t1", series=rules, **SMALL)
    assert t1.ids.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="none of 4 exams has a series for the slot axial"):
        Exams(hospital, "all", "axial", **SMALL)


def test_slices_have_fixed_millimetres_and_the_intensities_of_their_series(hospital: Path) -> None:
    exams = Exams(hospital, "all", "coronal", clip=3, **SMALL)
    (series,) = [s for s in read_examination(sorted((hospital / "p1/b").rglob("*.dcm"))).series if s.plane == "coronal"]
    stack = read_stack(series)
    low, high = np.percentile(stack, (0.5, 99.5))
    scaled = np.clip((stack - low) / (high - low), 0, 1).astype(np.float32)
    # rows of 2.0 mm and columns of 1.5 mm become pixels of 1.5 mm: columns are kept, one black pixel at each side
    slices = exams.slices(1, torch.arange(4))
    assert slices.dtype == torch.uint8 and slices.shape == (4, 1, 8, 8)
    assert not slices[..., 0].any() and not slices[..., 7].any()
    # pixel 3 lies 0.75 mm above the middle row, which is 0.375 of the way to the row above it
    between = torch.from_numpy(0.375 * scaled[:, 1] + 0.625 * scaled[:, 2])
    assert torch.allclose(slices[:, 0, 3, 1:7] / 255, between, atol=0.003)
    batch = exams.fetch(torch.tensor([1]), seed=0, epoch=0, draw=torch.tensor([0]))
    assert batch["images"].shape == (1, 3, 1, 8, 8) and batch["length"].tolist() == [3]
    again = fixed_pixels(scaled, (1.5, 1.5), Preparation({"coronal": ""}, 8, 1.5))
    assert np.array_equal(again[:, 1:6, 1:7], scaled)  # a whole number of pixels: cropped and padded, not resampled


@pytest.mark.parametrize("plane", ["sagittal", "coronal"])
def test_the_other_side_is_mirrored_where_it_is_known(plane: str, hospital: Path) -> None:
    plain, left = (Exams(hospital, "all", plane, side=side, **SMALL) for side in (None, "left"))
    rows = torch.arange(4)
    for position, known_right in ((0, False), (1, False), (2, True)):
        expected = plain.slices(position, rows)
        if known_right:
            expected = expected.flip(0) if plane == "sagittal" else expected.flip(-1)
        assert torch.equal(left.slices(position, rows), expected)
    assert "1 examinations of unknown side, not mirrored to the left" in left.notices


def test_rows_of_experts_can_be_kept_for_testing(hospital: Path, tmp_path: Path) -> None:
    shutil.copytree(hospital, tmp_path / "set")
    columns = [name for name in COLUMNS if name != "split"]
    table(tmp_path / "set", [[*row[:5], *row[6:]] for row in ROWS], columns)
    train, test = (Exams(tmp_path / "set", split, experts="test", **SMALL) for split in ("train", "test"))
    # patient 1 has an expert's row: the other row of the patient is in no split
    assert train.ids.tolist() == [2] and test.ids.tolist() == [1, 3]
    assert "1 examinations of a patient with expert labels, left out" in train.notices


def test_fractions_split_by_patient_and_studies_may_be_named_by_their_uid(hospital: Path, tmp_path: Path) -> None:
    shutil.copytree(hospital, tmp_path / "set")
    names = [uid("study", 0), uid("study", 1), "p2/a", uid("study", 3)]
    rows = [[name, row[1], row[-1]] for name, row in zip(names, ROWS, strict=True)]
    table(tmp_path / "set", rows, ("exam", "patient", "meniscus"))
    parts = [Exams(tmp_path / "set", split, val_fraction=0.34, **SMALL) for split in ("train", "val", "all")]
    assert sorted([*parts[0].ids.tolist(), *parts[1].ids.tolist()]) == [0, 1, 2, 3] == sorted(parts[2].ids.tolist())
    assert not set(parts[0].groups.tolist()) & set(parts[1].groups.tolist())
    (tmp_path / "set" / "labels.csv").unlink()
    unlabelled = Exams(tmp_path / "set", "all", **SMALL)
    assert len(unlabelled) == 4 and unlabelled.labels.tolist() == [-1] * 4 and not unlabelled.classes


def drop_files(root: Path) -> None:
    shutil.rmtree(root / "p2/a")


def all_zero(root: Path) -> None:
    for path in (root / "p3/a").rglob("*.dcm"):
        edit(path, PixelData=b"\0" * 60)


def cut(root: Path) -> None:
    path = next((root / "p3/a").rglob("*.dcm"))
    path.write_bytes(path.read_bytes()[:-20])


# what is done to the folder -> (samples of the slot sagittal, a notice)
LEFT_OUT: dict[str, tuple[Callable[[Path], Any], list[int], str]] = {
    "a row without files": (drop_files, [0, 1, 3], "1 rows of the table without an examination"),
    "files without a row": (
        lambda r: table(r, ROWS[:3]),
        [0, 1, 2],
        "1 examinations without a row of the table, left out",
    ),
    "all pixels equal": (all_zero, [0, 1, 2], "1 series or files left aside: all pixels are equal"),
    "a damaged slice": (cut, [0, 1, 2], "1 series or files left aside: a damaged slice"),
    "no series at all": (all_zero, [0, 1, 2], "1 examinations without any series of the recipe, left out"),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_cannot_be_used_is_left_out_with_a_count(kind: str, hospital: Path, tmp_path: Path) -> None:
    harm, expected, notice = LEFT_OUT[kind]
    shutil.copytree(hospital, tmp_path / "set")
    harm(tmp_path / "set")
    exams = Exams(tmp_path / "set", "all", **SMALL)
    assert exams.ids.tolist() == expected and notice in exams.notices
    assert not any(".dcm" in line or "p3" in line for line in exams.notices)


def changed(row: int, column: str, value: str) -> Callable[[Path], None]:
    rows = [list(cells) for cells in ROWS]
    rows[row][COLUMNS.index(column)] = value
    return lambda root: table(root, rows)


def copy_of_a_series(root: Path) -> None:
    for path in (root / "p3/a").rglob("*.dcm"):
        path.unlink()
    exam(root / "p3/a", 0, {"sagittal_t1": 4}, StudyInstanceUID=uid("other"))


REFUSED: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "a label that is none": (changed(1, "acl", "2"), {}, "line 3: acl is '2'; .* allowed: 0, 1 or nothing"),
    "a column that is none": (
        lambda r: table(r, [[*row, "54"] for row in ROWS], (*COLUMNS, "age")),
        {},
        "line 2: age is '54'; a column that is none of exam, patient",
    ),
    "an exam twice": (changed(1, "exam", "p1/a"), {}, "line 3: 'p1/a' stands in it twice"),
    "one folder twice": (changed(1, "exam", "p1/./a"), {}, "two rows name this folder"),
    "a folder in another": (changed(1, "exam", "p2"), {}, "p2/a: lies in the folder of another exam, p2"),
    "a folder outside": (changed(1, "exam", "../x"), {}, "goes up"),
    "two studies": (changed(0, "exam", "p1"), {"rows": 1}, "holds 2 studies"),
    "a side that is none": (changed(0, "laterality", "both"), {}, "line 2: laterality 'both'; allowed: left, right"),
    "a split that is none": (changed(0, "split", "valid"), {}, "line 2: split 'valid'; allowed: train, val, test"),
    "a split that is missing": (changed(0, "split", ""), {}, "line 2: no split"),
    "a patient in two splits": (changed(0, "split", "val"), {}, "are of one patient and in two splits"),
    "one exam in two splits": (copy_of_a_series, {}, "are equal, and they are in two splits"),
    "fractions beside a split": (lambda r: None, {"val_fraction": 0.5}, "the table has a column split"),
    "no row": (lambda r: table(r, []), {}, "has a heading and no row"),
    "no exam": (lambda r: table(r, [["x"]], ["exam"]), {}, "none of the 1 rows of labels.csv names a folder or study"),
    "a slot that is none": (lambda r: None, {"plane": "knee"}, "no slot 'knee'; allowed: sagittal, coronal, axial"),
    "a rule that is none": (lambda r: None, {"series": {"sagittal": "("}}, "data.series.sagittal: not a regular expr"),
    "a slot without a plane": (lambda r: None, {"series": {"t1": ""}}, "slot 't1'; allowed: sagittal, coronal, axial"),
    "no millimetres": (lambda r: None, {"mm": 0.0}, "data.mm: expected 0.01 to 100"),
    "no pixels": (lambda r: None, {"size": 2}, "data.size: expected 8 to 4096"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_one_line(kind: str, hospital: Path, tmp_path: Path) -> None:
    harm, arguments, message = REFUSED[kind]
    shutil.copytree(hospital, tmp_path / "set")
    harm(tmp_path / "set")
    if kind == "two studies":
        table(tmp_path / "set", [["p1", *ROWS[0][1:]], *ROWS[2:]])
    given = {"split": "all", **SMALL} | {name: v for name, v in arguments.items() if name != "rows"}
    with pytest.raises(ValueError, match=message) as caught:
        Exams(tmp_path / "set", **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_pack_gives_what_the_folder_gives(bits: int, hospital: Path, tmp_path: Path) -> None:
    words = ["size=8", "mm=1.5", f"bits={bits}", "side=left", "--workers", "1"]
    assert main(["data", "pack", "exams", str(hospital), str(tmp_path / "pack"), *words]) == 0
    plain = Exams(hospital, "all", bits=bits, side="left", **SMALL)  # type: ignore[arg-type]
    packed = Exams(tmp_path / "pack", "all")
    assert packed.store.folder is not None and packed.notices == plain.notices and packed.bits == bits
    for name in ("ids", "groups", "counts", "scanners", "sites"):
        assert torch.equal(getattr(packed, name), getattr(plain, name))
    for position in range(len(plain)):
        rows = torch.tensor([3, 0, 3])
        expected = plain.slices(position, rows)
        assert torch.equal(packed.slices(position, rows), expected)
        assert 0.9 * plain.value_range()[1] < int(expected.max()) <= plain.value_range()[1]
        assert packed.stored(position).digest() == plain.stored(position).digest()
    with pytest.raises(ValueError, match="data.mm: 0.6, but .* was written with 1.5"):
        DATASETS["exams"](tmp_path / "pack", mm=0.6)
    assert main(["data", "pack", "exams", str(hospital), str(tmp_path / "pack"), *words]) == 2
    assert (
        main(["data", "pack", "exams", str(hospital), str(tmp_path / "pack"), "size=16", "--force", "--workers", "1"])
        == 0
    )
    assert Exams(tmp_path / "pack", "all").slices(0, torch.tensor([0])).shape[-1] == 16


def test_a_failed_pack_leaves_nothing_and_a_damaged_one_is_named(hospital: Path, tmp_path: Path) -> None:
    shutil.copytree(hospital, tmp_path / "set")
    changed(1, "acl", "2")(tmp_path / "set")
    assert main(["data", "pack", "exams", str(tmp_path / "set"), str(tmp_path / "pack"), "--workers", "1"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert main(["data", "pack", "exams", str(hospital), str(tmp_path / "pack"), "size=8", "--workers", "1"]) == 0
    with (tmp_path / "pack" / "coronal.bin").open("ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match="coronal.bin: 769 bytes; exams.json says 768"):
        Exams(tmp_path / "pack", "all")
    summary = tmp_path / "pack" / "exams.json"
    content = json.loads(summary.read_text())
    content["exams"][0]["slots"]["sagittal"]["start"] = 3
    summary.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="sagittal.bin: its slices do not follow each other"):
        Exams(tmp_path / "pack", "all")
    summary.write_text("{}")
    with pytest.raises(ValueError, match="exams.json: kind: expected str"):
        Exams(tmp_path / "pack", "all")


def test_a_series_that_cannot_be_read_gives_way_to_the_next(hospital: Path, tmp_path: Path) -> None:
    shutil.copytree(hospital, tmp_path / "set")
    path = next((tmp_path / "set" / "p1/a").rglob("sagittal_t1*.dcm"))
    path.write_bytes(path.read_bytes()[:-20])
    exams = Exams(tmp_path / "set", "all", **SMALL)
    assert exams.records[0]["description"] == "sagittal_pd0" and len(exams) == 4
