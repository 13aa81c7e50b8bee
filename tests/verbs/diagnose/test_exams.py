"""From DICOM examinations to probabilities: a pack, two parts with missing series, new exams from their own files."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from sslmed_dist import cli
from sslmed_dist.data.exams.exam_files import by_study, files_below
from sslmed_dist.data.phantom import write_knee_exams
from sslmed_dist.data.scans.frames import read_header
from tests import knees


@pytest.mark.slow
def test_dicom_to_a_probability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_knee_exams(tmp_path / "exams", exams=16, scanners=4, size=32, slices=(4, 5), missing=0.2)
    pack = ["series.sagittal=pd.*fs", "series.sagittal_t1=t1", "mm=3", "size=48"]
    assert cli.main(["data", "pack", "exams", "exams", "pack", *pack]) == 0
    tree = knees.tree(
        tmp_path, plan={"epochs": 1, "batch_size": 2}, method={"weights": "balanced"}, evaluate={"test": "test"}
    )
    tree["data"] = {"name": "exams", "root": "pack", "plane": "sagittal", "clip": 4}
    tree["diagnose"] = {
        "parts": {p: {"data": {"plane": p}} for p in ("sagittal", "sagittal_t1")},
        "draws": 2,
        "slices": 4,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    assert cli.main(["diagnose", "recipe.yaml"]) == 0
    run = tmp_path / "runs" / "knee"
    with (run / "predictions.csv").open() as file:
        tested = list(csv.DictReader(file))
    assert len({row["name"] for row in tested}) == 5
    alone = [row for row in tested if not row["sagittal_t1"]]
    # Without a series the other one answers; empty labels are trained around and stay unknown.
    assert alone and all(float(row["ensemble"]) == float(row["sagittal"]) for row in alone)
    assert {row["truth"] for row in tested} == {"", "0", "1"}
    # Of several new exams, what is left out is counted: one has nothing but what the rules do not want.
    several = tmp_path / "several"
    first, second, other = [row["name"] for row in tested if row["label"] == "acl"][:3]
    for name in (first, second):
        shutil.copytree(tmp_path / "exams" / name, several / name)
    (several / "other").mkdir()
    for path in files_below(tmp_path / "exams" / other):
        if "localizer" in str(read_header(path, pixels=False)):
            shutil.copy(path, several / "other")
    out = ["--model", str(run), "--out", "many", "--names", "anonymous"]
    assert cli.main(["diagnose", "--predict", str(several), *out]) == 0
    said = json.loads((tmp_path / "many" / "run.json").read_text())
    assert list(said["warnings"]) == ["exam 1", "exam 2"]
    left_out = "1 examinations without any series of the recipe, left out"
    assert f"sagittal: {left_out}" in said["notices"]
    assert left_out in (tmp_path / "many" / "diagnosis.html").read_text()
    # The DICOM files of a test exam get the probability that the pack gave it, by the rules and the scale of the pack.
    for row in (alone[0], next(row for row in tested if row["sagittal_t1"])):
        out = tmp_path / f"answer-{row['exam']}"
        folder = tmp_path / "exams" / row["name"]
        assert cli.main(["diagnose", "--predict", str(folder), "--model", str(run), "--out", str(out)]) == 0
        assert folder.name in (out / "diagnosis.html").read_text()
        (uid,) = by_study(files_below(folder), folder)
        assert not any(uid in (out / name).read_text() for name in ("diagnosis.html", "predictions.csv", "run.json"))
        with (out / "predictions.csv").open() as file:
            said = {(answer["label"], answer["part"]): answer for answer in csv.DictReader(file)}
        for part in ("sagittal", "sagittal_t1"):
            assert (("acl", part) in said) == bool(row[part])
        expected = next(other for other in tested if (other["name"], other["label"]) == (row["name"], "acl"))
        assert float(said["acl", "sagittal"]["uncalibrated"]) == pytest.approx(float(expected["ensemble"]), abs=2e-6)
        lines = [line for lines in json.loads((out / "run.json").read_text())["warnings"].values() for line in lines]
        assert any(line == "no series for sagittal_t1: the others answer without it" for line in lines) != bool(
            row["sagittal_t1"]
        )
