"""TensorBoard while a run trains: what it shows is what metrics.jsonl holds, also after a kill."""

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import cli, config, curve_events
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import job
from tests import tiny
from tests.report.fabricated import fabricate


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
    killed = Metrics(file, [curve_events.LiveCurves(events)])
    for step in (2, 3, 4, 5):
        killed.write({"loss": 9.0 - step, "lr": 0.1}, step=step, split="train")
        assert shown(events) == of_metrics(file)  # at once, before the file is closed
    # killed without a close; the newest checkpoint is of step 3
    again = Metrics(file, [curve_events.LiveCurves(events)])
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
        Metrics(tmp_path / "metrics.jsonl", [curve_events.LiveCurves(tmp_path / "tensorboard")])


def foreign(folder: Path) -> dict[Path, bytes]:
    """Puts into a folder what others wrote: events of TensorBoard's own writer, notes with such a name, a link to a
    file of ours. Returns what is there by path."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    writer.add_scalar("theirs", 1.0, 3)
    writer.close()
    (folder / "events.out.tfevents.0.notes").write_bytes(b"sslmed-dist, my notes")
    curve_events.EventFile(folder.with_name("elsewhere")).close()
    ours = next(folder.with_name("elsewhere").iterdir())
    (folder / "events.out.tfevents.0.link").symlink_to(ours)
    return {path: path.read_bytes() for path in [*folder.iterdir(), ours]}


def test_events_that_others_wrote_stay(tmp_path: Path) -> None:
    before = foreign(tmp_path / "tensorboard")
    for start in range(3):
        live = Metrics(tmp_path / "metrics.jsonl", [curve_events.LiveCurves(tmp_path / "tensorboard")])
        live.write({"loss": 1.0}, step=start, split="train")
        live.close()
    assert {path: path.read_bytes() for path in before} == before
    ours = list(curve_events.ours_in(tmp_path / "tensorboard"))
    assert len(ours) == 1 and set((tmp_path / "tensorboard").iterdir()) <= {*before, *ours}
    assert [step for step, _ in shown(tmp_path / "tensorboard")["train/loss"]] == [0, 1, 2]
    for word in (socket.gethostname().encode(), str(tmp_path).encode()):
        assert word not in ours[0].read_bytes() and word not in ours[0].name.encode()


def test_report_writes_events_only_where_nothing_of_others_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslmed_dist.report.plots.render", lambda draw, size, theme: b"\x89PNG\r\n\x1a\n")
    runs = [fabricate(tmp_path / "runs" / column / "seed-0") for column in ("knee", "chest")]
    words = ["report", *map(str, runs), "--out", str(tmp_path / "page"), "--tensorboard", str(tmp_path / "curves")]
    assert cli.main(words) == 0
    folders = [tmp_path / "curves" / column / "seed-0" for column in ("knee", "chest")]
    assert capsys.readouterr().out.splitlines()[2:] == [str(folder) for folder in folders], "runs of one name apart"
    assert [len(list(folder.iterdir())) for folder in folders] == [1, 1]

    def refused(words: list[str], line: str) -> None:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert cli.main(words) == 2 and line in capsys.readouterr().err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    refused(words, "exists already; give another name, or --force")
    assert cli.main([*words, "--force"]) == 0
    assert shown(folders[0])["train/site-0/loss"][0] == (0, pytest.approx(3.0)) and len(list(folders[0].iterdir())) == 1
    theirs = foreign(folders[1])
    refused([*words, "--force"], f"{folders[1]}/events.out.tfevents.")
    assert {path: path.read_bytes() for path in theirs} == theirs
    refused(["report", str(runs[0]), "--tensorboard", str(tmp_path / "runs" / "knee")], "seed-0/config.yaml: exists")
    refused(["report", str(runs[0]), "--tensorboard", str(runs[0] / "config.yaml")], "config.yaml: is a file")
    refused(["report", str(runs[0]), str(runs[0]), "--tensorboard", str(tmp_path / "new")], "is named twice")
