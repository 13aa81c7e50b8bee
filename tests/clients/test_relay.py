"""A hospital of two processes, from Flower's message to the door and back: the app is a relay that can read nothing."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from sslmed_dist import config
from sslmed_dist.config import Config
from sslmed_dist.federation import messages, payload, resident
from sslmed_dist.federation.ledger import Anchor, verify
from sslmed_dist.federation.local_round import initial_arrays
from sslmed_dist.federation.round_files import save_round
from sslmed_dist.federation.site_file import SiteFile
from tests.federation import hospital, tiny

ROOT = Path(__file__).parents[2]
NAMES = ("north", "east")


@contextmanager
def open_doors(sites: list[SiteFile]) -> Iterator[list[str]]:
    """The data sides of these sites, each in a thread of its own with a real socket; what they say."""
    stop, said = threading.Event(), []
    threads = []
    for own in sites:
        ready = threading.Event()

        def say(line: str, ready: threading.Event = ready) -> None:
            said.append(line)
            ready.set()

        thread = threading.Thread(target=resident.serve, args=(own, hospital.door(own), stop, say))
        thread.start()
        threads.append(thread)
        assert ready.wait(120)
    try:
        yield said
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def federate(chosen: Config, nodes: list[dict[str, Any]], client: Any = None) -> Path:
    """A federation in this process whose nodes were started with these node configurations; the run folder."""
    from clients.app import app
    from server.in_process import InProcessGrid, server_app

    folder = chosen.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.dump(chosen))
    travelling = messages.decode(messages.encode(chosen))
    if not (folder / "checkpoints").exists():
        save_round(folder, 0, initial_arrays(chosen), travelling)
    run_config = messages.RunSettings.of(travelling, folder.resolve()).to_record()
    grid = InProcessGrid(client or app, len(nodes), run_config)
    for number, node in enumerate(nodes, 1):
        grid.contexts[number] = Context(number, number, node, RecordDict(), run_config)
    server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config))
    return folder


def two_sites(folder: Path, chosen: Config) -> list[SiteFile]:
    """Two hospitals that have accepted the run."""
    sites = [hospital.site(folder / name, Path(str(chosen.data["root"])), name=name) for name in NAMES]
    for own in sites:
        hospital.accept(own, chosen)
    return sites


def settings(folder: Path, name: str, **federated: Any) -> Config:
    """Settings of a federation of two named sites."""
    return tiny.settings(folder, name=name, federated={"partition": {"name": "iid", "count": 2}, **federated})


def test_two_hospitals_give_the_bits_of_research(tmp_path: Path) -> None:
    chosen = settings(tmp_path, "hospitals")
    sites = two_sites(tmp_path, chosen)
    with open_doors(sites):
        folder = federate(chosen, [{"socket": own.socket} for own in sites])
    research = settings(tmp_path, "research")
    root = str(chosen.data["root"])
    own_data = [{"site": name, "data-root": root, "state-dir": str(tmp_path / "state")} for name in NAMES]
    assert tiny.same(tiny.arrays(folder, 2), tiny.arrays(federate(research, own_data), 2))
    kept = json.loads((folder / "sites.json").read_text())
    for own in sites:  # the server keeps what shows a change of the ledger
        anchor = Anchor.parse(kept[own.site]["anchor"])
        assert verify(own.ledger, anchor).problems == () and kept[own.site]["sequence"] == 3
    assert "round 2 of 2: 2 of 2 sites, loss" in tiny.log_of(folder)
    assert "did not arrive" not in tiny.log_of(folder)


def test_a_site_that_has_not_accepted_is_named(tmp_path: Path) -> None:
    chosen = settings(tmp_path, "waiting", quorum=1, rounds=1)
    sites = two_sites(tmp_path, chosen)
    sites[1].ledger.unlink()
    with open_doors(sites):
        folder = federate(chosen, [{"socket": own.socket} for own in sites])
    log = tiny.log_of(folder)
    assert "node 2 is refused: node 2: its rules refuse: this site has not accepted the run" in log
    assert "round 1 of 1: 1 of 2 sites" in log
    assert list(json.loads((folder / "sites.json").read_text())) == ["north"]


def forged(reply: Message, own: Path) -> Any:
    """One number of the update changed on the way."""
    data = bytearray(reply.content["payload"]["payload"].data)
    data[-70] ^= 1
    return again(reply, bytes(data))


def again(reply: Message, data: bytes) -> Any:
    """The reply with other bytes."""
    from clients.opaque import record

    reply.content = record(data)
    return reply


def replayed(reply: Message, kept: Path) -> Any:
    """The answer of the round before."""
    now = bytes(reply.content["payload"]["payload"].data)
    before = kept.read_bytes() if kept.exists() else now
    kept.write_bytes(now)
    return again(reply, before)


def unsigned(reply: Message, own: Path) -> Any:
    """What a site of one process would answer."""
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

    message = payload.unpack(memoryview(bytes(reply.content["payload"]["payload"].data))[48:-64])
    reply.content = RecordDict(
        {
            "arrays": ArrayRecord(torch_state_dict=dict(message.tensors)),
            "metrics": MetricRecord({"num-examples": 5}),
            "site": ConfigRecord({"site": "east"}),
        }
    )
    return reply


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (forged, "round 2: east is excluded: the answer is not signed by the site's data side"),
        (replayed, "round 2: east is excluded: it answers another question than it was asked"),
        (unsigned, "round 2: east is excluded: its answer is not signed, as those before were"),
    ],
)
def test_a_hostile_relay_can_neither_forge_nor_repeat(tmp_path: Path, change: Any, line: str) -> None:
    from clients.app import app

    def relay(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == "train" and context.node_id == 2:
            seen.append(1)
            if len(seen) == 2 or change is replayed:
                return change(reply, tmp_path / "kept")
        return reply

    seen: list[int] = []
    chosen = settings(tmp_path, "hostile", quorum=1)
    sites = two_sites(tmp_path, chosen)
    with open_doors(sites):
        log = tiny.log_of(federate(chosen, [{"socket": own.socket} for own in sites], relay))
    assert line in log


def test_a_closed_door_is_named_without_a_path(tmp_path: Path) -> None:
    chosen = settings(tmp_path, "closed")
    with pytest.raises(RuntimeError, match="this site's data side does not answer") as error:
        federate(chosen, [{"socket": str(tmp_path / "jane_doe.sock")}] * 2)
    assert "jane" not in str(error.value)


def talk(own: SiteFile, data: bytes) -> bytes:
    """Send raw bytes to the door; what comes back until it closes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(120)
        connection.connect(own.socket)
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except (BrokenPipeError, ConnectionResetError):
            return b""


