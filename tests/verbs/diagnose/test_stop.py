"""A diagnosis one part after another that is asked to stop, wherever it stands; and what it says of its data."""

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import cli, config
from sslmed_dist.downstream.diagnosis.inference import Examiner
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training import build, engine, stopping
from tests import knees
from tests.verbs.diagnose.conftest import PLANES, recipe

AGAIN = "stopped; run the same command again to go on"


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that was not run; the file ``stop`` is looked for at every step."""
    clock = itertools.count(10.0, 10.0)
    monkeypatch.setattr(stopping.time, "monotonic", lambda: next(clock))
    knees.write_exams(tmp_path / "knees", train=12, valid=8, planes=PLANES)
    return recipe(tmp_path, diagnose={"published": False, "draws": 1}, plan={"batch_size": 8})


def steps(folder: Path) -> int:
    """How many steps a part has done."""
    return max(int(row["step"]) for row in Metrics(folder / "metrics.jsonl").read() if row["name"] == "loss")


def test_the_file_in_the_run_folder_stops_the_part_that_trains_and_data_are_told_once(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, fit, load = begun.parent / "runs" / "knee", engine.fit, build.load_data

    def noted(settings: config.Config, *arguments: Any) -> Any:
        dataset = load(settings, *arguments)
        dataset.notices = (f"3 {settings.data['plane']} exams left out",)
        return dataset

    def told(plane: str, said: str) -> None:
        assert said.count(f"3 {plane} exams left out") == 1
        if (run / "parts" / plane).exists():
            assert (run / "parts" / plane / "notices.txt").read_text() == f"3 {plane} exams left out\n"

    def asked(*arguments: Any, **more: Any) -> Any:
        (run / "stop").touch()
        return fit(*arguments, **more)

    monkeypatch.setattr(build, "load_data", noted)
    monkeypatch.setattr(engine, "fit", asked)
    assert cli.main(["diagnose", str(begun)]) == 0
    said = capsys.readouterr().err
    assert AGAIN in said
    for plane in PLANES:
        told(plane, said)
    assert steps(run / "parts" / "axial") == 1 and not (run / "parts" / "sagittal").exists()
    assert not (run / "diagnosis.html").exists()
    monkeypatch.setattr(engine, "fit", fit)
    assert cli.main(["diagnose", str(begun)]) == 0  # the request of before is gone
    said = capsys.readouterr().err
    assert AGAIN not in said
    for plane in PLANES:
        told(plane, said)
    assert (run / "diagnosis.html").is_file() and not (run / "stop").exists()


def test_a_signal_while_it_examines_leaves_nothing_half_written(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, answer, seen = begun.parent / "runs" / "knee", Examiner.answer, itertools.count()

    def asked(self: Examiner, slices: torch.Tensor) -> Any:
        next(seen)
        signal.raise_signal(signal.SIGTERM)
        return answer(self, slices)

    monkeypatch.setattr(Examiner, "answer", asked)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["diagnose", str(begun)]) == 0
    assert AGAIN in capsys.readouterr().err and next(seen) == 1 and signal.getsignal(signal.SIGTERM) == before
    assert not (run / "parts" / "sagittal").exists()
    assert not (run / "diagnosis.html").exists() and not (run / "predictions.csv").exists()


def test_a_signal_after_the_last_step_of_a_part_stops_the_diagnosis(tmp_path: Path) -> None:
    with stopping.Stop.anew(tmp_path) as outer:
        with stopping.Stop(tmp_path / "part", outer):
            signal.raise_signal(signal.SIGTERM)
        assert outer()
