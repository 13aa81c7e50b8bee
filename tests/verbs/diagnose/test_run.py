"""``sslmed diagnose``: parts trained and put together, files, restart, new exams, and what is refused."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslmed_dist import cli, config
from sslmed_dist.verbs.diagnose import likeness, parts
from tests import knees
from tests.verbs.diagnose.conftest import PLANES, recipe


def rows(run: Path) -> list[dict[str, Any]]:
    content: dict[str, Any] = json.loads((run / "evaluate" / "diagnosis.json").read_text())
    found: list[dict[str, Any]] = content["rows"]
    return found


def test_every_arm_has_its_row_and_floors_stand_beside(done: Path) -> None:
    arms = {row["arm"] for row in rows(done) if not row.get("difference")}
    assert arms == {
        *PLANES, "ensemble", "ensemble, calibrated", "plain mean", "majority answer", "random answer", "metadata only",
    }  # fmt: skip
    by_metric = {(row["arm"], row["metric"]): row for row in rows(done) if row["evaluator"] == "diagnosis"}
    for label in knees.LABELS:
        assert by_metric["ensemble", f"accuracy/{label}"]["n"] == 8
        majority = by_metric["majority answer", f"auc/{label}"]["value"]
        assert majority in (0.5, None)
    differences = {row["arm"] for row in rows(done) if row.get("difference")}
    assert differences == {"ensemble - plain mean", "ensemble - metadata only"}
    assert any(row["evaluator"] == "diagnosis, published's way" for row in rows(done))


def test_predictions_are_those_of_the_parts_under_the_weights(done: Path) -> None:
    with (done / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    model = json.loads((done / "diagnosis.json").read_text())
    assert len(table) == 8 * 3 and model["labels"] == list(knees.LABELS)
    for row in table:
        k = knees.LABELS.index(row["label"])
        weights = {plane: model["parts"][plane]["weights"][k] for plane in PLANES if row[plane]}
        assert (row["exam"] == "14") == (row["axial"] == "")
        assert sum(model["parts"][plane]["weights"][k] for plane in PLANES) == pytest.approx(1)
        if sum(weights.values()) == 0:
            weights = dict.fromkeys(weights, 1.0)
        mean = sum(weight * float(row[plane]) for plane, weight in weights.items()) / sum(weights.values())
        assert float(row["ensemble"]) == pytest.approx(mean, abs=2e-6)
        assert row["truth"] in ("0", "1")


def test_the_page_says_what_it_is(done: Path) -> None:
    page = (done / "diagnosis.html").read_text()
    assert page.count("Research use only, not a medical device.") == 2
    assert "metadata only" in page and "Reliability, acl" in page and "How the parts are weighed" in page
    assert all(word in page for word in ("sensitivity", "specificity", "Brier score", "published"))


def test_a_restart_after_a_lost_checkpoint_gives_the_same_results(done: Path) -> None:
    before = {name: (done / name).read_text() for name in ("evaluate/diagnosis.json", "predictions.csv")}
    store = done / "parts" / "sagittal" / "checkpoints"
    newest = sorted(store.glob("step_*.pt"))[-1]
    newest.unlink()
    (done / "diagnosis.json").unlink()
    assert cli.main(["diagnose", str(done.parents[1] / "knee.yaml")]) == 0
    for name, content in before.items():
        assert (done / name).read_text() == content


def test_held_out_exams_are_held_out_of_every_part(done: Path) -> None:
    settings = config.load(done.parents[1] / "knee.yaml")
    read = parts.read_parts(settings)
    held = [set(part.train.ids[part.val].tolist()) for part in read]
    assert held[0] == held[1] and len(held[0]) == 3
    assert all(not held[0] & set(part.train.ids[part.rest].tolist()) for part in read)


def test_new_exams_get_the_probabilities_that_they_got_in_the_set(done: Path, tmp_path: Path) -> None:
    """Three exams of the valid folder are new ones; one of them has a single plane."""
    source, out = tmp_path / "new", tmp_path / "out"
    for plane in PLANES:
        (source / plane).mkdir(parents=True)
        for path in sorted((done.parents[1] / "knees" / "valid" / plane).glob("001[2-4].npy")):
            shutil.copy(path, source / plane)
    arguments = ["diagnose", "--predict", str(source), "--model", str(done), "--out", str(out)]
    assert cli.main(arguments) == 0
    with (done / "predictions.csv").open() as file:
        expected = {(int(row["exam"]), row["label"]): row for row in csv.DictReader(file)}
    with (out / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 3 * 5
    for row in table:
        known = expected[int(row["exam"]), row["label"]]
        assert float(row["uncalibrated"]) == pytest.approx(float(known["ensemble"]), abs=2e-6)
        assert float(row["probability"]) == pytest.approx(float(known["ensemble, calibrated"]), abs=2e-6)
        assert float(row["part_spread"]) == pytest.approx(float(known[f"{row['part']} spread"]), abs=2e-6)
    page = (out / "diagnosis.html").read_text()
    assert page.count("Research use only, not a medical device.") == 2 and "Slices that count" in page
    assert page.count("<figure>") == 3 * 5 and "do not send it out" in page
    warnings = json.loads((out / "run.json").read_text())["warnings"]
    assert "no series for axial: the others answer without it" in warnings["0014"]
    assert cli.main(arguments) == 2
    (out / "predictions.csv").write_text("exam,label\n")  # not ours any more
    assert cli.main([*arguments, "--force"]) == 2


def test_an_exam_unlike_the_training_is_warned_about(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for plane in PLANES:
        np.save(folder / f"{plane}.npy", np.full((40, 256, 256), 250, dtype=np.uint8))
    assert cli.main(["diagnose", "--predict", str(folder), "--model", str(done), "--out", str(tmp_path / "o")]) == 0
    warnings = json.loads((tmp_path / "o" / "run.json").read_text())["warnings"]["odd"]
    assert any("axial: slices: 40;" in line for line in warnings)
    assert any("intensity mean" in line for line in warnings)


def test_likeness_has_slack_and_says_what_it_does_not_know() -> None:
    ranges = {"slices": [10.0, 20.0], "pixel_mm": [0.5, 0.5]}
    assert likeness.unlike({"slices": 20.4, "pixel_mm": 0.52}, ranges) == []
    assert likeness.unlike({"slices": 21.0, "pixel_mm": 0.5}, ranges) == ["slices: 21; 10 to 20 in training"]
    assert likeness.unlike({"slices": 15.0}, ranges) == ["pixel_mm: not known here; 0.5 to 0.5 in training"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["diagnose"], "expected CONFIG, or --predict FOLDER --model RUN --out DIR"),
        (["diagnose", "--predict", "x"], "--predict FOLDER goes with --model RUN and --out DIR"),
        (["diagnose", "--predict", "x", "--model", "gone", "--out", "o"], "gone: holds no finished diagnosis"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_bad_recipes_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    knees.write_exams(tmp_path / "knees", train=8, valid=4, planes=PLANES)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"method": {"name": "contrastive"}}, "method.name: sslmed diagnose needs diagnose, got contrastive"),
        ({"diagnose": {"draws": 0}}, "diagnose.draws: expected an integer >= 1, got 0"),
        ({"diagnose": {"parts": {"axial": {"ray": {}}}}}, "diagnose.parts.axial: expected some of data, views"),
        ({"diagnose": {"parts": {"../x": {}}}}, "diagnose.parts: expected at most 100 letters"),
        ({"evaluate": {"test": "test"}}, "no split 'test'"),
    ]
    for sections, said in bad:
        assert cli.main(["diagnose", str(recipe(tmp_path, **sections))]) == 2
        error = capsys.readouterr().err
        assert said in error and error.strip().count("\n") == 0, error
        assert not (tmp_path / "runs").exists()
    shutil.copy(tmp_path / "knees" / "train" / "axial" / "0000.npy", tmp_path / "knees" / "valid" / "axial")
    assert cli.main(["diagnose", str(recipe(tmp_path))]) == 2
    assert "is in train and in valid" in capsys.readouterr().err
