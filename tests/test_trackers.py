"""``run.track``: every scalar is at each tracker once, under one id, also after a kill; no machine, user or file."""

import getpass
import importlib.util
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import cli, config, trackers
from sslmed_dist.federation import messages
from sslmed_dist.run_folder import Metrics
from sslmed_dist.trackers.tracker import Tracked
from sslmed_dist.training import job
from tests import tiny

Series = dict[str, list[tuple[int, float]]]


def in_mlflow(folder: Path) -> tuple[list[str], Series]:
    """(ids, scalars) of the runs in ``mlflow.db`` beside a run folder."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    series = {
        tag: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, tag)]
        for run in runs
        for tag in run.data.metrics
    }
    return [run.info.run_id for run in runs], series


def in_wandb(folder: Path) -> tuple[list[str], Series]:
    """(ids, scalars) of the offline runs in ``wandb/`` beside a run folder, as wandb's own reader sees them."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # returns when all is on the disk, as at the end of a process
    found = sorted((folder.parent / "wandb").glob("offline-run-*"))
    series: Series = {}
    for path in found:
        for content in records(next(path.glob("*.wandb"))):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            if record.WhichOneof("record_type") != "history":
                continue
            items = {(item.key or "/".join(item.nested_key)): item.value_json for item in record.history.item}
            step = int(items.pop("step"))
            for key, value in items.items():
                if not key.startswith("_"):
                    series.setdefault(key, []).append((step, float(value)))
    return [path.name.rpartition("-")[2] for path in found], series


def records(file: Path) -> list[bytes]:
    """The records of a ``.wandb`` file: LevelDB's log format, in blocks of 32 KiB, behind a header of 7 bytes."""
    content, place, found, part = file.read_bytes(), 7, [], b""
    while place + 7 <= len(content):
        room = 2**15 - place % 2**15
        if room < 7:
            place += room
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(part)
            part = b""
    return found


READERS: dict[str, Callable[[Path], tuple[list[str], Series]]] = {"mlflow": in_mlflow, "wandb": in_wandb}
WHOLE: Series = {"train/loss": [(step, float(9 - step)) for step in range(1, 6)], "val_loss": [(4, 0.5)]}


def metrics(folder: Path, *names: str, **leaf: Any) -> Metrics:
    """The metrics of a run that is followed, as a start of it opens them."""
    settings = tiny.settings(folder, run={"track": [{"name": name, **leaf} for name in names]})
    settings.folder.mkdir(parents=True, exist_ok=True)
    return Metrics(settings.folder / "metrics.jsonl", trackers.followers(settings, settings.folder))


