"""``sslmed reproduce`` end to end on a tiny table: it runs what is missing, prints, goes on, and reruns nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import cli, plain_yaml
from sslmed_dist.config import Config
from sslmed_dist.drivers import local
from sslmed_dist.training.precision import NonFinite
from sslmed_dist.verbs import measurement
from sslmed_dist.verbs.reproduce import cell, run
from tests import tiny

Capture = pytest.CaptureFixture[str]
TABLE: dict[str, Any] = {
    "title": "two losses on a tiny set",
    "base": "tiny.yaml",
    "metric": {"evaluator": {"name": "knn", "k": 5}, "name": "accuracy"},
    "rows": {"SimCLR": {}, "MIOv3": {"method.loss": {"name": "mio_v3", "temperature": 0.2}}},
    "columns": {"tiny": {"plan.epochs": 1}},
    "published": {"SimCLR": {"tiny": [81.23, 83.65]}, "MIOv3": {"tiny": 86.36}, "Other": {"tiny": None}},
    "tolerance": 1.0,
    "note": "Of no importance.",
    "quoted": {"MIOv3": "Somebody 2020"},
    "not_ours": {"Other": "not written"},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A table file, its base and its data in one folder."""
    recipe = tiny.tree(tmp_path)
    del recipe["run"]["name"]
    (tmp_path / "tiny.yaml").write_text(plain_yaml.write(recipe))
    return write(tmp_path)


def write(folder: Path, **changes: Any) -> Path:
    """``TABLE`` with changes as table-9.1.yaml."""
    file = folder / "table-9.1.yaml"
    file.write_text(plain_yaml.write({**TABLE, **changes}))
    return file


def reproduce(*arguments: str | Path) -> int:
    """``sslmed reproduce``."""
    return cli.main(["reproduce", *map(str, arguments)])


def folder_of(path: Path, row: str, seed: int = 0) -> Path:
    """A cell's run folder."""
    return path.parent / "runs" / "table-9.1" / row / "tiny" / f"seed-{seed}"


def test_a_table_is_run_and_printed_and_nothing_is_run_twice(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reproduce(path, "--rows", "SimCLR") == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("| SimCLR")]
    measured = json.loads((folder_of(path, "SimCLR") / "evaluate" / "last.json").read_text())["rows"]
    value = 100 * next(r["value"] for r in measured if (r["arm"], r["metric"]) == ("encoder", "accuracy"))
    inside = "yes" if 80.23 <= value <= 84.65 else "no"
    assert lines == [
        f"| SimCLR | tiny | accuracy | {value:.2f} (1 seed) | 81.23 / 83.65 | {value - 81.23:+.2f} (s) | {inside} |"
    ]
    assert "fewer than 3 seeds: the difference is not called one" in out and "Of no importance." in out
    assert "MIOv3" not in out and "Not the published setting" not in out

    trained: list[str] = []
    train = local.train

    def note(settings: Any, resume: str) -> Any:
        trained.append(str(settings.folder))
        return train(settings, resume)

    monkeypatch.setattr(local, "train", note)
    before = {file: file.stat().st_mtime_ns for file in folder_of(path, "SimCLR").rglob("*")}
    assert reproduce(path, "--seeds", "2") == 0
    out = capsys.readouterr().out
    assert trained == [str(folder_of(path, row, seed)) for row, seed in [("SimCLR", 1), ("MIOv3", 0), ("MIOv3", 1)]]
    assert before == {file: file.stat().st_mtime_ns for file in folder_of(path, "SimCLR").rglob("*")}
    assert re.search(r"\| SimCLR \| tiny \| accuracy \| [\d.]+ ± [\d.]+ \(2 seeds\) \|", out)
    assert "| Other | tiny | accuracy | not ours: not written | none |  |  |" in out
    assert "86.36 (q)" in out and "- MIOv3 / tiny: Somebody 2020" in out

    top = path.parent / "runs" / "table-9.1"
    assert (top / "table.md").read_text() == out
    written = json.loads((top / "table.json").read_text())
    cells = {cell["row"]: cell for cell in written["cells"]}
    assert cells["SimCLR"]["values"].keys() == {"0", "1"} and cells["SimCLR"]["published"] == [81.23, 83.65]
    assert cells["Other"]["mean"] is None and written["published_setting"] is True

    trained.clear()
    assert reproduce(path, "--seeds", "3", "--rows", "Other") == 0 and trained == []


