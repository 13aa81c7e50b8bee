"""``sslmed evaluate`` from the command line: what it prints, what it reads once, and what it leaves as it is."""

import json
from pathlib import Path

import pytest

from sslmed_dist import cli, config
from sslmed_dist.report.runs import read_run
from sslmed_dist.training import job
from sslmed_dist.verbs.evaluate import evaluate_run
from sslmed_dist.verbs.measurement import measurement
from sslmed_dist.verbs.similarities import similarities
from tests import tiny
from tests.verbs.test_evaluate import noise, pretraining, rows_of


def test_the_figures_are_printed_with_interval_floors_and_what_they_were_measured_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretraining(tmp_path)
    capsys.readouterr()
    assert cli.main(["evaluate", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {(row["arm"], row["metric"]): row for row in rows_of(run / "evaluate" / "last.json")}

    def printed(arm: str, metric: str, scale: float, form: str) -> str:
        value, low, high = (f"{scale * rows[arm, metric][key]:{form}}" for key in ("value", "low", "high"))
        return f"{value} [{low}, {high}]".replace("-", "\N{MINUS SIGN}")

    assert lines[0] == "measured on medmnist (tiny.npz): 43 train, 5 val, 24 test"
    assert lines[1:3] == ["24 test samples", "descriptive: few patients (24 test samples)"]
    head, accuracy = (next(line for line in lines if line.startswith(start)) for start in ("  ", "kNN accuracy, %"))
    assert " ".join(head.split()) == "raw pixels random encoder this encoder"
    values = [printed(arm, "accuracy", 100, ".1f") for arm in ("raw_pixels", "random", "encoder")]
    assert [accuracy.index(value) for value in values] == sorted(accuracy.index(value) for value in values)
    difference = [line for line in lines if line.startswith("kNN accuracy, %")][1]
    assert printed("encoder - random", "accuracy", 100, "+.1f") in difference
    assert "percentile bootstrap" in lines[-2] and lines[-1] == str(run / "evaluate" / "last.json")
    assert not any("PHANTOM" in line or "/" in line for line in lines[:-1])


def test_phantoms_are_called_so_where_the_figures_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretraining(tmp_path)
    (tmp_path / "phantoms").mkdir()
    tiny.write_images(tmp_path / "phantoms" / "set.npz", train=40, test=10)
    (tmp_path / "phantoms" / "phantom.json").write_text("{}")
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), f"data.root={tmp_path / 'phantoms' / 'set.npz'}"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("PHANTOM DATA") and json.loads(Path(out[-1]).read_text())["phantom_data"] is True


def test_files_are_listed_and_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked of one measurement: figures, histograms, and whether the samples are those of training."""
    from sslmed_dist.data import samples
    from sslmed_dist.data.images import folder

    overrides = [*noise(tmp_path / "set", "xy"), "data.channels=1"]
    tree = tiny.tree(tmp_path, plan={"epochs": 1, "batch_size": 4})
    leaf = {word.partition("=")[0].removeprefix("data."): word.partition("=")[2] for word in overrides}
    tree["data"] = leaf | {"size": 12, "channels": 1}
    run = job.train(config.from_tree(tree, "set")).settings.folder
    listed, hashed = [], []
    listing, hashing = folder.list_folder, samples.hash_of
    monkeypatch.setattr(folder, "list_folder", lambda *words: listed.append(words) or listing(*words))
    monkeypatch.setattr(samples, "hash_of", lambda path: hashed.append(path) or hashing(path))
    assert cli.main(["evaluate", str(run), "--histogram"]) == 0
    assert len(listed) == 2, "train and test"
    assert len(hashed) == len(set(hashed)) == 18


def test_a_histogram_of_another_question_overwrites_nothing(tmp_path: Path) -> None:
    run = pretraining(tmp_path)
    own = similarities(measurement(run))
    before = own.read_bytes()
    tiny.write_images(tmp_path / "other.npz", train=40, test=10)
    other = similarities(measurement(run, overrides=[f"data.root={tmp_path / 'other.npz'}"]))
    assert own.name == "similarity.json" and own.read_bytes() == before
    assert other.name.startswith("similarity-last@") and json.loads(other.read_text())["n"] == 10
    evaluate_run(run)
    assert read_run(run).similarity == json.loads(before) and not read_run(run).others
