"""Forged notes and marks end and remove nothing; a real one does; a copied run leaves the original alone."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist.drivers.private_folder import MARK, NOTE, PREFIX, clear_remains, identity, private_folder
from sslmed_dist.drivers.processes import TOKEN, Processes, end_process
from sslmed_dist.training.stopping import started_at

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's own place for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An empty run folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that carries the token ``victim``."""
    process = subprocess.Popen(SLEEP, env={**os.environ, TOKEN: "victim"})
    while not Processes("victim").alive():  # its environment is there when the program has started
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def left_behind(run: Path, place: Path, /, **changes: Any) -> Path:
    """A private folder of ``run`` as a killed launcher leaves it, its mark changed by ``changes``."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    (folder / "kept").write_text("kept")
    mark = {"token": "victim", "since": 0, "folder": identity(folder), "run": identity(run)} | changes
    (folder / MARK).write_text(json.dumps(mark))
    (run / NOTE).write_text(json.dumps({"folder": str(folder)}))
    return folder


def test_what_a_killed_launcher_left_goes(
    run: Path, place: Path, sleeper: "subprocess.Popen[bytes]", capsys: pytest.CaptureFixture[str]
) -> None:
    folder = left_behind(run, place)
    clear_remains(run)
    assert sleeper.wait(timeout=10) == -15 and not folder.exists() and not (run / NOTE).exists()
    assert capsys.readouterr().err == ""
    clear_remains(run)  # nothing is left to do


FORGED: dict[str, Callable[[Path, Path], object]] = {
    "another run's": lambda run, place: left_behind(run, place, run=[1, 2]),
    "another folder's": lambda run, place: left_behind(run, place, folder=[1, 2]),
    "no token": lambda run, place: left_behind(run, place, token=""),
    "a number as token": lambda run, place: left_behind(run, place, token=3),
    "no start time": lambda run, place: left_behind(run, place, since=None),
    "one key more": lambda run, place: left_behind(run, place, pids=[1]),
    "open to others": lambda run, place: left_behind(run, place).chmod(0o755),
    "another name": lambda run, place: moved(run, left_behind(run, place), place / "my-documents"),
    "another place": lambda run, place: moved(run, left_behind(run, place), run.parent / f"{PREFIX}x"),
    "a linked folder": lambda run, place: linked(run, left_behind(run, place), place / f"{PREFIX}link"),
    "a linked mark": lambda run, place: relinked(left_behind(run, place) / MARK, place / "mark"),
    "no mark": lambda run, place: (left_behind(run, place) / MARK).unlink(),
    "a way up": lambda run, place: note(run, f"{left_behind(run, place)}/.."),
    "a relative path": lambda run, place: note(run, os.path.relpath(left_behind(run, place))),
    "of version 0.1.0": lambda run, place: (
        (run / NOTE).write_text(json.dumps({"token": "victim", "folder": str(left_behind(run, place))}))
        and (place / next(iter(os.listdir(place))) / MARK).unlink()
    ),
    "escape codes": lambda run, place: moved(run, left_behind(run, place), place / "\x1b[2J\n"),
}
NO_NOTES: dict[str, Callable[[Path, Path], object]] = {
    "no JSON": lambda run, place: left_behind(run, place) and (run / NOTE).write_text("{"),
    "a list": lambda run, place: left_behind(run, place) and (run / NOTE).write_text("[1]"),
    "too deep": lambda run, place: left_behind(run, place) and (run / NOTE).write_text("[" * 60000),
    "a linked note": lambda run, place: left_behind(run, place) and relinked(run / NOTE, place / "note"),
    "a pipe": lambda run, place: left_behind(run, place) and ((run / NOTE).unlink(), os.mkfifo(run / NOTE)),
    "a folder": lambda run, place: left_behind(run, place) and ((run / NOTE).unlink(), (run / NOTE).mkdir()),
}


def note(run: Path, folder: str) -> None:
    """A note that names ``folder``."""
    (run / NOTE).write_text(json.dumps({"folder": folder}))


def moved(run: Path, folder: Path, target: Path) -> None:
    """Move a private folder and its note to ``target``."""
    folder.rename(target)
    note(run, str(target))


def linked(run: Path, folder: Path, link: Path) -> None:
    """Let the note name a link to the folder."""
    link.symlink_to(folder)
    note(run, str(link))


def relinked(file: Path, target: Path) -> None:
    """Move a file away and put a link to it in its place."""
    file.rename(target)
    file.symlink_to(target)


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_note_ends_and_removes_nothing(
    kind: str, run: Path, place: Path, sleeper: "subprocess.Popen[bytes]", capsys: pytest.CaptureFixture[str]
) -> None:
    FORGED[kind](run, place)
    outside = sorted(run.parent.rglob("kept")) + sorted(place.iterdir())
    clear_remains(run)
    assert sleeper.poll() is None
    assert [path for path in outside if not os.path.lexists(path)] == [] and outside
    assert not os.path.lexists(run / NOTE)
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 1
        and said[0].isprintable()
        and said[0].startswith(f"{run / NOTE}: not of a former start here, nothing was ended")
    )


@pytest.mark.parametrize("kind", NO_NOTES)
def test_what_is_no_note_of_ours_stays(
    kind: str, run: Path, place: Path, sleeper: "subprocess.Popen[bytes]", capsys: pytest.CaptureFixture[str]
) -> None:
    NO_NOTES[kind](run, place)
    before = sorted(run.rglob("*")) + sorted(place.rglob("*"))
    with pytest.raises(ValueError, match=r"\.runtime\.json: is not a note that this program wrote \(.*; move it away$"):
        clear_remains(run)
    assert sleeper.poll() is None and sorted(run.rglob("*")) + sorted(place.rglob("*")) == before
    assert capsys.readouterr().err == ""


def test_a_copied_run_folder_leaves_the_original_alone(run: Path, place: Path) -> None:
    with private_folder(run) as (folder, processes):
        processes.start(SLEEP, env=dict(os.environ), cwd=folder, log=run / "logs" / "sleep.log")
        while not processes.alive():
            time.sleep(0.01)
        copied = run.with_name("copy")
        shutil.copytree(run, copied)
        clear_remains(copied)
        assert len(processes.alive()) == 1 and (folder / MARK).exists()
        assert not (copied / NOTE).exists()
    assert processes.alive() == [] and not folder.exists() and not (run / NOTE).exists()


def test_a_process_is_named_by_its_id_and_its_start(sleeper: "subprocess.Popen[bytes]") -> None:
    started = started_at(sleeper.pid)
    assert started is not None and started_at(2**22 + 1) is None
    assert Processes("victim", since=started).alive() == [sleeper.pid]
    assert Processes("victim", since=started + 1).alive() == []
    end_process(sleeper.pid, started - 1, 9)
    assert sleeper.poll() is None
    end_process(sleeper.pid, started, 9)
    assert sleeper.wait(timeout=10) == -9