def test_an_interrupted_cell_goes_on(path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = run.request(str(path), rows=["SimCLR"])
    settings = run.cells(asked)[0].settings
    settings.folder.mkdir(parents=True)
    train = local.train

    def stop_early(settings: Any, resume: str) -> Any:
        (settings.folder / "stop").touch()
        monkeypatch.setattr("sslmed_dist.training.stopping.Stop.__call__", lambda self: True)
        return train(settings, resume)

    monkeypatch.setattr(local, "train", stop_early)
    assert reproduce(path, "--rows", "SimCLR") == 0  # a stop is no failure
    said = capsys.readouterr()
    assert said.out == "" and said.err.endswith("stopped; run the same command again to go on\n")
    assert said.err.count("run the same command again") == 1
    assert not (settings.folder / "evaluate").exists()
    monkeypatch.undo()
    assert reproduce(path, "--rows", "SimCLR", "--dry-run") == 0
    assert "SimCLR / tiny / seed-0: begun, not finished: " in capsys.readouterr().out
    assert reproduce(path, "--rows", "SimCLR") == 0
    steps = [json.loads(line)["step"] for line in (settings.folder / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2, 3]
    assert "(1 seed)" in capsys.readouterr().out


def test_a_plan_is_printed_and_nothing_written(path: Path, capsys: Capture) -> None:
    before = sorted(path.parent.rglob("*"))
    assert reproduce(path, "--dry-run", "plan.epochs=2", "--seeds", "2") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["table-9.1: two losses on a tiny set", "overrides of every cell: plan.epochs=2"]
    assert out[2] == f"SimCLR / tiny / seed-0: not run: {folder_of(path, 'SimCLR')}"
    assert out[-1] == "Other / tiny: not ours: not written" and len(out) == 7
    (path.parent / "tiny.npz").rename(path.parent / "elsewhere.npz")
    assert reproduce(path, "--columns", "tiny") == 0
    out = capsys.readouterr().out.splitlines()
    assert "not run: no data at" in out[1] and "(--root medmnist=PATH)" in out[1]
    assert not (path.parent / "runs").exists() and len(before) == len(list(path.parent.rglob("*")))
    assert reproduce(path, "--root", f"medmnist={path.parent / 'elsewhere.npz'}", "--dry-run") == 0
    assert "no data" not in capsys.readouterr().out


def test_a_cell_of_folds_is_their_mean(path: Path, capsys: Capture) -> None:
    rows = {"SimCLR": {}, "MIOv3": {"method.loss": {"name": "mio_v3", "temperature": 0.2}}}
    folds = {"views.cutout_fraction": [1]}  # a key that takes an integer and changes nothing here
    assert reproduce(write(path.parent, folds=folds), "--dry-run") == 0
    folds = {"plan.keep_last": [1, 2]}
    means = {"SimCLR": 82.0, "MIOv3": None, "Other": None}
    write(path.parent, rows=rows, folds=folds, means=means)
    assert reproduce(path, "--rows", "SimCLR", "--folds", "2", "plan.log_every=2") == 0
    out = capsys.readouterr().out
    top = path.parent / "runs" / "table-9.1"
    assert (top / "table.md").read_text() == out[out.index("# table-9.1: two") :]
    assert re.search(r"\| SimCLR \| tiny \| accuracy \| [\d.]+ \(1 seed; folds 2 of 2\) .* \(s\) \(f\) \|", out)
    assert "(f) not all folds: the published figure is the mean over all of them." in out
    assert reproduce(path, "--rows", "SimCLR") == 0
    out = capsys.readouterr().out
    values = []
    for fold in (1, 2):
        file = top / "SimCLR" / "tiny" / f"fold-{fold}" / "seed-0" / "evaluate" / "last.json"
        values += [r["value"] for r in json.loads(file.read_text())["rows"] if r["metric"] == "accuracy"]
    mean = 50 * sum(values)
    assert f"| SimCLR | tiny | accuracy | {mean:.2f} (1 seed) |" in out and "(f)" not in out
    assert f"| SimCLR | all | mean | {mean:.2f} (1 seed) | 82 | {mean - 82:+.2f} (s) |" in out
    assert reproduce(path, "--folds", "3") == 2
    assert "table-9.1: --folds 3: allowed: 1, 2" in capsys.readouterr().err
    assert reproduce(path, "plan.keep_last=1") == 2
    assert "the table decides run.name, evaluate.protocols, run.start_from, plan.keep_last" in capsys.readouterr().err


def test_overrides_are_said_and_another_run_is_refused(path: Path, capsys: Capture) -> None:
    assert reproduce(path, "--rows", "SimCLR", "plan.batch_size=24", "plan.log_every=2") == 0
    out = capsys.readouterr().out
    assert "**Not the published setting: made with plan.batch_size=24.**" in out
    assert "Overrides that leave the figures as they are: plan.log_every=2." in out
    assert reproduce(path) == 2
    error = capsys.readouterr().err
    assert "holds another run than SimCLR / tiny / seed-0 (different: plan.batch_size)" in error
    assert "choose another run.dir" in error and not folder_of(path, "MIOv3").exists()


def test_a_cell_that_cannot_be_run_says_so(path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path.parent, start_from={"MIOv3": "table-9.0/SimCLR/tiny"})
    train = local.train

    def diverge(settings: Any, resume: str) -> Any:
        raise NonFinite("loss is not finite at step 3")

    monkeypatch.setattr(local, "train", diverge)
    assert reproduce(path, "--seeds", "3") == 0
    out = capsys.readouterr().out
    assert "| SimCLR | tiny | accuracy | failed: loss is not finite at step 3 | 81.23 / 83.65 |  |  |" in out
    start = [str(path.parent / "runs" / "table-9.0" / "SimCLR" / "tiny" / f"seed-{seed}") for seed in range(3)]
    assert all(f"not run: needs the finished run {folder}" in out for folder in start)
    monkeypatch.setattr(local, "train", train)
    assert reproduce(path, "--rows", "SimCLR") == 0
    assert "failed" not in capsys.readouterr().out


def test_a_classifier_starts_from_the_cell_of_another_table(path: Path, capsys: Capture) -> None:
    folder = path.parent
    alignment = {"evaluator": "similarity", "name": "alignment", "percent": False}
    spread = {"evaluator": "representation", "name": "uniformity", "percent": False}
    none = {"tiny": None}
    first = {
        "metric": {"alignment": alignment, "uniformity": spread},
        "published": {**dict.fromkeys(TABLE["rows"], none), "Other": none},
    }
    write(folder, **first).rename(folder / "table-9.0.yaml")
    tuned = {
        "plan.epochs": 1,
        "method": {"name": "classify", "encoder": {"name": "resnet", "depth": 9, "stem": "cifar", "width": 4}},
    }
    second = {
        "metric": {"evaluator": "classifier", "name": "accuracy"},
        "rows": {"SimCLR": tuned},
        "published": {"SimCLR": {"tiny": 50.0}, "Other": none},
        "quoted": {},
        "start_from": {"SimCLR": "table-9.0/SimCLR/tiny"},
    }
    path = write(folder, **second)
    assert reproduce(path) == 0 and "SimCLR / tiny / seed-0: not run: needs the finished run" in capsys.readouterr().out
    assert reproduce(folder / "table-9.0.yaml", "--rows", "SimCLR", "plan.batch_size=24") == 0
    out = capsys.readouterr().out
    lines = [line.split(" | ") for line in out.splitlines() if line.startswith("| SimCLR")]
    assert [line[2] for line in lines] == ["alignment", "uniformity"] and all("1 seed" in line[3] for line in lines)
    assert 0 < float(lines[0][3].split()[0]) < 4 and -8 < float(lines[1][3].split()[0]) < 0
    assert reproduce(path, "--rows", "SimCLR") == 0
    out = capsys.readouterr().out
    start = folder / "runs" / "table-9.0" / "SimCLR" / "tiny" / "seed-0"
    assert f"Not the published setting: made with {start} (plan.batch_size)." in out
    rows = json.loads((folder_of(path, "SimCLR") / "evaluate" / "last.json").read_text())["rows"]
    assert {row["evaluator"] for row in rows} == {"classifier"}
    value = next(row["value"] for row in rows if row["metric"] == "accuracy")
    assert f"| SimCLR | tiny | accuracy | {100 * value:.2f} (1 seed) | 50 | " in out


def test_figures_of_an_unfinished_run_do_not_count(path: Path, capsys: Capture) -> None:
    assert reproduce(path, "--rows", "SimCLR") == 0
    file = folder_of(path, "SimCLR") / "evaluate" / "last.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in before.items() if key != "complete"}))
    assert reproduce(path, "--rows", "SimCLR", "--dry-run") == 0
    assert "SimCLR / tiny / seed-0: begun, not finished: " in capsys.readouterr().out
    assert reproduce(path, "--rows", "SimCLR") == 0 and json.loads(file.read_text()) == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--rows", "SimSiam"], "table-9.1: --rows SimSiam: unknown; allowed: SimCLR, MIOv3, Other"),
        (["--columns", "STL"], "table-9.1: --columns STL: unknown; allowed: tiny"),
        (["--seeds", "0"], "--seeds: expected an integer >= 1, got 0"),
        (["--root", "cifar10=x"], "--root cifar10: no cell reads it; allowed: medmnist"),
        (["--root", "medmnist"], "--root medmnist: expected DATASET=PATH, such as cifar10=PATH"),
        (["run.name=x"], "override 'run.name=x': the table decides run.name, evaluate.protocols, run.start_from"),
        (["plan.epoch=1"], "cell SimCLR/tiny: plan.epoch: unknown key; allowed: epochs, "),
    ],
)
def test_mistakes_are_one_line(path: Path, capsys: Capture, arguments: list[str], message: str) -> None:
    assert reproduce(path, *arguments) == 2
    out, error = capsys.readouterr()
    assert out == "" and len(error.splitlines()) == 1 and message in error


