"""What ``--check`` says of a run with Ray's workers, without a cluster."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from sslmed_dist import config
from sslmed_dist.drivers import ray_cluster, rehearsal
from sslmed_dist.training import check
from sslmed_dist.training.rehearsal import Need
from tests import tiny

WORKERS = {"num_workers": 2, "cpus_per_worker": 1}


@pytest.mark.parametrize(
    ("options", "cores", "address", "reason"),
    [
        ({}, 2, "", None),
        ({"cpus_per_worker": 2}, 2, "", "2 workers of 2 CPUs would share 2 cores"),
        ({"num_workers": 3}, 2, "", "3 workers of 1 CPUs would share 2 cores"),
        ({"gpus_per_worker": 0.5}, 2, "", "workers with GPUs are not tried"),
        ({"address": "auto"}, 2, "", "the run joins a cluster"),
        ({}, 2, "head:6379", "the run joins a cluster"),
    ],
)
def test_workers_that_cannot_be_tried_here_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    cores: int,
    address: str,
    reason: str | None,
) -> None:
    monkeypatch.setattr(rehearsal.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(rehearsal.torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert rehearsal.hindrance(tiny.settings(tmp_path, driver="ray", ray=WORKERS | options)) == reason  # type: ignore[arg-type]


def test_a_run_with_ray_is_the_sum_of_its_processes_and_of_its_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(tmp_path)
    tried = check.Tried(None, settings, start=2.0, prepare=1.0, first=3.0, parts={"data": 1.0})  # type: ignore[arg-type]
    seconds = {"start": 4.0, "prepare": 1.0, "first": 2.0, "step": 1.0, "save": 0.5, "watch": 0.0, "end": 0.0}
    need = Need(**seconds, steps=11, saves=2, watches=0, memory=1000 << 20, tried=4)  # type: ignore[arg-type]
    needs = [need, dataclasses.replace(need, memory=1100 << 20)]
    monkeypatch.setattr(rehearsal, "group", lambda *_: needs)
    monkeypatch.setattr(ray_cluster, "load", lambda: None)
    monkeypatch.setattr(rehearsal, "peak_resident", lambda: 1200 << 20)
    monkeypatch.setattr(rehearsal, "RAY_MEMORY", 700)
    monkeypatch.setattr(rehearsal, "RAY_TIME", 5.0)
    memory, spent = rehearsal.ray_lines(tried)
    assert memory.startswith(
        "about 4,000 MiB in all: 2 workers of 1,100 MiB, this process 1,200 MiB, Ray's own 700 MiB"
    )
    # this process 2 + 1 + 3 + 1, Ray 5 x 2, a worker 4 + 1 + 2 + 10 x 1 + 2 x 0.5
    assert spent.startswith("about 35 s: start 22.0 s (Ray's 10 s in it), 11 steps of 1.00 s, ")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
def test_two_workers_take_steps_together(tmp_path: Path) -> None:
    """No cluster: two processes in one group. Images of other channels than they have fail in one line."""
    settings = tiny.settings(tmp_path, plan={"steps_per_epoch": 2}, driver="ray", ray=WORKERS)
    needs = rehearsal.group(settings, 2)
    assert [(need.steps, need.tried) for need in needs] == [(4, 4)] * 2
    assert all(need.memory > 2**27 and need.start > 0 and need.end == 0 for need in needs)
    assert not (tmp_path / "runs").exists()
    wrong = config.replace(settings, method={"channels": 3})
    line = r"^--check: a worker failed: .*ValueError: method.channels: 3, but tiny has 1$"
    with pytest.raises(RuntimeError, match=line):
        rehearsal.group(wrong, 2)
