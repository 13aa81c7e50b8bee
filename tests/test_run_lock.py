"""A run folder has one writer; a run on Ray waits for the workers of a killed driver."""

import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest

from sslmed_dist import run_folder
from sslmed_dist.run_folder import RunFolder
from tests.test_run_folder import opened, refused, settings


def test_there_is_one_writer(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert refused(tmp_path) == "another process is writing this run"
    first.close()
    second = opened(tmp_path)
    assert refused(tmp_path) == "another process is writing this run"
    second.close()


def test_ray_waits_for_the_workers_of_a_killed_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray ends them some seconds after the kill; what they still wrote counts."""
    path = tmp_path / "run"
    code = "import fcntl, pathlib, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
    code += "print(flush=True); sys.stdin.readline()\n"
    code += "pathlib.Path(sys.argv[2]).mkdir(); pathlib.Path(sys.argv[2], 'step_000000007.pt').touch()"
    opened(path, driver="ray").close()
    command = [sys.executable, "-c", code, str(path / ".lock"), str(path / "checkpoints")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as orphan:
        assert orphan.stdin is not None and orphan.stdout is not None and orphan.stdout.readline() == "\n"
        monkeypatch.setattr(run_folder, "ORPHANS_S", 0.0)
        assert refused(path, driver="ray") == "another process is writing this run"
        monkeypatch.setattr(run_folder, "ORPHANS_S", 60.0)
        assert refused(path) == "another process is writing this run"  # a second start on a laptop is told at once
        assert not capsys.readouterr().err
        stdin = orphan.stdin
        Timer(0.3, lambda: (stdin.write("\n"), stdin.flush())).start()
        run = RunFolder(path, settings(driver="ray"))
        with pytest.raises(ValueError, match="holds a run already"):
            run.open("never")
        run.close()
    assert "run: another process is writing this run; waiting up to 60 s for its end" in capsys.readouterr().err
    opened(path, driver="ray").close()