@pytest.mark.parametrize("name", READERS)
def test_a_run_that_was_killed_goes_on_under_its_id_and_no_step_is_doubled(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    untracked = metrics(tmp_path)
    untracked.write({"loss": 8.0}, step=1, split="train")  # before it was asked for
    killed = metrics(tmp_path, name)
    for step in (2, 3, 4):
        killed.write({"loss": 9.0 - step}, step=step, split="train")
    # killed without a close; the newest checkpoint is of step 3
    READERS[name](tmp_path / "runs" / "tiny")
    second = int(time.time())
    while int(time.time()) == second:  # wandb calls a folder after the second; no process starts twice in one
        time.sleep(0.02)
    again = metrics(tmp_path, name)
    again.cut(3)
    for step in (4, 5):
        again.write({"loss": 9.0 - step}, step=step, split="train")
    again.write({"val_loss": 0.5}, step=4)
    again.close()
    run = tmp_path / "runs" / "tiny"
    ids, series = READERS[name](run)
    assert ids == [json.loads((run / "tracking.json").read_text())[name]]
    assert {tag: sorted(points) for tag, points in series.items()} == WHOLE


@pytest.mark.parametrize("name", READERS)
def test_nothing_of_the_machine_its_user_or_a_file_is_told(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    live = metrics(tmp_path, name)
    live.write({"loss": 1.0}, step=1, split="train")
    live.close()
    READERS[name](tmp_path / "runs" / "tiny")
    told = {"mlflow": "mlflow.db", "wandb": "wandb/*/*.wandb"}[name]
    content = b"".join(file.read_bytes() for file in (tmp_path / "runs").glob(told))
    assert b"nt_xent" in content, "the configuration is there"
    words = [f'"{socket.gethostname()}"', "tiny.npz", "pytest ", "site-packages", f'"{getpass.getuser()}"']
    assert not [word for word in words if word.encode() in content]
    if name == "wandb":
        assert str(tmp_path).encode() not in content


def test_parameters_leave_out_all_that_may_name_a_place(tmp_path: Path) -> None:
    data = {"subset": {"name": "listed", "file": "patients"}, "name": "x", "cache": "s3://bucket", "note": "C:\\zoe"}
    settings = config.replace(tiny.settings(tmp_path), data=data, ray={"address": "head:6379"})
    told = Tracked(tmp_path, settings).parameters()
    assert told["method.loss.name"] == "nt_xent" and told["run.seed"] == "0" and told["data.name"] == "x"
    shown = json.dumps(told)
    assert not [word for word in ("patients", "bucket", "zoe", "6379", str(tmp_path), "tiny.npz") if word in shown]


def test_a_run_is_the_same_with_and_without_and_sites_hear_nothing(tmp_path: Path) -> None:
    plain = tiny.settings(tmp_path, plan={"epochs": 1, "steps_per_epoch": 2})
    asked = config.replace(plain, run={"track": ["tensorboard", {"name": "mlflow", "uri": "http://tracker"}]})
    assert config.fingerprint(plain) == config.fingerprint(asked) and config.essential(plain) == config.essential(asked)
    assert asked.run.track == ({"name": "tensorboard"}, {"name": "mlflow", "uri": "http://tracker"})
    assert messages.decode(messages.encode(asked)).run.track is None
    named = config.replace(plain, run={"track": ["tensorboard"], "name": "followed"})
    pytest.importorskip("tensorboard")
    job.train(named)
    assert list((named.folder / "tensorboard").iterdir())


def test_a_tracker_that_fails_on_the_way_is_said_once_and_filled_at_the_next_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    live = metrics(tmp_path, "mlflow")
    live.write({"loss": 8.0}, step=1, split="train")
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("no route to host")))
        for step in (2, 3):
            live.write({"loss": 9.0 - step}, step=step, split="train")
    said = capsys.readouterr().err
    assert said.count("run.track: mlflow: no route to host; the run goes on without it") == 1
    live.close()
    again = metrics(tmp_path, "mlflow")
    again.write({"loss": 5.0}, step=4, split="train")
    again.close()
    assert in_mlflow(tmp_path / "runs" / "tiny")[1] == {"train/loss": [(s, float(9 - s)) for s in (1, 2, 3, 4)]}


@pytest.mark.parametrize(
    ("track", "line"),
    [
        ("[comet]", "run.track[0].name: 'comet' is unknown; allowed: mlflow, tensorboard, wandb"),
        ("[{name: mlflow, url: x}]", "run.track[0].url: unknown key; allowed: uri, experiment"),
        ("[mlflow, {name: mlflow}]", "run.track: mlflow stands there 2 times; give it once"),
        ("comet", "run.track[0].name: 'comet' is unknown; allowed: mlflow, tensorboard, wandb"),
        ("3", "run.track: expected "),
        (
            "[{name: mlflow, uri: 'http://me:word@host'}]",
            "mlflow.uri: holds a user or password; set MLFLOW_TRACKING_US",
        ),
    ],
)
def test_a_wrong_tracker_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, track: str, line: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("json" if name == "mlflow" else name))
    (tmp_path / "run.yaml").write_text(config.dump(tiny.settings(tmp_path)))
    assert cli.main(["train", str(tmp_path / "run.yaml"), f"run.track={track}"]) == 2
    said = capsys.readouterr().err
    assert line in said and len(said.splitlines()) == 1 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_library_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=rf"run.track: {name} needs {name}: pip install 'sslmed-dist\[{name}\]'"):
        metrics(tmp_path, name)
