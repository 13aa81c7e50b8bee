"""``sslmed analyse`` that is killed in the middle goes on to the very bytes of one that was not."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sslmed_dist import cli
from sslmed_dist.training import job
from sslmed_dist.verbs.analyse.subject import Point, Precision, Subject
from tests import tiny
from tests.verbs.test_analyse import threads

__all__ = ["threads"]  # a fixture

# Ends itself by SIGKILL at the second checkpoint's answer: while its product is asked for, or while its file is
# written (the temporary one is whole, the rename has not come), or just after it.
KILLED = """
import os, signal, sys
import torch
from sslmed_dist import cli
from sslmed_dist.analysis import curvature
torch.set_num_threads(int(sys.argv[2]))

def killing(function, at, after=False):
    calls = []
    def call(*arguments, **options):
        calls.append(at(*arguments))
        mine = calls[-1] and sum(calls) == 2
        if mine and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

kept = lambda source, target, *_: str(target).endswith(".json")
if sys.argv[1] == "computing":
    curvature.gradient = killing(curvature.gradient, lambda *_: True)
else:
    os.replace = killing(os.replace, kept, after=sys.argv[1] == "written")
cli.main(sys.argv[3:])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 steps with the checkpoints 1, 2 and 3."""
    settings = tiny.settings(tmp_path_factory.mktemp("killed"), plan={"keep_every": 1, "keep_last": 3, "epochs": 1})
    job.train(settings)
    return settings.folder


def files(run: Path) -> dict[str, bytes]:
    """All files of the run's analyses with their bytes."""
    folder = run / "analysis"
    return {str(it.relative_to(folder)): it.read_bytes() for it in sorted(folder.rglob("*")) if it.is_file()}


@pytest.mark.parametrize(
    "when, words, kept",
    [
        ("computing", ["landscape", "samples=12", "points=3"], 1),
        ("writing", ["hessian", "which=all", "samples=12", "ritz=3"], 1),
        ("written", ["hessian", "which=all", "samples=12", "ritz=3"], 2),
    ],
)
def test_an_analysis_that_was_killed_goes_on_to_the_same_bytes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, words: list[str], kept: int
) -> None:
    whole, cut = tmp_path / "whole" / run.name, tmp_path / "cut" / run.name
    for copy in (whole, cut):
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("analysis"))
    assert cli.main(["analyse", str(whole), *words]) == 0

    threads = str(torch.get_num_threads())  # of their number the last bits depend
    command = [sys.executable, "-c", KILLED, when, threads, "analyse", str(cut), *words]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    answers = [name for name in files(cut) if name.startswith(words[0]) and name.endswith(".json")]
    assert len(answers) == kept and not (cut / "analysis" / f"{words[0]}.csv").exists()

    # What was kept is not asked for again.
    asked: list[str] = []
    point = Subject.point

    def noting(self: Subject, file: Path, samples: int, precision: Precision) -> Point:
        asked.append(file.stem)
        return point(self, file, samples, precision)

    monkeypatch.setattr(Subject, "point", noting)
    assert cli.main(["analyse", str(cut), *words]) == 0
    assert asked and not {Path(name).stem for name in answers} & set(asked)
    # A killed write leaves a hidden file of its own name.
    assert {name: it for name, it in files(cut).items() if not Path(name).name.startswith(".")} == files(whole)
