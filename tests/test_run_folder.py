"""A run folder belongs to one run and one writer; its metrics go on where the checkpoint stands."""

import getpass
import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslmed_dist import __version__, config
from sslmed_dist.atomic_files import appending, open_itself
from sslmed_dist.run_folder import Metrics, RunFolder, differences, phantom_data

LEAVES: dict[str, Any] = {
    "run": {"name": "a-run"},
    "data": {"name": "medmnist", "root": "here.npz"},
    "views": {"name": "contrastive", "size": 12},
    "method": {"name": "contrastive", "loss": {"name": "nt_xent", "temperature": 0.2}},
}


def settings(**sections: Any) -> config.Config:
    """A small configuration with ``sections`` merged over it."""
    return config.from_tree(config.merge(LEAVES, sections), "test")


def opened(path: Path, resume: str = "auto", **sections: Any) -> RunFolder:
    """A run folder, open for writing."""
    run = RunFolder(path, settings(**sections))
    run.open(resume)
    run.describe()
    return run


def refused(path: Path, resume: str = "auto", **sections: Any) -> str:
    """The line that refuses to open ``path``, without its name, which it begins with."""
    before = sorted((file.name, file.read_bytes()) for file in path.iterdir() if file.is_file())
    with pytest.raises(ValueError) as caught:
        opened(path, resume, **sections)
    assert before == sorted((file.name, file.read_bytes()) for file in path.iterdir() if file.is_file())
    return str(caught.value).removeprefix(f"{path}: ")


def test_open_writes_what_the_run_is(tmp_path: Path) -> None:
    run = opened(tmp_path / "a" / "b")
    assert config.load(run.path / "config.yaml") == settings()
    run.close()
    run.close()
    opened(tmp_path / "a" / "b", plan={"log_every": 3}).close()
    assert config.load(run.path / "config.yaml").plan.log_every == 3


