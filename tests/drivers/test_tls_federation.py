"""Hospitals as they join: TLS, registered keys, two processes a site. One federation for all of it."""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sslmed_dist.cli import main
from sslmed_dist.drivers import processes, superlink
from sslmed_dist.federation import authority, node_key
from tests.drills.seen import line_with, saw
from tests.drivers import family
from tests.drivers.family import command_line
from tests.drivers.tls_federation import NAMES, Federation, federation, joining
from tests.federation import tiny

pytestmark = [pytest.mark.flower, pytest.mark.slow]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Three sites that have joined. Afterwards nothing of it is left running."""
    folder = tmp_path_factory.mktemp("federation")
    with federation(folder) as made:
        yield made
    left = [pid for pid in processes.process_ids() if str(folder) in command_line(pid)]
    assert left == [], [command_line(pid) for pid in left]


@pytest.fixture(autouse=True)
def server_runs(running: Federation) -> None:
    """All tests share one server. After one that failed while it was down the next would wait for it without end."""
    server = running.programs.get("server")
    assert server is not None and server.poll() is None, "the server was left down by an earlier test"


def test_a_federation_over_tls_gives_the_bits_of_one_process(
    running: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = running.recipe("plain", rounds=2)
    assert main(["server", "run", str(running.server.place), str(recipe)]) == 0
    folder = running.run_folder("plain")
    log = tiny.log_of(folder)
    assert "round 2 of 2: 3 of 3 sites" in log and "no list of sites" not in log and "excluded" not in log
    assert tiny.same(tiny.arrays(folder, 2), tiny.arrays(running.in_one_process("same", rounds=2), 2))
    capsys.readouterr()
    assert main(["server", "status", str(running.server.place)]) == 0
    said = capsys.readouterr().out
    for name in NAMES:
        assert f"{name}: online since" in said
        assert node_key.fingerprint(node_key.public(running.network(name).with_name("node.key"))) in said
    assert said.count("round 2 of plain") == 3 and "it answers; its clock is" in said and "825 days" in said
    assert main(["server", "run", str(running.server.place), str(recipe)]) == 2
    assert "holds a federation already" in capsys.readouterr().err


def test_every_node_ran_the_signed_app_alone(running: Federation) -> None:
    assert "is signed by the key" in running.said("server")
    for name in NAMES:
        assert "runs apps that a key of trusted_apps has signed, and no others" in running.said(name)
    logs = list(Path(running.server.file.folder).glob("*/federation.log"))
    assert logs and all("the app is signed" in log.read_text() for log in logs)


def test_a_server_that_was_killed_goes_on_bit_for_bit(running: Federation) -> None:
    recipe = running.recipe("killed", rounds=4)
    running.start("run", "server", "run", str(running.server.place), str(recipe))
    folder = running.run_folder("killed")
    end = time.monotonic() + 120
    while not (folder / "checkpoints" / "round_00002.pt").exists():
        assert time.monotonic() < end and running.programs["run"].poll() is None, running.said("run")
        time.sleep(0.05)
    server = running.programs.pop("server")
    programs = family.descendants(server.pid)  # the SuperLink, its SuperExec, the app
    assert len(programs) >= 3
    server.kill()
    family.end(programs)
    server.wait()
    assert running.programs.pop("run").wait(timeout=60) == 1
    # Which of the two that ended is seen first is chance: the SuperLink, or the program that follows the run.
    assert re.search(r"(lost its SuperLink|was killed or ended \(exit code 1\)) without a result", running.said("run"))
    assert not (folder / "checkpoints" / "round_00004.pt").exists()
    said = running.said("server")
    running.start("server", "server", "start", str(running.server.place))
    end = time.monotonic() + 60
    while running.said("server").count("the server is ready") < 2:
        assert time.monotonic() < end, running.said("server")
        time.sleep(0.1)
    assert running.said("server") != said
    assert main(["server", "resume", str(running.server.place), "killed"]) == 0
    assert tiny.same(tiny.arrays(folder, 4), tiny.arrays(running.in_one_process("whole", rounds=4), 4))


def test_a_key_that_is_not_registered_is_refused(running: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    joining(running.folder, "mallory", running.server)
    assert main(["site", "network", str(running.network("mallory"))]) == 2
    said = capsys.readouterr().err
    shown = node_key.fingerprint(node_key.public(running.network("mallory").with_name("node.key")))
    assert f"refuses this side's key {shown}: it is not registered there, or another machine is online with it" in said
    saw("unregistered key", site=said.splitlines()[-1])


def test_a_server_of_another_authority_is_not_believed(
    running: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = authority.make(tmp_path / "tls", ["localhost"])
    joining(running.folder, "misled", running.server, other.root)
    assert main(["site", "network", str(running.network("misled"))]) == 2
    said = capsys.readouterr().err
    assert (
        "is not believed: " in said
        and f"{running.network('misled').with_name('ca.crt')} names whom this side believes" in said
    )
    saw("a server of another authority", site=said.splitlines()[-1])


def test_nobody_without_the_token_starts_runs_and_nobody_without_the_secret_takes_tasks(running: Federation) -> None:
    import httpx
    from flwr.proto.control_pb2 import ListNodesRequest
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient

    from server.submit import connect

    address, root = f"localhost:{running.server.file.port}", running.server.tls.root
    known = running.server.keys / superlink.TOKEN
    assert len(connect(address, root, known).ListNodes(ListNodesRequest()).nodes_info) == len(NAMES)
    wrong = running.folder / "token"
    wrong.write_text("0" * 64)
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        connect(address, root, wrong).ListNodes(ListNodesRequest())
    client = RuntimeHttpClient.from_server_address(
        address, False, root.read_bytes(), [RuntimeVersionHttpInterceptor(component_name="SuperExec")]
    )
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))


def test_a_network_side_that_was_killed_waits_for_its_old_session(running: Federation) -> None:
    node = next(
        pid for pid in processes.process_ids() if f"{running.network('south').parent}/node.key" in command_line(pid)
    )
    started = processes.started_at(node)
    assert started is not None
    processes.end_process(node, started, signal.SIGKILL)
    running.wait_for("the server still counts the session before", "south")
    end = time.monotonic() + 120
    while running.said("south").count("has joined the federation") < 2:
        assert time.monotonic() < end, running.said("south")
        time.sleep(0.2)
    said = running.said("south")
    waits, joined = line_with("still counts the session", said), line_with("has joined", said)
    saw("network side killed, started again at once with the same key", site=waits, then=joined)


def test_a_second_one_of_a_kind_is_refused(running: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["server", "start", str(running.server.place)]) == 2
    assert "a server runs here already" in capsys.readouterr().err
    assert main(["site", "network", str(running.network("north"))]) == 2
    assert "a network side runs here already" in capsys.readouterr().err


def test_everything_stops_when_it_is_asked_to(running: Federation) -> None:
    for name in NAMES:
        assert running.stop(name) == 0
        assert not (running.network(name).parent / "flower" / "session").exists()
    running.wait_for("south: offline", "server", 10)
    assert running.stop("server") == 0
    assert "the server has stopped" in running.said("server")
