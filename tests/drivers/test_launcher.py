"""The launcher: what it refuses, resume after SIGKILL, stopping, and that nothing is left running."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from sslmed_dist import config, run_folder
from sslmed_dist.drivers import flower_programs, launcher, private_folder, processes
from sslmed_dist.training.stopping import started_at
from tests.federation import tiny

LAUNCH = "import sys; from sslmed_dist import cli, config; from sslmed_dist.drivers import launcher; "
LAUNCH += "cli.VERBS['federate'] = lambda asked: launcher.run(config.load(asked.config)) or 0; "
LAUNCH += "sys.exit(cli.main(['federate', sys.argv[1]]))"


def launched(chosen: config.Config, folder: Path) -> subprocess.Popen[bytes]:
    """The launcher in a program of its own."""
    file = folder / "launched.yaml"
    file.write_text(config.dump(chosen))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", LAUNCH, str(file)], env=env, cwd=folder)


def wait_for(path: Path, seconds: float = 120.0) -> None:
    """Until ``path`` exists."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.01)


def token_of(folder: Path) -> str:
    """What marks the running processes of a run."""
    private = json.loads((folder / private_folder.NOTE).read_text())["folder"]
    return str(json.loads((Path(private) / private_folder.MARK).read_text())["token"])


@pytest.mark.slow
def test_killed_after_round_two_it_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = {"rounds": 4}
    whole = tiny.federate(tiny.settings(tmp_path, "whole", federated=rounds), monkeypatch)
    chosen = tiny.settings(tmp_path, "killed", federated=rounds)
    folder = chosen.folder
    started = launched(chosen, tmp_path)
    wait_for(folder / "checkpoints" / "round_00002.pt")
    token = token_of(folder)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (folder / "checkpoints" / "round_00004.pt").exists()
    end = time.monotonic() + 20
    while processes.Processes(token).alive() and time.monotonic() < end:
        time.sleep(0.05)
    assert processes.Processes(token).alive() == [], "the server outlived its launcher"
    launcher.run(chosen)
    assert tiny.same(tiny.arrays(folder, 4), tiny.arrays(whole, 4))
    rows = [(row["round"], row.get("site"), row["name"]) for row in run_folder.Metrics(folder / "metrics.jsonl").read()]
    assert len(rows) == len(set(rows))
    assert not (folder / ".runtime.json").exists()
    launcher.run(chosen)  # nothing is left to do
    with pytest.raises(ValueError, match="holds a federation already"):
        launcher.run(chosen, resume="never")


def test_a_killed_server_is_reported_and_another_start_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tiny.settings(tmp_path)

    def killed(place: flower_programs.Workplace) -> subprocess.Popen[bytes]:
        return place.start("in_process", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])

    monkeypatch.setitem(flower_programs.RUNTIMES, "in_process", killed)
    with pytest.raises(RuntimeError, match=r"killed or ended \(exit code -9\) without a result"):
        launcher.run(chosen)
    assert not (chosen.folder / ".runtime.json").exists()


@pytest.mark.slow
def test_sigterm_stops_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    chosen = tiny.settings(tmp_path, federated={"rounds": 50})
    started = launched(chosen, tmp_path)
    wait_for(chosen.folder / "checkpoints" / "round_00001.pt")
    token = token_of(chosen.folder)
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=60) == 0
    assert processes.Processes(token).alive() == []
    assert not (chosen.folder / "federation.json").exists()


def test_a_failed_federation_is_one_line_with_the_reason(tmp_path: Path) -> None:
    chosen = tiny.settings(tmp_path)
    chosen.folder.mkdir(parents=True)
    (chosen.folder / "sites.yaml").write_text("site-0: {samples: none}")
    with pytest.raises(ValueError, match=r"the federation failed: .*sites.yaml: site-0: expected {samples: a whole"):
        launcher.run(chosen)


@pytest.mark.parametrize(("letters", "refused"), [(16, False), (17, True), (80, True)])
def test_a_place_too_long_for_rays_sockets_is_named(letters: int, refused: bool) -> None:
    """107 bytes are the most that the path of a Unix socket may have."""
    place = Path("/" + "t" * (letters - 1)) / "sslmed-flower-abcdefgh"
    if not refused:
        return flower_programs.require_room_for_sockets(place)
    with pytest.raises(ValueError, match=rf"too long for Ray's sockets, by {letters - 16} bytes; .* at most 16, such"):
        flower_programs.require_room_for_sockets(place)


