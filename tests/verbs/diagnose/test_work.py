"""The parts of a diagnosis as work of other processes: the bits of one after another, failures, stops."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import checkpoint, cli, config
from sslmed_dist.drivers import ray_tasks
from sslmed_dist.drivers.ray_tasks import Outcome, outcome_of, run_all
from sslmed_dist.endings import Stopped
from sslmed_dist.training import pretrained
from sslmed_dist.verbs.diagnose import work
from sslmed_dist.verbs.diagnose.parts import read_parts
from tests import knees
from tests.verbs.diagnose.conftest import PLANES, recipe


class Here:
    """``Tasks`` in this process: a piece of work is done, in the reverse order, when the end of one is asked for."""

    def __init__(self) -> None:
        self.works: list[Any] = []
        self.outcomes: dict[int, Outcome] = {}
        self.interrupted: list[int] = []
        self.most = 0

    def begin(self, work: Any) -> int:
        self.works.append(pickle.dumps(work))
        return len(self.works) - 1

    def ended(self, handles: Sequence[int]) -> list[int]:
        self.most = max(self.most, len(handles))
        last = list(handles)[-1]
        interrupted = last in self.interrupted
        done = Outcome(stopped=True) if interrupted else outcome_of(pickle.loads(self.works[last]), "diagnose")
        self.outcomes[last] = done
        return [last]

    def outcome(self, handle: int) -> Outcome:
        return self.outcomes[handle]

    def interrupt(self, handle: int) -> None:
        self.interrupted.append(handle)


def test_parts_in_other_processes_have_the_bits_of_one_after_another(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is read from its settings alone, in the other order, from another current folder."""
    overrides = [f"run.dir={tmp_path / 'elsewhere'}", "driver=ray"]
    monkeypatch.chdir(done.parents[1])
    settings = config.load("knee.yaml", [*overrides, "data.root=knees"])
    works = {part.name: work.work_of(part, settings) for part in read_parts(settings)}
    monkeypatch.chdir(tmp_path)
    examined = run_all(works, Here(), 2, lambda: False)
    monkeypatch.setattr(ray_tasks, "run", lambda *_: examined)
    assert cli.main(["diagnose", str(done.parents[1] / "knee.yaml"), *overrides]) == 0
    other = tmp_path / "elsewhere" / "knee"
    for name in ("predictions.csv", "diagnosis.json"):
        assert (done / name).read_bytes() == (other / name).read_bytes()
    for plane in PLANES:
        states = [checkpoint.load(pretrained.find(run / "parts" / plane))["method"] for run in (done, other)]
        assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_other_exams_at_the_other_process_are_refused(tmp_path: Path) -> None:
    knees.write_exams(tmp_path / "knees", train=8, valid=4, planes=PLANES)
    settings = config.load(recipe(tmp_path))
    asked = work.work_of(read_parts(settings)[0], settings)
    (tmp_path / "knees" / "valid" / "axial" / "0008.npy").unlink()
    with pytest.raises(ValueError, match="^axial: data.root: other exams here"):
        asked()


class Fails:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self) -> None:
        raise self.error


class Gives:
    def __init__(self, value: int) -> None:
        self.value = value

    def __call__(self) -> int:
        return self.value


@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError("no such plane"), ValueError), (RuntimeError("out of luck"), RuntimeError)]
)
def test_one_that_fails_leaves_the_others_alone_and_is_one_line(
    error: Exception, kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = Here()
    with pytest.raises(kind) as caught:
        run_all({"a": Gives(1), "b": Fails(error), "c": Gives(3), "d": Gives(4)}, tasks, 2, lambda: False)
    said = f"b: {error}" if kind is ValueError else f"b: RuntimeError: {error}"
    assert str(caught.value) == f"{said} (what the others did is kept; run again to go on)"
    assert sorted(outcome.value for outcome in tasks.outcomes.values() if not outcome.line) == [1, 3, 4]
    assert tasks.most == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_stop_reaches_those_that_run_and_no_other_begins() -> None:
    tasks = Here()
    with pytest.raises(Stopped, match="run the same command again"):
        run_all({name: Gives(k) for k, name in enumerate("abcd")}, tasks, 3, lambda: True)
    assert len(tasks.works) == 3 and tasks.interrupted == [0, 1]  # the last one had ended before it was asked


def test_without_ray_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    knees.write_exams(tmp_path / "knees", train=8, valid=4, planes=PLANES)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["diagnose", str(recipe(tmp_path)), "driver=ray"]) == 2
    error = capsys.readouterr().err
    assert "driver: ray is not installed: pip install 'sslmed-dist[ray]'; allowed here: local" in error
    assert not (tmp_path / "runs").exists()