def test_another_run_takes_the_place_of_one_that_only_began(tmp_path: Path) -> None:
    """A mistake that ended a run before its first step does not stand in the way of its correction."""
    opened(tmp_path).close()
    opened(tmp_path, plan={"epochs": 7}).close()
    assert config.load(tmp_path / "config.yaml").plan.epochs == 7
    begun = opened(tmp_path, plan={"epochs": 7})
    assert refused(tmp_path) == "another process is writing this run"
    begun.close()
    for name in ("metrics.jsonl", "checkpoints/step_000000001.pt", "sites/a/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
        assert refused(tmp_path).startswith("holds another run (different: plan.epochs)")
        (tmp_path / name).unlink()
        shutil.rmtree(tmp_path / Path(name).parts[0], ignore_errors=True)


def test_another_run_is_refused_and_told_apart(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.metrics.write({"loss": 1.0}, step=1)
    run.close()
    changed: dict[str, Any] = {"method": {"loss": {"temperature": 0.5}}, "run": {"seed": 1, "device": "cpu"}}
    line = refused(
        tmp_path, plan={"log_every": 3, "epochs": 7}, driver="ray", optim={"name": "sgd", "lr": 0.1}, **changed
    )
    different = "method.loss.temperature, optim.lr, plan.epochs, run.seed"
    assert line == f"holds another run (different: {different}); choose another run.name"


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("plan: [1")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'config.yaml'}: not valid YAML")):
        opened(tmp_path)


def test_resume_never_wants_a_folder_without_checkpoints(tmp_path: Path) -> None:
    run = opened(tmp_path, "never")
    run.close()
    opened(tmp_path, "never").close()
    run.checkpoints.save(3, config={}, fingerprint="")
    line = "holds a run already; choose another run.name, or --resume auto"
    assert refused(tmp_path, "never") == line
    opened(tmp_path, "auto").close()
    (tmp_path / "config.yaml").unlink()
    assert refused(tmp_path, "never") == line


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "run"
    with pytest.raises(ValueError) as caught:
        opened(path)
    assert str(caught.value) == f"{path}: cannot be written: Not a directory"


def test_metrics_are_one_scalar_a_line(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "new" / "metrics.jsonl")
    assert list(metrics.read()) == []
    metrics.write({"loss": 0.1, "lr": 1e-5}, step=1, epoch=0, split="train")
    metrics.write({"loss": 1 / 3}, step=2, epoch=0, site="north")
    rows = list(metrics.read())
    assert [row.pop("time") > 1e9 for row in rows] == [True] * 3
    assert rows == [
        {"step": 1, "epoch": 0, "split": "train", "name": "loss", "value": 0.1},
        {"step": 1, "epoch": 0, "split": "train", "name": "lr", "value": 1e-5},
        {"step": 2, "epoch": 0, "site": "north", "name": "loss", "value": 1 / 3},
    ]
    metrics.close()


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    """Lines past the step go, so does a line that the killed process did not finish; what follows starts on its own."""
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        metrics.write({"loss": step / 3, "lr": 0.1}, step=step)
    metrics.write({"rows": 12.0})
    with metrics.path.open("a") as file:
        file.write('{"time": 1.0, "step": 2, "na')
    assert len(list(metrics.read())) == 11
    metrics.cut(3)
    metrics.write({"loss": 4 / 3}, step=4)
    rows = [json.loads(line) for line in metrics.path.read_text().splitlines()]
    assert [(row.get("step"), row["name"], row["value"]) for row in rows] == [
        *((step, name, value) for step in (1, 2, 3) for name, value in (("loss", step / 3), ("lr", 0.1))),
        (None, "rows", 12.0),
        (4, "loss", 4 / 3),
    ]
    metrics.close()
    Metrics(tmp_path / "gone.jsonl").cut(3)
    assert not (tmp_path / "gone.jsonl").exists()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.file = Path("/dev/full").open("a")  # noqa: SIM115
    with pytest.raises(ValueError) as caught:
        metrics.write({"loss": 1.0}, step=1)
    assert str(caught.value) == f"{metrics.path}: could not be written: No space left on device"


def test_differences() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": {"f": 1}}
    assert differences(before, before) == []
    after = {"a": {"b": 1, "c": [1, 3], "g": 0}, "d": {"x": 1}, "e": 7}
    assert differences(before, after) == ["a.c", "a.g", "d", "e"]


def test_the_environment_tells_versions_and_hardware_but_nobody(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()
    text = (tmp_path / "run" / "environment.json").read_text()
    facts = json.loads(text)
    assert facts["sslmed_dist"] == __version__ and facts["cores"] >= 1 and facts["packages"]["torch"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", facts["date"])
    words = set(re.findall(r"[\w./@-]+", text))
    nobody = {socket.gethostname(), os.uname().nodename, getpass.getuser(), str(Path.home()), str(tmp_path)}
    assert not nobody & words and "/" not in text.replace(facts["processor"], "")


def test_runs_on_phantoms_say_so_whatever_their_folder_is_called(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    chosen = settings(data={"root": str(tmp_path / "set" / "a.npz")})
    assert not phantom_data(chosen)
    np.savez(tmp_path / "set" / "a.npz", phantom=np.array("{}"))
    assert phantom_data(chosen)
    np.savez(tmp_path / "set" / "a.npz", x=np.array(1))
    assert not phantom_data(chosen)
    (tmp_path / "set" / "phantom.json").write_text("{}")
    assert phantom_data(chosen)


OUTSIDE = "what lies outside"
LINKED = [".lock", "metrics.jsonl", "config.yaml", "environment.json", "checkpoints", "evaluate", "federation.log"]
LINKED += ["federation.json", "logs", "sites", "sites/site-0", "pictures", "tensorboard", "samples.jsonl", "stop"]


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("target", ["file", "folder", "gone"])
def test_no_link_in_a_run_folder_is_followed(tmp_path: Path, name: str, target: str) -> None:
    """Whatever it is called and points to: the run is refused before anything is written, also outside."""
    outside = tmp_path / "outside"
    if target != "gone":
        outside.mkdir()
        (outside / "step_000000001.pt").write_text(OUTSIDE)
    path = outside / "step_000000001.pt" if target == "file" else outside
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(path)
    with pytest.raises(ValueError) as caught:
        opened(tmp_path / "run")
    assert str(caught.value) == f"{link}: is a link; in a run folder nothing is written or deleted through one"
    assert [file.name for file in (tmp_path / "run").rglob("*") if not file.is_dir() or file == link] == [link.name]
    assert outside.exists() == (target != "gone")
    assert target == "gone" or (outside / "step_000000001.pt").read_text() == OUTSIDE


def test_the_run_folder_itself_may_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    run = opened(tmp_path / "runs" / "a")
    run.metrics.write({"loss": 1.0}, step=1)
    run.close()
    (tmp_path / "b").symlink_to(tmp_path / "disk" / "a")
    opened(tmp_path / "b").close()
    assert (tmp_path / "disk" / "a" / "metrics.jsonl").exists()


def test_a_lock_keeps_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(OUTSIDE)
    opened(tmp_path).close()
    assert (tmp_path / ".lock").read_text() == OUTSIDE


def test_files_that_grow_are_opened_themselves_or_not_at_all(tmp_path: Path) -> None:
    """A link that appears after the run folder was opened; and what is no regular file is not waited for."""
    metrics = Metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "outside").write_text(OUTSIDE)
    metrics.path.symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="is a link"):
        metrics.write({"loss": 1.0}, step=1)
    assert (tmp_path / "outside").read_text() == OUTSIDE
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: could not be opened"):
        appending(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: not a regular file"):
        open_itself(tmp_path / "pipe", os.O_RDWR)
    with pytest.raises(ValueError, match="could not be opened: Is a directory"):
        appending(tmp_path)


@pytest.mark.parametrize("name", [".lock", "federation.log", "logs/server.log", "sites/a/errors.log"])
def test_a_run_folder_with_a_hard_link_to_elsewhere_is_not_opened(tmp_path: Path, name: str) -> None:
    """What is replaced as a whole may be one (a snapshot by ``cp -al``): the other name keeps what it has."""
    (tmp_path / "outside").write_text(OUTSIDE)
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.hardlink_to(tmp_path / "outside")
    for open_it in (lambda: opened(tmp_path / "run"), lambda: appending(link), lambda: open_itself(link, os.O_RDWR)):
        with pytest.raises(ValueError, match=f"{name}: is a hard link: what is appended to it would stand elsewhere"):
            open_it()
    os.close(open_itself(link, os.O_RDONLY))
    assert (tmp_path / "outside").read_text() == OUTSIDE


def test_metrics_leave_a_snapshot_by_hard_links_as_it_is(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write({"loss": 1.0}, step=1)
    metrics.close()
    (tmp_path / "snapshot").hardlink_to(metrics.path)
    before = metrics.path.read_bytes()
    with pytest.raises(ValueError, match=r"metrics\.jsonl: is a hard link"):
        metrics.write({"loss": 2.0}, step=2)
    metrics.cut(1)  # as a start does that goes on: the file is written anew
    metrics.write({"loss": 2.0}, step=2)
    metrics.close()
    assert (tmp_path / "snapshot").read_bytes() == before and len(list(metrics.read())) == 2
