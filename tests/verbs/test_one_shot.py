"""A one-shot run from training to its figures: floors, cases, pictures, and a table whose rows are measured apart."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from torchvision.io import read_image

from sslmed_dist import cli, config, plain_yaml
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.downstream import OneShot
from sslmed_dist.training import build
from sslmed_dist.verbs.quarter_marks import marks
from tests.benchmarks import oneshot_folds

ORGANS = ["right kidney", "left kidney"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten phantoms in the layout of the prepared sets."""
    return PHANTOMS["abdomen"](tmp_path_factory.mktemp("one-shot") / "data", exams=10, sites=1, size=48, slices=8)


def tree(root: Path, folder: Path, **protocol: Any) -> dict[str, Any]:
    """A recipe of two steps, fold 1: queries 3 and 4, support 5."""
    data = {"name": "episodes", "root": str(root), "fold": 1, "exclude": ORGANS, "min_size": 20, "body_threshold": 20.0}
    return {
        "run": {"dir": str(folder / "runs"), "device": "cpu"},
        "data": data | {"workers": 1},
        "views": {"name": "episode", "size": 48, "mean": [0.0], "std": [1.0]},
        "method": {
            "name": "cowpro",
            "encoder": {"name": "dilated_resnet", "depth": 9, "width": 4, "out": 8, "stride": 4},
            "head": {"name": "cowpro", "window": 3, "score": "dot"},
        },
        "optim": {"name": "sgd", "lr": 1e-3},
        "plan": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2},
        "evaluate": {"data": {"masks": "organs"}, "protocols": [{"name": "one_shot", "organs": ORGANS, **protocol}]},
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(plain_yaml.write(content))
    return path


