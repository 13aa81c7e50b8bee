"""What ``--check`` measures: the parts of a step, each by itself."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import config, printable
from sslmed_dist.training import check, job, rehearsal
from tests import tiny


def test_check_says_which_part_of_a_step_is_slowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a part moves on by itself: 3 s of reading, 2 in the views, 4 in the encoder, 1 for the rest."""
    clock = [0.0]
    monkeypatch.setattr(check.time, "perf_counter", lambda: clock[0])
    work = job.assemble(tiny.settings(tmp_path))

    def slow(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slowed(*arguments: Any, **keywords: Any) -> Any:
            clock[0] += seconds
            return function(*arguments, **keywords)

        return slowed

    monkeypatch.setattr(type(work.dataset), "fetch", slow(type(work.dataset).fetch, 3.0))
    monkeypatch.setattr(work.views, "forward", slow(work.views.forward, 2.0))
    monkeypatch.setattr(work.method.encoder, "forward", slow(work.method.encoder.forward, 4.0))  # both views at once
    monkeypatch.setattr(check.Stepper, "update", slow(check.Stepper.update, 1.0))
    parts = check.seconds_per_step(work)
    assert parts == {"data": 3.0, "views": 2.0, "encoder": 4.0, "loss, backward and optimiser": 1.0}
    assert check.shares(parts) == "encoder 40 %, data 30 %, views 20 %, loss, backward and optimiser 10 %"
    assert not work.method.encoder._forward_hooks and not work.views._forward_pre_hooks
    assert [printable.duration(seconds) for seconds in (7.4, 119, 600, 7200)] == ["7 s", "119 s", "10 min", "2.0 h"]
    assert [printable.duration(seconds) for seconds in (150, 599)] == ["2.5 min", "10.0 min"]


def need(**changes: Any) -> rehearsal.Need:
    """What a run of ten steps, two checkpoints and three looks at its neighbours needs."""
    seconds = {"start": 2.0, "prepare": 1.0, "first": 3.0, "step": 0.5, "save": 0.25, "watch": 0.125, "end": 1.0}
    counts = {"steps": 10, "saves": 2, "watches": 3, "memory": 2**30, "tried": 4}
    return rehearsal.Need(**{**seconds, **counts, **changes})


def test_the_time_of_a_run_is_that_of_all_its_parts() -> None:
    assert need().seconds == 2 + 1 + (3 + 9 * 0.5) + 2 * 0.25 + 3 * 0.125 + 1
    assert need(steps=1).seconds == 2 + 1 + 3 + 2 * 0.25 + 3 * 0.125 + 1


def test_check_says_what_a_run_needs_and_on_what_that_rests(tmp_path: Path) -> None:
    memory, spent = check.need_lines(tiny.settings(tmp_path), need())
    assert memory == "about 1,024 MiB at the peak of this process, libraries, data, training and its end"
    assert spent == (
        "about 12 s: start 3.0 s, 10 steps of 0.50 s, 2 checkpoints of 0.25 s, 3 x nearest neighbours 0.12 s, "
        "end 1.0 s; from 4 steps here, no evaluation"
    )


@pytest.mark.parametrize(
    ("plan", "steps", "saves", "watches"),
    [
        ({"epochs": 4, "checkpoint_every": 5}, 12, 3, 2),  # steps 5, 10 and the last
        ({"epochs": 3, "checkpoint_every": None}, 9, 3, 1),  # an epoch has three steps
        ({"epochs": 1, "steps_per_epoch": 2, "checkpoint_every": None}, 2, 1, 0),
    ],
)
def test_a_rehearsal_counts_the_run_and_takes_no_more_steps_than_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: dict[str, Any], steps: int, saves: int, watches: int
) -> None:
    monkeypatch.setattr(rehearsal, "end_of_process", lambda: (1 << 20, 0.5))
    monkeypatch.setattr(rehearsal, "SECONDS", 0.0)
    settings = tiny.settings(tmp_path, plan=plan, evaluate={"every": 2})
    measured = rehearsal.rehearse(job.assemble(settings), start=2.0, prepare=1.0)
    assert (measured.steps, measured.saves, measured.watches) == (steps, saves, watches)
    assert measured.tried == min(rehearsal.LEAST, steps) and measured.end == 0.5
    assert measured.prepare > 1.0 and min(measured.first, measured.step, measured.save) > 0
    assert (measured.watch > 0) == (watches > 0)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_memory_counts_what_the_optimiser_keeps(tmp_path: Path) -> None:
    """AdamW keeps two numbers beside each weight, SGD without momentum none: 2 x 4 bytes x the weights, and while it
    updates the largest of them some copies of that one. In a process of its own, whose peak has not been reached."""
    plan = {"steps_per_epoch": 2, "batch_size": 4}
    settings = tiny.settings(tmp_path, plan=plan, method={"head": {"hidden": 8192, "out": 1024}})
    program = (
        "import json, sys; from sslmed_dist import config; from sslmed_dist.training import job, rehearsal\n"
        "rehearsal.end_of_process = lambda: (0, 0.0)\n"
        "for tree in json.load(sys.stdin):\n"
        "    work = job.assemble(config.from_tree(tree, 'test'))\n"
        "    memory = rehearsal.rehearse(work, start=0.0, prepare=0.0).memory\n"
        "    print(memory, sum(weight.numel() for weight in work.method.parameters()))\n"
        "    del work"
    )
    leaves = ({"name": "sgd", "lr": 0.1, "momentum": 0.0}, {"name": "adamw", "lr": 0.1})
    trees = json.dumps([config.to_tree(config.replace(settings, optim=leaf)) for leaf in leaves])
    done = subprocess.run([sys.executable, "-c", program], input=trees, capture_output=True, text=True, check=True)
    sgd, weights, adamw, _ = (int(word) for word in done.stdout.split())
    assert weights > 8e6
    # Above 1: copies of the largest weight (almost all of them here) while it is updated, and gaps in freed memory.
    assert 0.9 < (adamw - sgd) / (2 * 4 * weights) < 3.0


def test_the_end_of_a_process_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that takes 256 MiB and 0.3 s after it has begun to end; a failure is named."""
    late = "atexit.register(lambda: [bytearray(b'1') * 2**28, time.sleep(0.3)])\n"  # runs last: registered first
    monkeypatch.setattr(rehearsal, "ENDING", "import atexit, time\n" + late + rehearsal.ENDING.replace(", torch", ""))
    added, seconds = rehearsal.end_of_process.__wrapped__()
    assert added == pytest.approx(2**28, rel=0.1) and seconds >= 0.3
    monkeypatch.setattr(rehearsal, "ENDING", "raise SystemExit('no torch')")
    with pytest.raises(RuntimeError, match="the end of a process could not be measured: no torch"):
        rehearsal.end_of_process.__wrapped__()


def test_a_peak_is_this_process_s_own_and_never_falls() -> None:
    before = rehearsal.peak_resident()
    block = torch.ones(2**26)  # 256 MiB
    during = rehearsal.peak_resident()
    del block
    assert during >= before and rehearsal.peak_resident() >= during >= 2**28
