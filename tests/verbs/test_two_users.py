"""The two sides of a site as two users, neither of them root, the data side in a network namespace of its own."""

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sslmed_dist.federation import resident, separation
from sslmed_dist.federation.ledger import Ledger
from tests.clients.test_relay import talk
from tests.federation import hospital, tiny

ROOT = Path(__file__).parents[2]
DATA_USER, NETWORK_USER, OTHER_USER, BOTH = 64321, 64322, 64323, 64320  # the last is the socket's group
# The data side: what it needs is imported, and used once, while this process may still read the modules.
DATA_SIDE = f"""
import os, sys, threading
from pathlib import Path
from sslmed_dist.federation import resident, separation, site_file
from tests.federation import hospital
rehearsal, own = (site_file.read(Path(text)) for text in sys.argv[1:3])
assert hospital.said(hospital.door(rehearsal).answer(Path(sys.argv[3]).read_bytes())).kind == "greeting"
os.setgroups([{BOTH}]); os.setgid({BOTH}); os.setuid({DATA_USER})
print(separation.reachable(), flush=True)
resident.serve(own, hospital.door(own), resident.until_signal(), lambda line: print(line, flush=True))
"""


def cannot() -> str | None:
    """Why this cannot be tried here, or None."""
    if os.getuid() != 0:
        return "needs root, to become two other users"
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0:
        return "this machine gives no network namespace"
    return None


def as_user(user: int, groups: list[int], work: Callable[[], bool]) -> bool:
    """What ``work`` says in a process of another user."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(user)
            os.setuid(user)
            code = 0 if work() else 3
        except BaseException:
            traceback.print_exc()
            code = 4
        os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 3)
    return code == 0


def opens(path: Path) -> Callable[[], bool]:
    """Work that tells whether a file or folder can be read."""

    def work() -> bool:
        try:
            return bool(os.listdir(path) if path.is_dir() else path.read_bytes())
        except PermissionError:
            return False

    return work


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.slow
def test_the_network_side_gets_answers_and_nothing_else(open_folder: Path) -> None:
    reason = cannot()
    if reason:
        pytest.skip(reason)
    tmp_path = open_folder
    chosen = tiny.settings(tmp_path)
    data = Path(str(chosen.data["root"]))
    rehearsal = hospital.site(tmp_path / "rehearsal", data)
    own = hospital.site(tmp_path / "site", data, {"network_user: null": f"network_user: {NETWORK_USER}"})
    for each in (rehearsal, own):
        hospital.accept(each, chosen)
    request = hospital.hello(chosen)
    (tmp_path / "request").write_bytes(request)
    for place in [data, tmp_path / "site", *(tmp_path / "site").rglob("*")]:
        os.chown(place, DATA_USER, BOTH)
        place.chmod(0o711 if place == tmp_path / "site" else 0o700 if place.is_dir() else 0o600)
    files = [str(folder / "site.yaml") for folder in (tmp_path / "rehearsal", tmp_path / "site")]
    side = subprocess.Popen(
        ["unshare", "-n", sys.executable, "-c", DATA_SIDE, *files, str(tmp_path / "request")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert side.stdout is not None
        assert side.stdout.readline() == "None\n"  # it knows a way to no network
        assert "the door is open" in side.stdout.readline()
        answers = lambda: hospital.said(talk(own, resident.LENGTH.pack(len(request)) + request)[8:]).kind == "greeting"  # noqa: E731
        assert as_user(NETWORK_USER, [BOTH], answers)
        secrets = [data, Path(own.state), own.ledger, Path(own.state) / "key", tmp_path / "site" / "site.yaml"]
        assert all(opens(secret)() for secret in secrets)  # as root: they are there
        assert [as_user(NETWORK_USER, [BOTH], opens(secret)) for secret in secrets] == [False] * len(secrets)
        assert as_user(DATA_USER, [BOTH], opens(data))

        def connects() -> bool:
            try:
                return talk(own, resident.LENGTH.pack(len(request)) + request) != b""
            except PermissionError:
                return False

        assert not as_user(OTHER_USER, [], connects)  # the folder keeps others out
        assert not as_user(OTHER_USER, [BOTH], connects)  # and the door looks at the user
        side.terminate()
        said, _ = side.communicate(timeout=30)
    finally:
        side.kill()
        side.wait()
    assert f"user {OTHER_USER} may not connect" in said


def test_the_separation_is_proved_by_trying(open_folder: Path) -> None:
    """Two users, neither of them root: what the network side can read is named, until it can read nothing."""
    reason = cannot()
    if reason:
        pytest.skip(reason)
    tmp_path = open_folder
    chosen = tiny.settings(tmp_path)
    network = {"network_user: null": f"network_user: {NETWORK_USER}"}
    own = hospital.site(tmp_path / "north", Path(str(chosen.data["root"])), network)
    Ledger(own.ledger).append("opened")
    for place, mode in ((Path(own.data), 0o644), (Path(own.state), 0o755), (own.ledger, 0o644)):
        place.chmod(mode)
    _, problems = separation.examine(own, None)
    assert [str(place) in " ".join(problems) for place in (own.data, own.state, own.ledger)] == [True] * 3
    for place, mode in ((Path(own.data), 0o600), (Path(own.state), 0o700), (own.ledger, 0o600)):
        place.chmod(mode)
        os.chown(place, DATA_USER, DATA_USER)
    proved, problems = separation.examine(own, None)
    assert problems == [] and "none of 4 files and folders can be read" in proved[0]


def test_the_data_side_in_a_namespace_of_its_own_reaches_nothing() -> None:
    reason = cannot()
    if reason:
        pytest.skip(reason)
    code = "from sslmed_dist.federation.separation import reachable; print(reachable())"
    alone = subprocess.run(["unshare", "-n", sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert alone.stdout == "None\n", alone.stderr
    assert separation.reachable() is not None  # here, beside it, a way is known