def test_a_run_is_measured_beside_its_floors(root: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe = write(tmp_path / "run.yaml", tree(root, tmp_path, surface=True))
    assert cli.main(["train", str(recipe), "--check"]) == 0 and cli.main(["train", str(recipe)]) == 0
    folder = tmp_path / "runs" / "run"
    settings = config.load(folder / "config.yaml")
    assert settings.views["pixel_mm"] == 1.25  # what the phantoms' headers say at any size
    assert cli.main(["evaluate", str(folder)]) == 0, capsys.readouterr().err
    rows = json.loads((folder / "evaluate" / "last.json").read_text())["rows"]
    assert {row["arm"] for row in rows} == {"encoder", "random", "copy_mask", "encoder - random"}
    assert {row["evaluator"] for row in rows} == {"one_shot"}
    measures = {row["metric"] for row in rows}
    assert {"dice", "dice/left kidney", "dice_whole", "hd95/right kidney", "surface_dice"} <= measures
    assert all((row["n"], row["groups"]) == (2, 2) for row in rows)
    with (folder / "evaluate" / "last-cases.csv").open() as file:
        cases = list(csv.DictReader(file))
    assert len(cases) == 3 * 2 * 2  # arms, queries, organs
    assert {(case["support"], case["query"]) for case in cases} == {("5", "3"), ("5", "4")}
    mean = {row["metric"]: row["value"] for row in rows if row["arm"] == "encoder"}
    own = [float(case["dice"]) for case in cases if (case["arm"], case["organ"]) == ("encoder", "left kidney")]
    assert mean["dice/left kidney"] == pytest.approx(sum(own) / 2)
    assert {path.name for path in (folder / "pictures").glob("*.png")} == {"episodes.png", "segmentation.png"}
    assert "no checkpoint was kept at 25 %, 50 %, 75 % of the training; plan.keep_every=" in capsys.readouterr().err
    assert cli.main(["report", str(folder), "--pictures"]) == 0
    assert "Phantom data." in (folder / "report.html").read_text() and "one-shot" in (folder / "report.md").read_text()


def test_predictions_at_quarter_marks(root: Path, tmp_path: Path, capsys: Capture) -> None:
    plan = {"plan": {"epochs": 1, "steps_per_epoch": 4, "batch_size": 2, "checkpoint_every": 1, "keep_every": 1}}
    recipe = write(tmp_path / "run.yaml", {**tree(root, tmp_path), **plan})
    assert cli.main(["train", str(recipe)]) == 0
    assert cli.main(["evaluate", str(tmp_path / "runs" / "run")]) == 0, capsys.readouterr().err
    pictures = tmp_path / "runs" / "run" / "pictures"
    height, width = read_image(str(pictures / "quarter_marks.png")).shape[1:]
    assert 2 < width / height < 3.2, "two organs x five panels"
    assert "quarter_marks.png" in json.loads((pictures / "captions.json").read_text())


def test_quarter_marks_are_those_that_were_kept() -> None:
    def kept(*steps: int) -> dict[int, int]:
        return {quarter: step for quarter, (step, _) in marks({step: Path(str(step)) for step in steps}).items()}

    assert kept(50, 100, 150, 200) == {1: 50, 2: 100, 3: 150, 4: 200}
    assert kept(200) == {4: 200} and kept(100, 160, 200) == {2: 100, 3: 160, 4: 200}
    assert kept(30, 62, 200) == {1: 62, 4: 200}


def test_a_run_is_measured_with_its_own_head(root: Path, tmp_path: Path) -> None:
    for said, expected in (
        ({}, {"name": "cowpro", "window": 2, "score": "dot"}),
        ({"window": 1, "head": {"top": 5}}, {"name": "cowpro", "window": 1, "score": "dot", "top": 5}),
        ({"head": {"name": "panet"}}, {"name": "panet"}),
        ({"head": {"name": "alpnet"}}, {"name": "alpnet", "window": 2}),
    ):
        settings = config.from_tree(tree(root, tmp_path, **said), "test")
        found = build.build_evaluators(settings)["one_shot"]
        assert isinstance(found, OneShot) and found.head == expected
    contrastive = config.replace(settings, method={"head": {"name": "projection"}})
    with pytest.raises(ValueError, match="one_shot.head.tops: unknown key"):
        build.build_evaluators(config.from_tree(tree(root, tmp_path, head={"tops": 5}), "test"))
    found = build.build_evaluators(contrastive)["one_shot"]
    assert isinstance(found, OneShot) and found.head["name"] == "alpnet"


def test_a_table_measures_a_row_in_its_own_way(root: Path, tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "base.yaml", tree(root, tmp_path))
    leaf = {"name": "one_shot", "organs": ORGANS}
    table = {
        "title": "two ways to measure",
        "base": "base.yaml",
        "folds": {"data.fold": [1, 2]},
        "metric": {"RK": {"evaluator": leaf, "name": "dice/right kidney"}},
        "rows": {"Plain": {}, "Masked": {}},
        "measured": {"Masked": {"quadrants": True}},
        "columns": {"kidneys": {"plan.epochs": 1}},
    }
    path = write(tmp_path / "table-0.1.yaml", table)
    assert cli.main(["reproduce", str(path), "--folds", "1"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    values = {line.split(" | ")[0][2:]: line.split(" | ")[3] for line in out.splitlines() if " | RK | " in line}
    assert all(text.endswith("(1 seed; folds 1 of 2)") for text in values.values()) and len(values) == 2
    for row, masked in (("Plain", False), ("Masked", True)):
        folder = tmp_path / "runs" / "table-0.1" / row / "kidneys" / "fold-1" / "seed-0"
        (protocol,) = config.load(folder / "config.yaml").evaluate.protocols
        assert protocol == leaf | ({"quadrants": True} if masked else {})
        assert (folder / "evaluate" / "last-cases.csv").is_file()


@pytest.mark.slow
def test_the_table_of_the_folds_goes_on_where_it_ended(
    root: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["folds", str(tmp_path / "runs"), "--data", str(root), "--keep", str(tmp_path / "keep")]
    monkeypatch.setattr("sys.argv", arguments)
    for name, organs in (("kidneys", ORGANS), ("others", ["liver", "spleen"])):
        recipe = tree(root, tmp_path)
        recipe["data"]["exclude"] = organs
        recipe["evaluate"]["protocols"][0]["organs"] = organs
        assert cli.main(["train", str(write(tmp_path / f"{name}.yaml", recipe))]) == 0
        capsys.readouterr()
        if name == "kidneys":
            with pytest.raises(SystemExit, match="2"):
                oneshot_folds.main()
            assert "no fold has all of its trainings" in capsys.readouterr().err
    oneshot_folds.main()
    first = capsys.readouterr().out
    assert "scored: kidneys" not in first and "scored: others" in first
    assert "Folds 1 of 5; 2 query patients" in first
    rows = [line.split(" | ") for line in first.splitlines() if line.startswith("| ")]
    by_fold = {cells[0][2:]: cells[1:6] for cells in rows if len(cells) == 7 and ":" in cells[0]}
    assert len(by_fold) == 3 * 11 and all(cells.count("not run") == 4 for cells in by_fold.values())
    means = means_of(first, "Dice, %, true range")
    assert by_fold["Dice, %, true range: encoder, tidied"][1] == means["encoder, tidied"]
    assert len(means) == 11 + 5 and "encoder, tidied less as they come, paired" in means
    oneshot_folds.main()
    assert capsys.readouterr().out == first.replace(next(x for x in first.splitlines() if "scored" in x) + "\n", "")


def means_of(text: str, title: str) -> dict[str, str]:
    """The last column of the table with this title, without its interval, by row."""
    lines = text.split(f"| {title} | ")[1].split("\n\n")[0].splitlines()[2:]
    return {line.split(" | ")[0][2:]: line.split(" | ")[-1].split(" ")[0] for line in lines}
