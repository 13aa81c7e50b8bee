"""The pixel size, a range that is given, and more than one support."""

import csv
import html
import json
from pathlib import Path

import numpy as np
import pytest

from tests.verbs.segment.test_tool import given, load, made, save, write_run

__all__ = ["given"]


@pytest.mark.parametrize(
    "recorded, given_mm, used, source",
    [(5.0, None, 5.0, "recorded at training"), (None, 2.0, 2.0, "given"), (None, None, 1.25, "a guess: ")],
)
def test_the_pixel_size_is_never_a_constant(
    given: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recorded: float | None,
    given_mm: float | None,
    used: float,
    source: str,
) -> None:
    """Of a run that does not say: as much as the support shows, 80 mm on 64 pixels, which is said."""
    run = write_run(tmp_path / "run", pixel_mm=recorded)
    made(given, tmp_path / "out", run=run, pixel_mm=given_mm, labels=[1])
    grid = json.loads((tmp_path / "out" / "run.json").read_text())["grid"]
    assert grid["pixel_mm"] == used and grid["pixel_from"].startswith(source)
    assert ("the support shows 80 mm" in capsys.readouterr().err) is (source == "a guess: ")


def test_a_range_that_is_given_is_kept(given: dict[str, Path], tmp_path: Path) -> None:
    made(given, tmp_path / "out", labels=[1], span=(3, 5))
    labels = load(tmp_path / "out" / "image_02_labels.nii.gz")[0]
    assert set(np.nonzero(labels.any((0, 1)))[0]) <= {3, 4, 5} and labels.any()
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["queries"][0]["slices"]["1"] == {"first": 3, "last": 5, "seen": True, "given": True}
    assert facts["protocol"]["slice_range"] == "given by --range"
    for span, line in (
        ((5, 3), "^range: expected two slice"),
        ((3, 10), "image_02.nii.gz: has slices 0 to 9, so --ran"),
    ):
        with pytest.raises(ValueError, match=line):
            made(given, tmp_path / "bad", labels=[1], span=span)
        assert not (tmp_path / "bad").exists()


def test_a_copied_mask_that_counts_is_said_everywhere(given: dict[str, Path], tmp_path: Path) -> None:
    """The support's own scan under another name, which lies on it: an untrained network needs the copied mask."""
    query = tmp_path / "again" / "twin.nii.gz"
    query.parent.mkdir()
    voxels, image = load(given["support"])
    save(query, voxels + voxels.dtype.type(1), image.affine)
    for way in ("auto", "off"):
        made({**given, "query": query}, tmp_path / way, labels=[1], copying=way)
    facts = json.loads((tmp_path / "auto" / "run.json").read_text())
    told = facts["queries"][0]["copying"]["1"]
    assert facts["protocol"]["copying"] == "auto" and 0.5 < told["weight"] <= 1.0 and told["own_slices"] < 0.85
    (row,) = csv.DictReader((tmp_path / "auto" / "volumes.csv").open())
    assert float(row["copied"]) == pytest.approx(told["weight"], abs=1e-3)
    assert told["why"] in row["note"] and "reliability was calibrated without it" in row["note"]
    assert told["why"].startswith("aligned with the support") and told["why"] in (
        html.unescape((tmp_path / "auto" / "overlay.html").read_text())
    )
    truth = load(given["support_mask"])[0] == 1
    dice = {}
    for way in ("auto", "off"):
        found = load(tmp_path / way / "twin_labels.nii.gz")[0] == 1
        dice[way] = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert dice["auto"] > dice["off"] + 0.05, dice
    (row,) = csv.DictReader((tmp_path / "off" / "volumes.csv").open())
    assert row["copied"] == ""
    assert json.loads((tmp_path / "off" / "run.json").read_text())["queries"][0]["copying"] == {}


def test_more_supports_add_what_they_show(given: dict[str, Path], tmp_path: Path) -> None:
    """A support given twice changes nothing; another one does; one without the label adds nothing."""
    third = given["support"].with_name("image_03.nii.gz"), given["support"].with_name("label_03.nii.gz")
    voxels, image = load(third[1])
    without = save(tmp_path / "without.nii.gz", np.where(voxels == 1, 2, voxels).astype(np.uint8), image.affine)
    same = given["support"], given["support_mask"]
    masks = {}
    for name, supports in {"one": [], "twice": [same], "two": [third], "none": [(third[0], without)]}.items():
        made(given, tmp_path / name, labels=[1], supports=supports)
        masks[name] = load(tmp_path / name / "image_02_labels.nii.gz")[0]
        facts = json.loads((tmp_path / name / "run.json").read_text())["support"]
        assert len(facts.get("more", [])) == len(supports) and facts["image"] == "image_01.nii.gz"
    assert masks["one"].any() and np.array_equal(masks["one"], masks["twice"])
    assert np.array_equal(masks["one"], masks["none"]) and not np.array_equal(masks["one"], masks["two"])
    with pytest.raises(ValueError, match="label_03.nii.gz: shape"):
        made(given, tmp_path / "bad", supports=[(ball_scan(tmp_path), third[1])])


def ball_scan(folder: Path) -> Path:
    """A scan of another shape."""
    return save(folder / "other.nii.gz", np.random.default_rng(0).random((20, 20, 6), np.float32), np.eye(4))
