"""The picture of a figure: what it draws of which cells, where it stands, and that it is not there without runs."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import cli, config, plain_yaml
from sslmed_dist.drivers import local
from sslmed_dist.report.panels import Panel, curve, svg
from sslmed_dist.verbs.reproduce import drawing, published, read_table, run, twin
from sslmed_dist.verbs.reproduce.cell import Cell
from sslmed_dist.verbs.reproduce.published import CellFigure, Outcome
from tests import tiny

Capture = pytest.CaptureFixture[str]
METRIC = {"evaluator": {"name": "knn", "k": 5}, "name": "accuracy"}
FIGURE: dict[str, Any] = {
    "title": "a curve",
    "base": "tiny.yaml",
    "metric": {"accuracy": METRIC, "again": METRIC},
    "rows": {"A@0.1": {}, "A@0.2": {}},
    "columns": {"c": {"plan.epochs": 1}},
    "published": {"A@0.1": {"c": {"accuracy": 70.0, "again": None}}, "A@0.2": {"c": None}},
    "tolerance": 1.0,
    "message": "the accuracy rises",
    "claims": [{"name": "rising", "metric": "accuracy", "rows": ["A@0.1", "A@0.2"]}],
}


def write(folder: Path, **changes: Any) -> Path:
    """``FIGURE`` with changes as figure-9.1.yaml, beside its base and its data."""
    recipe = tiny.tree(folder)
    del recipe["run"]["name"]
    (folder / "tiny.yaml").write_text(plain_yaml.write(recipe))
    file = folder / "figure-9.1.yaml"
    file.write_text(plain_yaml.write({**FIGURE, **changes}))
    return file


def outcome(file: Path, values: dict[tuple[str, str], list[float]]) -> Outcome:
    """What was measured, by row and metric, over seeds 0, 1, ..."""
    table = read_table.load(file)
    lines = [
        CellFigure(row, "c", metric, dict(enumerate(values.get((row, metric), []))), 3, "", of)
        for (row, _, metric), of in table.published.items()
    ]
    return Outcome(table, lines, 3, [], [])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "figure.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_curve_has_its_means_a_band_of_three_seeds_and_what_is_published(tmp_path: Path) -> None:
    file = write(tmp_path)
    found = outcome(file, {("A@0.1", "accuracy"): [1.0, 2.0, 3.0], ("A@0.2", "accuracy"): [5.0, 6.0]})
    files = drawing.draw(found, [], tmp_path)
    assert [it.name for it in files] == ["figure.svg", "figure.png", "figure.csv"]
    assert files[1].read_bytes().startswith(b"\x89PNG")
    picture = files[0].read_text()
    for text in ("Published: the accuracy rises", "cannot be told at 2 seeds", "A, published", "Marks: means over"):
        assert text in picture
    half = 4.3026527 / 3**0.5
    assert [(row["curve"], float(row["x"]), float(row["y"])) for row in rows(tmp_path)] == [
        ("A", 0.1, 2.0), ("A", 0.2, 5.5), ("A, published", 0.1, 70.0),
    ]  # fmt: skip
    first, second, _ = rows(tmp_path)
    assert (float(first["low"]), float(first["high"])) == pytest.approx((2 - half, 2 + half))
    assert second["low"] == "" and {row["panel"] for row in rows(tmp_path)} == {"c: accuracy"}  # the other has no value
    before = files[0].read_bytes()
    assert drawing.draw(found, [], tmp_path) == files and files[0].read_bytes() == before


def test_places_without_a_panel_stay_empty() -> None:
    """Four panels, three across: two of the six places have neither axes nor ticks."""
    picture = svg([Panel(str(n), "x", "y", [curve("a", [(0.0, 1.0), (1.0, 2.0)])]) for n in range(4)], "four")
    assert picture.count(b'id="matplotlib.axis_') == 2 * 4


def test_rows_of_other_names_are_marks_and_one_metric_goes_against_another(tmp_path: Path) -> None:
    rows_of: dict[str, Any] = {"A": {}, "B": {}}
    changes = {"rows": rows_of, "published": {"A": {"c": None}, "B": {"c": None}},
               "claims": [{"name": "rising", "metric": "accuracy", "rows": ["A", "B"]}]}  # fmt: skip
    values = {("A", "accuracy"): [1.0], ("B", "accuracy"): [2.0], ("B", "again"): [7.0]}
    drawing.draw(outcome(write(tmp_path, **changes), values), [], tmp_path)
    assert [(row["panel"], row["x"], row["y"]) for row in rows(tmp_path)] == [
        ("c: accuracy", "A", "1.0"), ("c: accuracy", "B", "2.0"), ("c: again", "B", "7.0"),
    ]  # fmt: skip
    file = write(tmp_path, draw={"name": "against", "metric": "accuracy"}, **changes)
    drawing.draw(outcome(file, values), [], tmp_path)
    assert [(row["curve"], row["x"], row["y"]) for row in rows(tmp_path)] == [("B", "2.0", "7.0")]
    assert "Marks: means" not in (tmp_path / "figure.svg").read_text(), "each mark is a seed"


def test_spectra_and_histograms_come_from_the_files_of_the_cells(tmp_path: Path) -> None:
    file = write(tmp_path)
    table = read_table.load(file)
    cells = []
    for seed in (0, 1):
        settings = table.settings("A@0.1", "c", [f"run.seed={seed}"])
        (settings.folder / "evaluate").mkdir(parents=True)
        (settings.folder / "evaluate" / "hessian.json").write_text(json.dumps({"values": [-1.0, 2.0 + seed]}))
        for name in ("similarity.json", "similarity-initial.json"):
            counts = {kind: [1, 3] for kind in ("true_positive", "false_negative", "true_negative")}
            (settings.folder / "evaluate" / name).write_text(json.dumps({"bins": [-1.0, 0.0, 1.0], "counts": counts}))
        cells.append(Cell("A@0.1", "c", seed, settings, table.metrics("A@0.1", "c"), tmp_path))
    values = {("A@0.1", "accuracy"): [1.0, 2.0]}
    drawing.draw(outcome(write(tmp_path, draw="spectrum"), values), cells, tmp_path)
    assert [(row["curve"], row["x"], row["y"]) for row in rows(tmp_path)] == [
        ("seed 0", "0", "-1.0"), ("seed 0", "1", "2.0"), ("seed 1", "0", "-1.0"), ("seed 1", "1", "3.0"),
    ]  # fmt: skip
    drawing.draw(outcome(write(tmp_path, draw="histograms"), values), cells, tmp_path)
    found = rows(tmp_path)
    assert [row["y"] for row in found] == ["0.25", "0.75"] * 6
    assert {row["panel"] for row in found} == {f"c: A@0.1, seed 0, {it}" for it in ("initial weights", "trained")}


@pytest.mark.parametrize(
    "changes, line",
    [
        (
            {
                "rows": {"A@1.2.3": {}},
                "published": {"A@1.2.3": {"c": None}},
                "claims": [{"name": "between", "metric": "accuracy", "low": 0, "high": 1, "rows": ["A@1.2.3"]}],
            },
            "figure-9.1.yaml: rows: A@1.2.3: expected a number behind the @",
        ),
        (
            {"draw": "pie"},
            "figure-9.1.yaml: draw.name: 'pie' is unknown; allowed: against, by_row, histograms, spectrum",
        ),
        (
            {"draw": {"name": "against", "metric": "x"}},
            "figure-9.1.yaml: draw.metric: 'x': column c has accuracy, again",
        ),
        ({"claims": []}, "figure-9.1.yaml: claims: missing; a figure has message, claims, draw"),
        ({"message": ""}, "figure-9.1.yaml: message: missing; a figure has message, claims, draw"),
    ],
)
def test_a_figure_that_is_none_is_one_line(tmp_path: Path, changes: Any, line: str, capsys: Capture) -> None:
    assert cli.main(["reproduce", str(write(tmp_path, **changes)), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert line in said and len(said.strip().splitlines()) == 1


def test_a_figure_is_drawn_from_its_runs_and_the_same_run_is_not_trained_twice(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both rows are one recipe: the second is a copy. Without a run there is no picture, nor an older one."""
    file, folder = write(tmp_path), tmp_path / "runs" / "figure-9.1"
    assert cli.main(["reproduce", str(file), "--rows", "A@0.1"]) == 0
    assert "Ours, c: accuracy rises over A@0.1, A@0.2: cannot be told: not run: A@0.2" in capsys.readouterr().out
    monkeypatch.setattr(local, "train", lambda *_: pytest.fail("trained twice"))
    assert cli.main(["reproduce", str(file)]) == 0
    said = capsys.readouterr()
    assert "A@0.2 / c / seed-0: the same run as " in said.err and "copied, not trained again" in said.err
    assert "- Ours, c: accuracy rises over A@0.1, A@0.2: cannot be told at 1 seed" in said.out
    assert (folder / "figure.svg").is_file()
    (verdict,) = json.loads((folder / "table.json").read_text())["verdicts"]
    assert verdict["answer"] == "cannot be told at 1 seed" and verdict["differences"] == [
        "A@0.2 - A@0.1: +0 (1 seed(s))"
    ]
    copy = folder / "A@0.2" / "c" / "seed-0"
    assert config.load(copy / "config.yaml").folder == copy
    assert "a copy of the same run, ../../../A@0.1/c/seed-0" in (copy / "notices.txt").read_text()
    first = folder / "A@0.1" / "c" / "seed-0"
    checkpoints = [sorted(it.name for it in (at / "checkpoints").iterdir()) for at in (first, copy)]
    assert checkpoints[0] == checkpoints[1]
    # Another seed is another run, and a run that is not at its end is no source.
    second = run.cells(run.request(str(file), seeds=2))[1]
    assert second.seed == 1 and twin.find(second) is None
    (first / "evaluate" / "last.json").unlink()
    (copy / "evaluate" / "last.json").unlink()
    (copy / "config.yaml").unlink()
    assert twin.find(run.cells(run.request(str(file)))[1]) is None
    empty = run.collect(run.request(str(file)), run.cells(run.request(str(file))), dict.fromkeys(
        map(str, run.cells(run.request(str(file)))), "not run"))  # fmt: skip
    assert drawing.draw(empty, [], folder) == [] and not (folder / "figure.svg").exists()
    assert "not drawn, for no run of it is finished" in published.text(empty)
