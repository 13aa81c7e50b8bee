"""A sweep: its grid, what it states before it begins, and that it goes on where it stopped."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslmed_dist import cli, plain_yaml
from sslmed_dist.verbs.sweep import grid, tool, trial
from sslmed_dist.verbs.sweep.table import Row, table_of
from sslmed_dist.verbs.sweep.trial import Worth
from tests import tiny

Capture = pytest.CaptureFixture[str]


def recipe(folder: Path, **sections: Any) -> Path:
    """The file of a tiny run."""
    plan = {"epochs": 1, "steps_per_epoch": 1} | sections.pop("plan", {})
    path = folder / "tiny.yaml"
    path.write_text(plain_yaml.write(tiny.tree(folder, plan=plan, **sections)))
    return path


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.1,0.2", ["0.1", "0.2"]),
        ("[a, b],[c]", ["[a, b]", "[c]"]),
        ("{name: x, k: 1},null", ["{name: x, k: 1}", "null"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("3", ["3"]),
        ("[1, 2]", ["[1, 2]"]),
    ],
)
def test_a_comma_in_brackets_or_quotes_parts_nothing(text: str, values: list[str]) -> None:
    assert grid.values_of(text) == values


def test_the_grid_is_a_product_and_a_draw_is_some_of_it() -> None:
    swept, fixed = grid.parted(["optim.lr=1,2,3", "plan.epochs=4", "run.seed=0,1"])
    assert fixed == ["plan.epochs=4"] and list(swept) == ["optim.lr", "run.seed"]
    whole = grid.trials_of(swept, None, 0)
    assert [one.choices for one in whole[:3]] == [
        ("optim.lr=1", "run.seed=0"),
        ("optim.lr=1", "run.seed=1"),
        ("optim.lr=2", "run.seed=0"),
    ]
    assert len({one.name for one in whole}) == 6
    four = grid.trials_of(swept, 4, 0)
    assert four[:2] == grid.trials_of(swept, 2, 0) and len(set(four)) == 4 and set(four) <= set(whole)
    assert any(grid.trials_of(swept, 4, seed) != four for seed in (1, 2, 3))
    other_order = grid.parted(["run.seed=0,1", "optim.lr=1,2,3"])[0]
    assert {one.name for one in grid.trials_of(other_order, None, 0)} == {one.name for one in whole}


def test_values_are_compared_and_not_how_they_are_written() -> None:
    same = [{"a": {"x": 2, "y": [0.1]}}, {"a": {"y": [1e-1], "x": 2.0}}]
    assert grid.canonical(same[0]) == grid.canonical(same[1])
    others: list[object] = [True, 1, "1", None, 2**53, 2**53 + 1, [1]]
    assert len({grid.canonical({"a": value}) for value in others}) == len(others)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["optim.lr=0.1"], "sweep: no key has several values; expected KEY=A,B,C"),
        (["optim.lr=0.1,0.1"], "optim.lr: expected values that differ"),
        (["optim.lr=0.1,"], "optim.lr: expected values that differ"),
        (["optim.lr=0.01,0.010"], "optim.lr: expected values that differ, got 0.01 and 0.010, which are the same"),
        (["optim.lr=0.1,1,1e-1"], "optim.lr: expected values that differ, got 0.1 and 1e-1, which"),
        (["run.seed=0,1", "optim.lr=2,2.0"], "optim.lr: expected values that differ, got 2 and 2.0"),
        (["optim={lr: 1},{lr: 1.0}"], "optim: expected values that differ, got {lr: 1} and {lr: 1.0}"),
        (["optim.name=sgd,'sgd'"], "optim.name: expected values that differ, got sgd and 'sgd'"),
        (["run.name=a,b"], "run.name: a sweep names its trials itself"),
        (["run.dir=a,b", "optim.lr=1,2"], "run.dir: a sweep names its trials itself"),
        (["run={name: a},{name: b}"], "run: expected values that differ, got {name: a} and {name: b}"),
        (["evaluate={test: val},{test: test}"], "evaluate={test: test}: evaluate.test: a sweep chooses, and what ch"),
        (["evaluate.test=val,test"], "evaluate.test: a sweep chooses, and what chooses may not be what ju"),
        (["optim.lr=1,2", "optim.lr=3,4"], "optim.lr: stands on the command line twice"),
        (["optim.lr=1,2", "--trials", "3"], "--trials: expected 1 to 2, the size of the grid, got 3"),
        (["plan.epochs=1,two"], "plan.epochs: expected int"),
        (["optim.lr=1,2", "evaluate.test=test"], "evaluate.test: a sweep chooses, and what chooses may not be what ju"),
        (["optim.lr=1,2", "evaluate.protocols=[]"], "evaluate.protocols: is empty"),
        (["optim.lr=1,2", "--workers", "0"], "sweep: expected --workers >= 1"),
        (["optim.lr=1,2", "federated={}"], "this recipe is for federate or diagnose"),
    ],
)
def test_a_wrong_sweep_is_one_line_and_runs_nothing(
    tmp_path: Path, capsys: Capture, words: list[str], line: str
) -> None:
    path = recipe(tmp_path)
    assert cli.main(["sweep", str(path), *words]) == 2
    said = capsys.readouterr().err
    assert line in said and len(said.splitlines()) == 1 and not list(tmp_path.glob("runs/*"))


def test_data_without_a_validation_split_is_refused_before_anything_trains(tmp_path: Path, capsys: Capture) -> None:
    for number in range(12):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    data = {"name": "image_folder", "root": str(tmp_path / "images"), "size": 8, "test_fraction": 0.2}
    path = recipe(tmp_path, data=data)
    assert cli.main(["sweep", str(path), "optim.lr=0.1,0.2"]) == 2
    said = capsys.readouterr().err
    assert "no split 'val'; allowed: train, test, all; data.val_fraction=0.2 would hold" in said
    assert len(said.splitlines()) == 1 and not list(tmp_path.glob("runs/*"))
    assert len(tool.request(path, ["optim.lr=0.1,0.2", "data.val_fraction=0.2", "plan.batch_size=4"]).trials) == 2


def test_every_value_is_built_before_the_first_trial_begins(tmp_path: Path, capsys: Capture) -> None:
    path = recipe(tmp_path)
    assert cli.main(["sweep", str(path), "method.loss.temperature=0.2,-1", "run.seed=0,1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("sslmed sweep: method.loss.temperature=-1 run.seed=0: ") and len(said.splitlines()) == 1
    assert cli.main(["sweep", str(path), "optim.name=sgd,nope"]) == 2
    assert "sweep: optim.name=nope: optim" in capsys.readouterr().err and not list(tmp_path.glob("runs/*"))


def test_a_scalar_of_the_training_needs_no_evaluation(tmp_path: Path) -> None:
    path = recipe(tmp_path, evaluate={"protocols": []})
    assert tool.request(path, ["optim.lr=0.1,0.2"], metric="loss").trials
    with pytest.raises(ValueError, match="protocols: is empty"):
        tool.request(path, ["optim.lr=0.1,0.2"], metric="knn/accuracy")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["optim.lr=1,2", "driver=ray"], "driver: ray: with --ray each trial trains in one process"),
        (["ray.cpus_per_worker=1,2"], "ray.cpus_per_worker: is that of all trials with --ray"),
        (["driver=local,ray"], "driver: is that of all trials with --ray"),
    ],
)
def test_trials_of_ray_are_single_processes(tmp_path: Path, words: list[str], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        tool.request(recipe(tmp_path), words, ray=True)


WORTHS = {
    "0.1": Worth(0.5, 0.4, 0.6, 12, 61.0, metric="knn/accuracy"),
    "a_b|c": Worth(None, trouble="sslmed train: a | b", done=False),
    "0.3": Worth(0.55, 0.45, 0.65, 12, metric="knn/accuracy"),
}


def rows(worths: dict[str, Worth]) -> list[Row]:
    """The rows of a sweep of optim.lr."""
    return [(f"trial-{value}", [value], worth) for value, worth in worths.items()]


def test_the_table_is_sorted_and_says_what_it_cannot_tell() -> None:
    table = table_of(Path("s"), ["optim.lr"], rows(WORTHS), None, False)
    written, shown = table.markdown(), table.plain()
    assert written[0] == "| optim.lr | knn/accuracy | n | time | run |"
    assert written[2].startswith("| 0.3 | 0.55 \\[0.45, 0.65\\] | 12 |")
    assert written[3].startswith("| 0.1 | 0.5 \\[0.4, 0.6\\] | 12 |")
    assert written[4].startswith("| a_b\\|c | sslmed train: a \\| b |")
    assert "\\" not in "\n".join(shown) and shown[1].split()[:4] == ["0.3", "0.55", "[0.45,", "0.65]"]
    assert "sslmed train: a | b" in shown[3]
    text = "\n".join(shown)
    assert "does not tell them apart" in text and "1 of 3 trials is not done" in text and "validation split" in text
    assert shown[-1] == "On the test split: sslmed evaluate s/trial-0.3 evaluate.test=test"
    assert table_of(Path("s"), ["optim.lr"], rows(WORTHS), None, True).rows[1][0] == "0.1"
    apart = {"1": Worth(0.5, 0.49, 0.51), "2": Worth(0.9, 0.89, 0.91), "3": Worth(0.1, 0.0, 0.2)}
    assert "tell them apart" not in "\n".join(table_of(Path("s"), ["k"], rows(apart), None, False).notes)
    scalar = table_of(Path("s"), ["k"], rows({"1": Worth(2.5, metric="loss")}), "loss", True)
    assert scalar.rows[0][1] == "loss" and scalar.notes[0].startswith("loss: the training's own last value")
    undefined = {"1": Worth(0.5, metric="knn/auc"), "2": Worth(None, trouble="undefined: one class", metric="knn/auc")}
    table = table_of(Path("s"), ["k"], rows(undefined), "knn/auc", False)
    assert table.rows[2][1] == "undefined: one class" and "not done" not in "\n".join(table.notes)
    line = "1 of 2 trials is done and has no figure: it is undefined on these samples, as the table says."
    assert line in table.notes


@pytest.mark.parametrize(
    ("metric", "keys", "line"),
    [
        ("loss", ["optim.lr", "plan.epochs"], None),
        ("loss", ["method.loss.temperature", "optim.lr"], "method.loss.temperature: decides what loss is"),
        ("val_loss", ["plan.batch_size", "views.size"], "plan.batch_size, views.size: decides what val_loss is"),
        ("knn/accuracy", ["method.loss.temperature"], None),
        ("wait_share", ["plan.batch_size"], None),
        (None, ["evaluate.protocols"], "evaluate.protocols: decides what is measured"),
        ("loss", ["evaluate.protocols"], None),
    ],
)
def test_figures_of_different_questions_are_not_compared_without_a_word(
    metric: str | None, keys: list[str], line: str | None
) -> None:
    shown = {"1": Worth(0.5, metric=metric or "knn/accuracy")}
    notes = table_of(Path("s"), keys, [(name, ["1"] * len(keys), w) for name, w in shown.items()], metric, False).notes
    found = [note for note in notes if "decides what" in note]
    assert (found == []) if line is None else (len(found) == 1 and found[0].startswith(line))


@pytest.mark.slow
def test_a_sweep_runs_states_its_budget_and_goes_on_with_what_is_missing(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path)
    words = ["sweep", str(path), "optim.lr=0.06,0.1"]
    assert cli.main([*words, "--dry-run"]) == 0
    planned = capsys.readouterr().out.splitlines()
    assert planned[0] == "2 trials of optim.lr (2), 0 done, 1 at a time" and planned[1].startswith("about ")
    assert planned[2:] == ["optim.lr=0.06", "optim.lr=0.1"] and not list(tmp_path.glob("runs/*/trial-*"))
    assert cli.main([*words, "--workers", "2"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["optim.lr", "knn/accuracy"]
    sweep = tmp_path / "runs" / "tiny-sweep"
    facts = json.loads((sweep / "sweep.json").read_text())
    assert len(facts["trials"]) == 2 and all(0 <= one["value"] <= 1 and one["seconds"] > 0 for one in facts["trials"])
    assert all(one["count"] == 12 for one in facts["trials"]), "the validation split"
    assert (sweep / "sweep.md").read_text().count("| trial-") == 2

    called: list[list[str]] = []
    monkeypatch.setattr(trial, "call", lambda command, *_: called.append(command) or 0)
    assert cli.main([*words[:2], "optim.lr=0.06,0.1,0.2", "--metric", "loss", "--lower"]) == 1
    out, err = capsys.readouterr()
    assert "3 trials of optim.lr (3), 2 done, 1 at a time" in err and "1 of 3 trials is not done" in out
    assert [command[0] for command in called] == ["train"] and "lr: 0.2" in Path(called[0][1]).read_text()
    assert any(line.split()[:3] == ["0.2", "not", "run"] for line in out.splitlines())
    with pytest.raises(ValueError, match=r"--metric: knn/mae: unknown; allowed: knn/accuracy"):
        trial.worth(sweep, grid.Trial(("optim.lr=0.1",)), "knn/mae")
    with pytest.raises(ValueError, match=r"holds another run than .*optim.lr=0.06.* \(different: plan.epochs\)"):
        tool.request(path, ["optim.lr=0.06,0.1", "plan.epochs=3"])


@pytest.mark.slow
def test_a_stop_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path = recipe(tmp_path, plan={"epochs": 100000, "checkpoint_every": 1000000})
    command = [sys.executable, "-m", "sslmed_dist.cli", "sweep", str(path), "optim.lr=0.06,0.1", "--metric", "loss"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    sweep = tmp_path / "runs" / "tiny-sweep"
    while not list(sweep.glob("trial-*/metrics.jsonl")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and "stopped; run the same command again" in said, said
    assert "2 of 2 trials are not done; the same command goes on with them." in said.splitlines() and "not run" in said
    (saved,) = sweep.glob("trial-*/checkpoints/step_*.pt")
    (log,) = sweep.glob("trial-*.log")
    assert f"stopped at step {int(saved.stem.split('_')[1])}" in log.read_text()
    assert not (sweep / "stop").exists()