def test_the_socket_outlives_whatever_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(tmp_path, "raw")
    own = two_sites(tmp_path, chosen)[0]
    length = resident.LENGTH.pack
    with open_doors([own]) as said:
        assert talk(own, b"") == b"" == talk(own, b"\0" * 7)
        assert talk(own, length(0)) == b""
        assert talk(own, length(1 << 40) + b"x") == b"" and f"{1 << 40:,} bytes; allowed" in said[-1]
        assert talk(own, length(100) + b"too short") == b""
        answer = talk(own, length(8) + b"\x80\x04\x95abcde")
        assert hospital.reason(answer[8:]) == "the request is not in the format of this program"
        hello = hospital.hello(chosen)
        assert hospital.said(talk(own, length(len(hello)) + hello)[8:]).kind == "greeting"
        assert (os.stat(own.socket).st_mode & 0o777, os.stat(Path(own.socket).parent).st_mode & 0o777) == (0o660, 0o750)
        with pytest.raises(ValueError, match="another data side works on this state"):
            resident.serve(own, hospital.door(own), threading.Event(), said.append)
        monkeypatch.setattr(resident, "peer", lambda _: os.getuid() + 1)
        assert talk(own, length(len(hello)) + hello) == b"" and "may not connect" in said[-1]
    assert not Path(own.socket).exists()


def test_the_relay_imports_neither_torch_nor_our_package() -> None:
    code = (
        "import sys; import clients.app\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'sslmed_dist', 'server')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
