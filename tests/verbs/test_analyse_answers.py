"""What an analysis says of runs, checkpoints and answers that do not belong together."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from sslmed_dist import cli
from sslmed_dist.locks import alone_in_output
from sslmed_dist.training import job
from tests import tiny
from tests.verbs.test_analyse import rows, run, threads

__all__ = ["run", "threads"]  # fixtures


def test_runs_that_saw_different_batches_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = []
    for name, seed, temperature in (("a", 0, 0.1), ("b", 0, 0.2), ("c", 1, 0.1)):
        own = tiny.settings(
            tmp_path, run={"name": name, "seed": seed}, plan={"epochs": 1},
            method={"loss": {"name": "nt_xent", "temperature": temperature}},
        )  # fmt: skip
        job.train(own)
        folders.append(str(own.folder))
    for beside, said in ((folders[1], False), (folders[2], True)):
        assert cli.main(["analyse", folders[0], "similarity", "samples=1000", "--beside", beside]) == 0
        out = capsys.readouterr().out
        assert ("the runs were shown different batches" in out) is said
        assert out.startswith("Similarity of features of two views of 48 samples"), "all that there are"


def test_a_checkpoint_of_another_run_does_not_answer_for_this_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same shapes and the same step, under another loss; in whatever asks the run folder."""
    other = tiny.settings(tmp_path, method={"loss": {"name": "dcl"}}, plan={"keep_every": 2, "epochs": 2})
    job.train(other)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    file = copy / "checkpoints" / "step_000000006.pt"
    shutil.copyfile(other.folder / "checkpoints" / file.name, file)
    for words in (
        ["analyse", str(copy), "hessian", "samples=12"],
        ["evaluate", str(copy)],
        ["analyse", str(copy), "temperature", "samples=12"],
    ):
        assert cli.main(words) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{file}: is of another run than {copy / 'config.yaml'} says (different: method.loss.name" in said


def test_two_analyses_of_a_run_are_not_mixed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone_in_output(run / "analysis", "an analysis"):
        assert cli.main(["analyse", str(run), "similarity"]) == 2
    assert "an analysis runs here already" in capsys.readouterr().err


def test_an_answer_that_was_cut_off_is_asked_anew(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("analysis"))
    asked = ["analyse", str(copy), "hessian", "samples=12", "ritz=2"]
    assert cli.main(asked) == 0
    before = rows(copy, "hessian")
    (kept,) = (copy / "analysis" / "hessian").iterdir()
    kept.write_text(kept.read_text()[:30])
    capsys.readouterr()
    assert cli.main(asked) == 0 and rows(copy, "hessian") == before
    assert "not valid JSON" in (said := capsys.readouterr().err) and "it is asked anew" in said


def test_data_that_changed_in_place_are_asked_anew(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path, plan={"epochs": 1})
    job.train(settings)
    asked, file = ["analyse", str(settings.folder), "hessian", "samples=12", "ritz=2"], Path(settings.data["root"])
    assert cli.main(asked) == 0
    before = rows(settings.folder, "hessian")
    assert cli.main(asked) == 0 and rows(settings.folder, "hessian") == before
    with np.load(file) as stored:
        arrays = {name: it[::-1] if "images" in name else it for name, it in stored.items()}
    np.savez(file, **arrays)
    assert cli.main(asked) == 0 and rows(settings.folder, "hessian") != before