def test_a_table_that_is_not_there(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reproduce("table-5.1") == 2
    assert "table 'table-5.1': not in " in (error := capsys.readouterr().err) and "table-5.2" in error
    assert reproduce("gone.yaml") == 2
    assert "gone.yaml: no such table file" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)  # no checkout: the tables that come with the program are found
    assert reproduce("table-5.1") == 2
    assert "table-5.2" in capsys.readouterr().err
    monkeypatch.setattr("sslmed_dist.installation.root", lambda: tmp_path)
    assert reproduce("table-5.2") == 2
    assert "there is no folder configs/thesis here; give a .yaml path" in capsys.readouterr().err


def test_a_cell_is_measured_as_it_says_now(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with keys of ``evaluate.data`` that were there when it was trained and are gone."""
    before = write(path.parent, columns={"tiny": {"plan.epochs": 1, "evaluate.data": {"deduplicate": False}}})
    trained = run.cells(run.request(str(before), rows=["SimCLR"]))[0]
    assert trained.settings.evaluate.data == {"deduplicate": False}
    cell.train(trained)
    now = run.cells(run.request(str(write(path.parent)), rows=["SimCLR"]))[0]
    seen: list[Config] = []
    splits = measurement.evaluation_splits

    def note(settings: Config) -> Any:
        seen.append(settings)
        return splits(settings)

    monkeypatch.setattr(measurement, "evaluation_splits", note)
    cell.evaluate(now)
    assert seen[0].evaluate == now.settings.evaluate and seen[0].evaluate.data == {}
    assert seen[0].data["root"] == now.settings.data["root"] and seen[0].views["mean"] is not None
    assert cell.state(now) == cell.FINISHED
    votes = {"evaluator": {"name": "knn", "k": 3}, "name": "accuracy"}  # another question has no answer yet
    assert cell.state(run.cells(run.request(str(write(path.parent, metric=votes)), rows=["SimCLR"]))[0]) == cell.BEGUN
