"""Who gets past the gate before Flower's SuperLink, which nodes it registers, and how often anybody asks."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from clients.supernode import Clock, sending
from server.brisk_grid import BriskGrid, pause
from server.owners import Owners
from server.roll_call import Sites
from server.superlink import Gate, Watch, seen
from sslmed_dist.federation import node_key, registered
from sslmed_dist.federation.registered import Registered

HERE, AWAY = ("127.0.0.1", 5), ("192.0.2.9", 5)


def status(path: str, client: Any = HERE, *authorization: str) -> int:
    """What the gate answers, 0 where it lets pass."""
    passed: list[int] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(1)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "client": client}
    scope["headers"] = [(b"authorization", value.encode()) for value in authorization]
    asyncio.run(Gate(app, "secret")(scope, None, send))
    assert bool(passed) != bool(sent)
    return 0 if passed else int(sent[0]["status"])


@pytest.mark.parametrize(
    ("path", "client", "token", "answer"),
    [
        ("/health", AWAY, (), 0),
        ("/v1/fleet/pull-messages", AWAY, (), 0),
        ("/v1/runtime/acquire-task", HERE, (), 0),
        ("/v1/runtime/acquire-task", AWAY, (), 404),
        ("/v1/control/start-run", HERE, ("Bearer secret",), 0),
        ("/v1/control/start-run", ("::1", 5), ("Bearer secret",), 0),
        ("/v1/control/start-run", HERE, (), 401),
        ("/v1/control/start-run", HERE, ("Bearer secrets",), 401),
        ("/v1/control/start-run", HERE, ("Bearer secret", "Bearer secret"), 401),
        ("/v1/control/start-run", AWAY, ("Bearer secret",), 404),
        ("/v1/control/start-run", None, ("Bearer secret",), 404),
        ("/v1/fleet/../control/start-run", AWAY, (), 0),  # Flower knows no such path: 404
        ("/docs", HERE, ("Bearer secret",), 404),
        ("/v2/control/start-run", HERE, ("Bearer secret",), 404),
    ],
)
def test_who_may_ask_for_what(path: str, client: Any, token: tuple[str, ...], answer: int) -> None:
    assert status(path, client, *token) == answer


@pytest.fixture
def state(tmp_path: Path) -> Any:
    """Flower's own state in a database, as its SuperLink has it."""
    made = SqlLinkState(str(tmp_path / "state.db"), NoOpFederationManager(), ObjectStoreFactory().store())
    made.initialize()
    return made


def nodes(state: Any) -> dict[str, tuple[int, str]]:
    """By name, number and status of every node that there ever was."""
    return {node.name: (node.node_id, node.status) for node in state.get_node_info()}


