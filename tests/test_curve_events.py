"""TensorBoard while a run trains: what it shows is what metrics.jsonl holds, also after a kill."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import cli, config
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import job
from tests import tiny


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By tag: (step, value) of all events, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def of_metrics(file: Path) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {}
    for row in Metrics(file).read():
        step = row["round"] if "round" in row else row["step"]
        series.setdefault("/".join(row[key] for key in ("split", "site", "name") if key in row), []).append(
            (step, pytest.approx(row["value"], rel=1e-6))
        )
    return series


def test_events_follow_the_metrics_and_go_on_after_a_kill(tmp_path: Path) -> None:
    file, events = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    Metrics(file).write({"loss": 9.0}, step=1, split="train")  # before it was asked for
    killed = Metrics(file, live=True)
    for step in (2, 3, 4, 5):
        killed.write({"loss": 9.0 - step, "lr": 0.1}, step=step, split="train")
        assert shown(events) == of_metrics(file)  # at once, before the file is closed
    # killed without a close; the newest checkpoint is of step 3
    again = Metrics(file, live=True)
    again.cut(3)
    again.write({"loss": 0.5, "lr": 0.2}, step=4, split="train")
    again.write({"accuracy": 0.7}, step=4, round=2, site="north", split="train")
    again.close()
    assert shown(events) == of_metrics(file)
    assert [step for step, _ in shown(events)["train/loss"]] == [1, 2, 3, 4]
    assert shown(events)["train/north/accuracy"][0][0] == 2
    assert len(list(events.iterdir())) == 1


def test_a_run_writes_them_only_when_asked_and_stays_the_same_run(tmp_path: Path) -> None:
    plan: dict[str, Any] = {"epochs": 2, "steps_per_epoch": 2}
    plain = tiny.settings(tmp_path, plan=plan)
    asked = config.replace(plain, run={"tensorboard": True})
    assert config.fingerprint(plain) == config.fingerprint(asked)
    job.train(plain)
    assert not (plain.folder / "tensorboard").exists()
    named = config.replace(asked, run={"name": "live"})
    job.train(named)
    assert [step for step, _ in shown(named.folder / "tensorboard")["train/loss"]] == [1, 2, 3, 4]
    assert shown(named.folder / "tensorboard") == of_metrics(named.folder / "metrics.jsonl")


@pytest.mark.parametrize("words", [[], ["--check"]])
def test_without_tensorboard_one_line_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    settings = tiny.settings(tmp_path, run={"tensorboard": True})
    (tmp_path / "run.yaml").write_text(config.dump(settings))
    assert cli.main(["train", str(tmp_path / "run.yaml"), *words]) == 2
    error = capsys.readouterr().err
    assert error == "sslmed train: run.tensorboard needs tensorboard: pip install 'sslmed-dist[report]'\n"
    assert not settings.folder.exists()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tensorboard").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="tensorboard: is a link"):
        Metrics(tmp_path / "metrics.jsonl", live=True)