def test_more_replies_than_sites_are_never_waited_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="federated.quorum: 4 replies needed, but there are 3 sites"):
        launcher.run(tiny.settings(tmp_path, federated={"quorum": 4}))
    assert not tiny.settings(tmp_path).folder.exists()


def test_an_app_folder_without_an_app_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLMED_APP", str(tmp_path))
    with pytest.raises(ValueError, match="no Flower app .*set SSLMED_APP"):
        launcher.app_folder()


def test_without_flower_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'sslmed-dist\[flower\]'"):
        launcher.app_folder()


def test_a_port_in_use_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv(flower_programs.PORT, str(port))
        with pytest.raises(ValueError, match=f"{flower_programs.PORT}: port {port} on 127.0.0.1 cannot be used"):
            launcher.run(tiny.settings(tmp_path, federated={"runtime": "simulation"}))


def test_no_program_gets_flowers_habits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    chosen = tiny.settings(tmp_path)
    place = flower_programs.Workplace(
        tmp_path, launcher.app_folder(), tmp_path, processes.Processes("t"), settings=chosen
    )
    env = place.environment(tmp_path / "home")
    assert env["FLWR_HOME"] == str(tmp_path / "home")
    assert {env[key] for key in env if key.startswith("FLWR_TELEMETRY")} == {"0"}
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert "RAY_ADDRESS" not in env


def test_processes_that_leave_their_group_are_stopped_too(tmp_path: Path) -> None:
    started = processes.Processes("token-of-this-test")
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
    child += "start_new_session=True); time.sleep(60)"
    started.start([sys.executable, "-c", child], env=dict(os.environ), cwd=tmp_path, log=tmp_path / "log")
    end = time.monotonic() + 30
    while len(started.alive()) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(started.alive()) == 2
    started.stop()
    assert started.alive() == []


def test_a_program_that_shows_no_environment_is_stopped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's SuperExec lets nobody but root look into it."""
    monkeypatch.setattr(processes, "environment", lambda pid: [])
    started = processes.Processes("token-of-another-test")
    child = started.start(["sleep", "60"], env=dict(os.environ), cwd=tmp_path, log=tmp_path / "log")
    assert child.pid in started.alive()
    started.stop()
    assert child.poll() is not None and started.alive() == []


def test_the_bundle_that_is_sent_to_sites_is_thin() -> None:
    from flwr.cli.build import build_fab_from_files

    root = launcher.app_folder()
    parts = [root / "pyproject.toml", *(p for part in ("server", "clients") for p in (root / part).glob("*.py"))]
    parts += [root / "sslmed_dist" / "federation.py", root / "tests" / "conftest.py"]
    bundle = build_fab_from_files({str(p.relative_to(root)): p for p in parts})[0]
    names = zipfile.ZipFile(BytesIO(bundle)).namelist()
    assert len(bundle) < 1 << 20
    assert {"server/app.py", "clients/app.py", "pyproject.toml"} <= set(names)
    assert not [name for name in names if name.startswith(("sslmed_dist", "tests"))]


@pytest.mark.parametrize("name", ["federation.log", "federation.json", "logs", "sites", "arms", ".runtime.json"])
def test_a_federation_follows_no_link(tmp_path: Path, name: str) -> None:
    """Neither the launcher nor the server writes anything where a link in the run folder leads out of it."""
    from server import in_process

    chosen = tiny.settings(tmp_path)
    (tmp_path / "outside").mkdir()
    chosen.folder.mkdir(parents=True)
    (chosen.folder / name).symlink_to(tmp_path / "outside")
    line = re.escape(f"{chosen.folder / name}: is a link; in a run folder nothing is written or deleted through one")
    with pytest.raises(ValueError, match=f"^{line}$"):
        launcher.run(chosen)
    (chosen.folder / "config.yaml").write_text(config.dump(chosen))
    with pytest.raises(ValueError, match=f"^{line}$"):
        in_process.run(chosen.folder)
    assert list((tmp_path / "outside").iterdir()) == []
    assert {path.name for path in chosen.folder.iterdir()} == {name, "config.yaml"}


def test_the_server_ends_with_the_very_process_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with one that got its id afterwards."""
    import threading

    from server import app

    ended = threading.Event()

    def end(_: int) -> None:
        ended.set()
        threading.Event().wait()  # as little as after the real one is done in this thread

    monkeypatch.setattr(app.os, "_exit", end)
    app.stay_with(f"{os.getpid()} {started_at(os.getpid())}")
    assert not ended.wait(0.7)
    app.stay_with(f"{os.getpid()} 1")
    assert ended.wait(2)
