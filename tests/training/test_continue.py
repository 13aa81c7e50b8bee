"""``run.continue_from``: a new run begins with the whole state of another and follows its own schedule."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import checkpoint, config
from sslmed_dist.training import job
from sslmed_dist.training.check import check_training
from tests import tiny

MOCO = {"name": "moco_v2", "encoder": {"name": "resnet", "depth": 9, "stem": "cifar", "width": 4}, "queue": 32}


def moco(folder: Path, **sections: Any) -> config.Config:
    """A tiny MoCo run: encoder, slow copy, queue and momenta make its state."""
    return tiny.settings(folder, **config.merge({"method": MOCO}, sections))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished MoCo run."""
    return job.train(moco(tmp_path_factory.mktemp("first"))).settings.folder


def begun(folder: Path, source: Path, **sections: Any) -> job.Job:
    """A run that continues ``source``, as it stands before its first step."""
    settings = moco(folder, **config.merge({"run": {"name": "second", "continue_from": str(source)}}, sections))
    work = job.assemble(settings)
    work.inherit(source)
    return work


def test_everything_is_taken_over_but_the_schedule_is_its_own(tmp_path: Path, first: Path) -> None:
    saved = checkpoint.load(first / "checkpoints" / "step_000000006.pt")
    work = begun(tmp_path, first, optim={"lr": 0.5}, plan={"epochs": 4})
    state = work.method.state_dict()
    assert any("queue" in key for key in state)
    assert all(torch.equal(state[key], value) for key, value in saved["method"].items())
    optimiser = work.state.optimisation.optimizer.state_dict()
    theirs = saved["state"]["optimizer"]
    for key, entry in theirs["state"].items():
        assert torch.equal(optimiser["state"][key]["momentum_buffer"], entry["momentum_buffer"])
    rates = {group["lr"] for group in theirs["param_groups"]}, {group["lr"] for group in optimiser["param_groups"]}
    assert rates[0] != rates[1] and work.state.step == 0 and job.total(work) == 12


def test_other_samples_than_those_of_the_first_run_are_said(
    tmp_path: Path, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "was trained on other samples than these"
    for train in (48, 50):
        folder = tmp_path / str(train)
        folder.mkdir()
        tiny.write_images(folder / "tiny.npz", train=train)
        work = moco(folder, run={"name": "second", "continue_from": str(first)}, plan={"epochs": 1})
        run = job.train(work).settings.folder
        assert (f"{said} (48 of them)" in capsys.readouterr().err) is (train == 50)
    shutil.rmtree(run / "checkpoints")
    job.train(work)
    assert "second has metrics and no checkpoint: it begins anew" in capsys.readouterr().err


def test_it_is_another_run_that_resumes_from_itself(tmp_path: Path, first: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(first, source)
    settings = moco(tmp_path, run={"name": "second", "continue_from": str(source), "seed": 1})
    whole = job.train(settings)
    shutil.rmtree(source)
    (settings.folder / "checkpoints" / "step_000000006.pt").unlink()
    again = job.train(settings)
    for key, value in whole.method.state_dict().items():
        assert torch.equal(again.method.state_dict()[key], value), key
    alone = moco(tmp_path, run={"name": "second", "seed": 1})
    assert config.fingerprint(alone) != config.fingerprint(settings)
    assert config.fingerprint(settings) == config.fingerprint(config.replace(settings, run={"continue_from": "other"}))


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"optim": {"name": "adamw", "lr": 0.001}},
            "run.continue_from: optim is sgd there and adamw here; they must agree",
        ),
        ({"method": {"queue": 64}}, "2 of another shape (queue.ids (32,) in the file and (64,) here"),
        ({"optim": {"exclude": ["bias"]}}, "optim: groups of "),
    ],
)
def test_another_architecture_or_optimiser_is_refused(
    tmp_path: Path, first: Path, sections: dict[str, Any], line: str
) -> None:
    settings = moco(tmp_path, **config.merge({"run": {"name": "second", "continue_from": str(first)}}, sections))
    for attempt in (job.train, check_training):
        with pytest.raises(ValueError, match=re.escape(line)):
            attempt(settings)
    assert not (settings.folder / "checkpoints").exists()


def test_another_method_is_refused(tmp_path: Path, first: Path) -> None:
    settings = tiny.settings(tmp_path, run={"name": "second", "continue_from": str(first)})
    with pytest.raises(ValueError, match="method is moco_v2 there and contrastive here"):
        job.train(settings)


def test_two_beginnings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run.start_from must be null beside it"):
        moco(tmp_path, run={"start_from": "a", "continue_from": "b"})


def test_a_longer_plan_is_shown_the_way(tmp_path: Path) -> None:
    settings = moco(tmp_path)
    job.train(settings)
    with pytest.raises(ValueError, match=r"plan\.epochs.*to train on, give the new run run\.continue_from=RUN"):
        job.train(moco(tmp_path, plan={"epochs": 4}))
