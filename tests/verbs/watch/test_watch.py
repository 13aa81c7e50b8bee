"""``sslmed watch``: what is said of runs of every driver, whole, dead and half-written, and that nothing is touched."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import cli, config
from sslmed_dist.training import job
from sslmed_dist.verbs.watch import screen, situation
from sslmed_dist.verbs.watch.scalars import Pause, Scalars, pauses, seconds_per_step
from tests import tiny

ARTEFACTS = Path(__file__).parents[2] / "artefacts" / "v0.1.0"
NOW = 1_800_000_000.0
BATCH, EPOCHS, STEPS = 64, 10, 20


def rows(step: int, time: float, epoch: int | None = None, **values: float) -> str:
    """The lines of one logged step."""
    keys = {"time": time, "step": step, "epoch": (step - 1) // STEPS if epoch is None else epoch, "split": "train"}
    return "".join(json.dumps({**keys, "name": name, "value": value}) + "\n" for name, value in values.items())


def make(folder: Path, lines: str, saved: dict[str, float] | None = None, **sections: Any) -> Path:
    """A run folder with these metrics, and checkpoints by name with their times."""
    folder.mkdir(exist_ok=True)
    plan = {"epochs": EPOCHS, "batch_size": BATCH, "steps_per_epoch": STEPS}
    settings = config.replace(tiny.settings(folder), run={"name": "seen"}, **{"plan": plan, **sections})
    run = folder / "seen"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(config.dump(settings))
    os.utime(run / "config.yaml", (NOW - 1000, NOW - 1000))
    if lines:
        (run / "metrics.jsonl").write_text(lines)
    for name, time in (saved or {}).items():
        (run / "checkpoints" / name).write_bytes(b"")
        os.utime(run / "checkpoints" / name, (time, time))
    return run


def seen(run: Path, now: float = NOW) -> tuple[situation.Situation, dict[str, str]]:
    """What is said of a run, and the same by what it is about."""
    found = situation.look(run, Scalars(run / "metrics.jsonl").read(), now)
    return found, dict(found.lines)


def steady(last: int, every: int = 10, seconds: float = 5.0, end: float = NOW) -> str:
    """A run that wrote a line every ``seconds`` until ``end``."""
    steps = range(every, last + 1, every)
    return "".join(
        rows(step, end - (last - step) / every * seconds, loss=4 - step / 100, wait_share=0.25) for step in steps
    )


def test_a_run_of_two_ray_workers(tmp_path: Path) -> None:
    """10 steps of 64 images in 5 s are 128 images/s; 120 of 200 steps are left, half a second each."""
    ray = {"driver": "ray", "ray": {"num_workers": 2}}
    run = make(tmp_path, steady(80), {"step_000000060.pt": NOW - 90, "step_000000040.pt": NOW - 10}, **ray)
    found, said = seen(run, NOW + 3)
    assert (found.state, found.done, found.total, found.over) == ("running", 80, 200, False)
    assert said["run"].endswith("driver ray, 2 workers")
    assert said["step"] == "80 of 200 (40 %), epoch 5 of 10" and said["loss"] == "3.2"
    assert said["speed"] == "128 images/s, 64.0 a worker" and said["waiting"] == "25 % of a step for data"
    assert said["left"].startswith("about 60 s, till ")
    assert said["saved"] == "step 60, 93 s ago, 20 steps since" and said["failures"] == "none seen"


@pytest.mark.parametrize(
    ("told", "last", "state", "words"),
    [
        (None, 200, "finished", "finished"),
        ({"state": "not finite", "line": "step 80: not finite: loss=nan"}, 80, "failed", "loss=nan"),
        ({"state": "stopped", "step": 80}, 80, "stopped", "stopped at step 80"),
        ({"state": "stopped", "step": 40}, 80, "silent", "silent for 20 min"),  # and then went on
        ({"state": "working"}, 80, "silent", "from the last checkpoint"),
    ],
)
def test_how_a_run_ended(tmp_path: Path, told: dict[str, Any] | None, last: int, state: str, words: str) -> None:
    run = make(tmp_path, steady(last), driver="ray")
    if told is not None:
        (run / "ray.json").write_text(json.dumps(told))
    found, said = seen(run, NOW + 1200)
    assert found.state == state and words in said["state"]
    assert screen.code_of(found) == (1 if state in ("failed", "silent") else 0)


def test_a_real_run_of_one_epoch_is_seen_as_finished(tmp_path: Path) -> None:
    """Nobody but the data says how many steps an epoch has; the run has written it down."""
    settings = tiny.settings(tmp_path, plan={"epochs": 1})
    run = job.train(settings).settings.folder
    found, said = seen(run, NOW)
    assert found.state == "finished" and found.total == found.done == 3 and said["state"] == "finished"


def test_training_that_the_validation_ended_early_is_finished(tmp_path: Path) -> None:
    losses = (1.0, 0.5, 0.6, 0.7)
    keys = {"split": "val", "name": "val_loss"}
    lines = []
    for epoch, value in enumerate(losses):
        row = json.dumps({**keys, "epoch": epoch, "value": value})
        lines.append(f"{rows(STEPS * (epoch + 1), NOW, loss=1.0)}{row}\n")
    plan = {"epochs": EPOCHS, "batch_size": BATCH, "steps_per_epoch": STEPS, "validate": "val", "patience": 2}
    found, said = seen(make(tmp_path, "".join(lines), plan=plan), NOW + 9999)
    assert found.state == "finished" and said["state"] == "finished early: no lower validation loss for 2 epochs"


def test_steps_of_an_epoch_are_known_when_the_first_is_over(tmp_path: Path) -> None:
    plan = {"epochs": EPOCHS, "batch_size": BATCH, "steps_per_epoch": None}
    _, said = seen(make(tmp_path / "a", rows(10, NOW, epoch=0, loss=1.0), plan=plan))
    assert said["step"].startswith("10; how many") and said["left"] == "not known yet"
    lines = (
        rows(10, NOW, epoch=0, loss=1.0) + rows(15, NOW + 1, epoch=0, loss=1.0) + rows(20, NOW + 2, epoch=1, loss=1.0)
    )
    found, said = seen(make(tmp_path / "b", lines, plan=plan))
    assert found.total == 150 and said["step"] == "20 of 150 (13 %), epoch 2 of 10"


def test_a_pause_is_a_failure_that_shows_and_no_part_of_the_speed(tmp_path: Path) -> None:
    run = make(tmp_path, steady(80, end=NOW - 200) + rows(90, NOW, loss=1.0) + rows(100, NOW + 5, loss=1.0))
    for start in ("one", "two", "three"):
        (run / "ray" / start).mkdir(parents=True)
    points = Scalars(run / "metrics.jsonl").read().points
    assert pauses(points) == [Pause(90, 200.0)] and seconds_per_step(points) == pytest.approx(0.5)
    _, said = seen(run, NOW + 6)
    assert said["failures"].startswith("started 3 times; 1 pause ") and "3.3 min before step 90" in said["failures"]


def test_the_clock_of_the_machine_that_writes_may_be_ahead(tmp_path: Path) -> None:
    found, said = seen(make(tmp_path, steady(80)), NOW - 30)
    assert found.state == "running" and said["state"].endswith("clock of the machine that writes is 30 s ahead")


def test_a_lock_of_this_machine_is_seen_and_left_alone(tmp_path: Path) -> None:
    """A run whose last line is old, but whose process has the lock, is not dead. The lock is not taken to find out."""
    run = make(tmp_path, steady(80))
    assert seen(run, NOW + 1200)[0].state == "silent"
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found, said = seen(run, NOW + 1200)
    assert found.state == "running" and "a process of this machine" in said["state"]
    assert seen(run, NOW + 1200)[0].state == "silent"


def test_a_federation(tmp_path: Path) -> None:
    """The stored one of an earlier version: 2 sites, 2 rounds of 2 steps of 16 images; then one that failed."""
    run = tmp_path / "federation"
    shutil.copytree(ARTEFACTS / "federation", run)
    _, said = seen(run)
    assert said["round"] == "2 of 2, 2 sites in the last" and said["  site-0"] == "loss 4.042"
    seconds, plan = 0.122, config.load(run / "config.yaml").plan
    assert f"{2 * 2 * plan.batch_size / seconds:,.0f} images/s" in said["speed"]
    (run / "federation.json").write_text(json.dumps({"status": "failed", "reason": "1 of 2 sites", "kind": "X"}))
    (run / "federation.log").write_text("10:00:00 INFO fine\n10:00:01 WARNING site-1 is dead: its node is offline\n")
    found, said = seen(run)
    assert found.state == "failed" and said["state"] == "failed: 1 of 2 sites" and screen.code_of(found) == 1
    assert said["failures"].startswith("1 in federation.log, the last: site-1 is dead")


def test_a_site_that_is_behind_and_a_round_under_noise(tmp_path: Path) -> None:
    def line(name: str, value: float, **keys: Any) -> str:
        return json.dumps({"time": NOW, "step": 2, "split": "train", "name": name, "value": value, **keys}) + "\n"

    lines = line("loss", 2.0, site="a", round=1) + line("loss", 1.0, site="b", round=3)
    lines += line("epsilon", 1.25, round=3, step=6) + line("seconds", 2.0, round=3, step=6)
    run = make(tmp_path, lines, federated={"rounds": 4})
    _, said = seen(run, NOW + 1)
    assert said["  a"] == "loss 2, 2 rounds behind" and said["  b"] == "loss 1"
    assert said["loss"] == "withheld (federated.privacy); epsilon 1.25" and said["left"].startswith("about 2 s")


def test_the_file_is_read_further_and_anew_when_it_was_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    scalars = Scalars(path)
    assert not scalars.read().points
    whole = steady(40)
    path.write_text(whole[:-10])  # the last line is being written
    assert [point.step for point in scalars.read().points] == [10, 20, 30, 40] and scalars.read().newest[
        "wait_share"
    ] == 0.25
    offset = scalars.offset
    path.write_text(whole + "no JSON\n" + rows(50, NOW, loss=1.0))
    assert scalars.read().points[-1].step == 50 and scalars.offset > offset and scalars.read().unreadable == 1
    (tmp_path / "new").write_text(steady(20))
    os.replace(tmp_path / "new", path)  # as a run that resumes does
    assert [point.step for point in scalars.read().points] == [10, 20] and scalars.read().unreadable == 0


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files below a folder: when they were changed, and what they hold."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def half_written(folder: Path) -> Iterator[tuple[str, Path]]:
    """Folders of runs that were cut off at some point of their start, by name."""
    begun = folder / "begun"
    begun.mkdir()
    (begun / ".lock").touch()
    yield "begun", begun
    yield "configured", make(folder / "configured", "")
    yield "torn", make(folder / "torn", steady(40)[:-5])
    unfinished = make(folder / "unfinished", steady(40), {"step_000000020.pt": NOW})
    (unfinished / "checkpoints" / "step_000000040.pt.123.unfinished").touch()
    yield "unfinished", unfinished


def test_half_written_runs_and_nothing_is_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {
        "begun": "has not written its configuration",
        "configured": "no checkpoint yet",
        "torn": "40 of 200",
        "unfinished": "step 20",
    }
    for name, run in half_written(tmp_path):
        before = everything(tmp_path)
        assert cli.main(["watch", str(run), "--once"]) in (0, 1)
        assert expected[name] in capsys.readouterr().out, name
        assert everything(tmp_path) == before


@pytest.mark.parametrize("every", ["1e300", "inf", "nan", "0", "-5", "86401"])
def test_no_sensible_time_between_looks_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], every: str
) -> None:
    run = make(tmp_path, steady(80))
    assert cli.main(["watch", str(run), f"--every={every}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sslmed watch: --every: expected 0.1 to 86,400 seconds (a day), got ")


def test_a_finished_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    found, said = seen(make(tmp_path, steady(200)))
    assert found.state == "finished" and said["saved"].startswith("no checkpoint is left: nothing can be measured")


@pytest.mark.parametrize(("name", "line"), [("gone", "no such run folder"), ("empty", "it has no config.yaml")])
def test_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, line: str) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(["watch", str(tmp_path / name), "--once"]) == 2
    assert line in capsys.readouterr().err


def test_without_a_terminal_a_line_comes_when_something_changes_and_it_ends_with_the_run(tmp_path: Path) -> None:
    """In a process of its own, which loads no torch: a line at once, one when a step is written, one at the end."""
    import time

    now = time.time()
    run = make(tmp_path, steady(80, end=now))
    code = "import sys; from sslmed_dist.cli import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"  # noqa: E501
    command = [sys.executable, "-c", code, "watch", str(run), "--every", "0.1"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, bufsize=1) as watching:
        assert watching.stdout is not None
        first = watching.stdout.readline()
        with (run / "metrics.jsonl").open("a") as file:
            file.write(rows(90, now + 5, loss=0.5))
        second = watching.stdout.readline()
        with (run / "metrics.jsonl").open("a") as file:
            file.write(rows(200, now + 60, loss=0.25))
        last = watching.stdout.read()
    assert "seen running; step 80 of 200" in first and "step 90 of 200 (45 %)" in second and "loss 0.5;" in second
    assert "seen finished; step 200 of 200" in last and watching.returncode == 0