def test_nodes_follow_the_list(state: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {name: node_key.make(tmp_path / name) for name in ("north", "south", "east")}
    path = tmp_path / "sites.yaml"
    monkeypatch.setenv(registered.LISTED, str(path))
    watch = Watch(SimpleNamespace(state=lambda: state), tmp_path / "nodes.json")
    watch.look()
    assert nodes(state) == {} and (tmp_path / "nodes.json").read_text() == "{}"
    sites = {name: Registered(5, key, None) for name, key in keys.items()}
    east = sites.pop("east")
    registered.write(path, sites)
    watch.look()
    watch.look()
    known = nodes(state)
    assert list(known) == ["north", "south"]
    path.write_text("north: 5")  # a mistake changes nothing
    watch.look()
    watch.look()
    assert nodes(state) == known
    registered.write(path, {"south": sites["south"]})
    watch.look()
    watch.look()
    assert [status for _, status in nodes(state).values()] == ["unregistered", "registered"]
    assert list(seen(state, watch.listed)) == ["south"]
    registered.write(path, {"north": sites["north"], "east": east})
    watch.look()
    watch.look()  # what was taken out comes back as what it was, and those after it in the list come, too
    assert nodes(state)["north"] == known["north"] and nodes(state)["south"][1] == "unregistered"
    assert nodes(state)["east"][1] == "registered" and sorted(seen(state, watch.listed)) == ["east", "north"]
    assert state.activate_node(known["north"][0], 30.0) and nodes(state)["north"][1] == "online"


@pytest.mark.parametrize("between", ["", "north: {samples: 5}\n", None])
def test_a_list_that_is_being_written_takes_no_site_out(
    state: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str | None
) -> None:
    path = tmp_path / "sites.yaml"
    registered.write(path, {name: Registered(5, node_key.make(tmp_path / name), None) for name in ("north", "south")})
    monkeypatch.setenv(registered.LISTED, str(path))
    watch, text = Watch(SimpleNamespace(state=lambda: state), None), path.read_text()
    watch.look()
    known = nodes(state)
    assert len(known) == 2
    path.unlink()
    if between is not None:  # as an editor leaves it for a moment
        path.write_text(between)
    watch.look()
    path.write_text(text)
    watch.look()
    watch.look()
    assert nodes(state) == known and len(watch.listed) == 2


def test_a_node_is_the_site_of_its_key(tmp_path: Path) -> None:
    keys = {name: node_key.make(tmp_path / name) for name in ("north", "south", "stranger")}
    owners = Owners({name: Registered(None, keys[name]) for name in ("north", "south")})
    nodes = [SimpleNamespace(node_id=n, public_key=node_key.pem(key)) for n, key in enumerate(keys.values())]
    grid: Any = SimpleNamespace(get_nodes=lambda: nodes)
    owners.look(grid)
    assert [owners.name(number) for number in range(4)] == ["north", "south", None, None]
    assert [owners.who(number) for number in (1, 2)] == ["south (node 1)", "node 2"]


def test_nothing_is_found_more_than_a_tenth_late() -> None:
    assert [pause(waited) for waited in (0.0, 1.0, 5.0, 30.0, 3600.0)] == [0.1, 0.1, 0.5, 3.0, 3.0]


def test_a_node_that_worked_looks_often_and_one_that_idles_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    clock = Clock()
    while now[0] < 200:
        clock.sleep(3)
    assert slept[0] == 0.1 and slept[-1] == 3.0 and len(slept) < 90
    now[0] += 5  # a message came and was worked on
    clock.sleep(3)
    clock.sleep(0.5)
    assert slept[-2:] == [0.1, 0.1]
    assert clock.perf_counter is time.perf_counter


def test_an_answer_is_sent_though_no_message_came() -> None:
    """Of Flower's loop: where ``pull`` returns None nothing is sent."""
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

    state = InMemoryNodeState(None)
    pull = sending(lambda *, state, answer: answer)
    metadata = SimpleNamespace(reply_to_message_id="asked")
    assert (pull(state=state, answer=None), pull(state=state, answer=7)) == (None, 7)
    state.msg_store["one"] = SimpleNamespace(message=SimpleNamespace(metadata=metadata), is_retrieved=False)
    assert pull(state=state, answer=None) == 0
    state.msg_store["one"].is_retrieved = True
    assert pull(state=state, answer=None) is None


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("pass", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no key')", 1, "no key"),
        ("raise OSError('500 Internal Server Error')", 1, "500 Internal Server Error"),
    ],
)
def test_a_supernode_whose_loop_ends_does_not_stay_for_its_threads(ending: str, code: int, said: str) -> None:
    """Else nobody would start another one, and the site would be away without a word."""
    program = f"""
import threading
from clients.supernode import to_its_end
def loop():
    threading.Thread(target=threading.Event().wait).start()  # as Flower's, which serves the app
    {ending}
to_its_end(loop)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == code and said in done.stderr, done.stderr


def test_whom_the_server_waits_for_is_said_before_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    grid: Any = SimpleNamespace(get_node_ids=list)
    sites = Sites(2, 1, 0.6, 1, dict.fromkeys(("north", "east"), Registered(9)))
    with caplog.at_level("INFO", "sslmed.server"), pytest.raises(RuntimeError, match="0 of 2 sites are online"):
        sites.ready(grid)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "waiting up to 1 s: 0 of 2 sites are there; not there: east, north"
    assert len([line for line in said if "waiting" in line]) == 1


def test_replies_are_collected_until_all_are_there_or_time_is_over() -> None:
    class Grid:
        """Answers two of three messages, one at a look."""

        def __init__(self) -> None:
            self.there = ["a", "b"]

        def push_messages(self, messages: Any) -> list[str]:
            return list(messages)

        def pull_messages(self, ids: Any) -> list[Any]:
            found = [name for name in self.there if name in ids][:1]
            return [SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=name)) for name in found]

    grid: Any = Grid()
    assert len(list(BriskGrid(grid).send_and_receive(["a", "b"]))) == 2
    begun = time.monotonic()
    late: Any = ["a", "b", "c"]
    assert len(list(BriskGrid(grid).send_and_receive(late, timeout=0.4))) == 2
    assert 0.4 <= time.monotonic() - begun < 2
