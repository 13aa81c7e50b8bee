"""``auto`` is decided when a run starts, written down, and kept wherever the run goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import config
from sslmed_dist.training import build, job
from sslmed_dist.verbs.reproduce.cell import changes
from tests import tiny

OPEN: dict[str, Any] = {"precision": "auto", "channels_last": "auto"}


def decided(settings: config.Config) -> tuple[str, bool | str]:
    return settings.plan.precision, settings.plan.channels_last


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "choose_device", lambda settings: torch.device("cuda", 0))


def test_the_device_decides_and_what_is_stated_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = tiny.settings(tmp_path, plan={**OPEN, "precision": "float64"})
    assert decided(build.resolve_auto(tiny.settings(tmp_path, plan=OPEN))) == ("float32", False)
    assert decided(build.resolve_auto(half)) == ("float64", False)
    on_a_gpu(monkeypatch)
    assert decided(build.resolve_auto(tiny.settings(tmp_path, plan=OPEN))) == ("bf16", True)
    assert decided(build.resolve_auto(half)) == ("float64", True)


@pytest.mark.parametrize(("gpus", "expected"), [(0.0, ("float32", False)), (0.5, ("bf16", True))])
def test_workers_of_ray_decide_and_not_the_driver(tmp_path: Path, gpus: float, expected: tuple[str, bool]) -> None:
    settings = tiny.settings(tmp_path, driver="ray", ray={"num_workers": 2, "gpus_per_worker": gpus}, plan=OPEN)  # type: ignore[arg-type]
    assert decided(build.resolve_auto(settings)) == expected


def test_a_run_keeps_to_what_it_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny.settings(tmp_path, plan=OPEN)
    done = job.train(settings)
    run = done.settings.folder
    assert decided(config.load(run / "config.yaml")) == ("float32", False)
    assert config.fingerprint(done.settings) == config.fingerprint(job.assemble(tiny.settings(tmp_path)).settings)
    (run / "checkpoints" / "step_000000006.pt").unlink()
    on_a_gpu(monkeypatch)
    assert decided(build.resolve_auto(settings, run)) == ("float32", False)
    assert changes(config.load(run / "config.yaml"), settings) == []
    assert changes(config.load(run / "config.yaml"), config.replace(settings, plan={"precision": "bf16"})) != []


def test_a_run_from_before_is_gone_on_with(tmp_path: Path) -> None:
    """A recipe that came to say ``auto`` finds the run that was made when it said true."""
    before = job.train(tiny.settings(tmp_path, plan={"channels_last": True})).settings
    (before.folder / "checkpoints" / "step_000000006.pt").unlink()
    again = job.train(tiny.settings(tmp_path, plan={"channels_last": "auto"}))
    assert again.settings.plan.channels_last is True and again.state.step == 6
