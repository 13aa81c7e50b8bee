"""A federation among whose sites one is broken or hostile: what the server does, says and keeps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord

from sslmed_dist import config
from sslmed_dist.federation import messages
from sslmed_dist.federation.round_files import last_round
from tests.federation import tiny

FOUR = {"partition": {"name": "iid", "count": 4}, "held_out": 0.1, "validation": 0.1, "rounds": 1}


def scaled(factor: float, *keys: str) -> Callable[[Message], None]:
    """A reply whose tensors (or only ``keys``) are ``factor`` times what they were."""

    def change(reply: Message) -> None:
        state = dict(reply.content["arrays"].to_torch_state_dict())
        state |= {key: state[key] * factor for key in keys or state}
        reply.content["arrays"] = ArrayRecord(torch_state_dict=state)

    return change


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The average of a round in which the second of four sites answers nothing but an error."""
    silent = tiny.altered(lambda reply: Message(Error(2, "sslmed: none"), reply_to=reply))
    with pytest.MonkeyPatch.context() as patch:
        return tiny.arrays(
            tiny.federate(tiny.settings(tmp_path_factory.mktemp("three"), federated=FOUR), patch, silent), 1
        )


def stale(reply: Message) -> None:
    reply.content["site"]["model"] = "0" * 64


def of_another_round(reply: Message) -> None:
    reply.content["site"]["round"] = 7


def too_many(reply: Message) -> None:
    reply.content["metrics"]["num-examples"] = 10**18


def more(reply: Message) -> None:
    reply.content["more"] = ConfigRecord({"patient": "jane doe"})
    reply.content["metrics"] = MetricRecord({**reply.content["metrics"], **{f"a{n}": 1.0 for n in range(2000)}})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (scaled(1e6), "tensor encoder.conv1.weight moved by"),
        (scaled(1e3, "encoder.conv1.weight"), "tensor encoder.conv1.weight moved by"),
        (stale, "it started from another model than this round's"),
        (of_another_round, "it answers round 8"),
        (too_many, "it reports 1000000000000000000 samples, allowed 1 to "),
        (more, "unreadable reply (the reply's records: more is unknown (1 such))"),
    ],
)
def test_a_bad_reply_touches_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    three: dict[str, torch.Tensor],
    change: Callable[[Message], None],
    reason: str,
) -> None:
    """The average is that of the other three, bit for bit, and the log says why."""
    folder = tiny.federate(tiny.settings(tmp_path, federated=FOUR), monkeypatch, tiny.altered(change))
    assert f"round 1: site-1 is excluded: {reason}" in tiny.log_of(folder)
    assert tiny.same(tiny.arrays(folder, 1), three)
    assert "jane" not in tiny.log_of(folder) + (folder / "metrics.jsonl").read_text()


def greeting(change: Callable[[Any], None], node: int = 2) -> Any:
    """The client app, ``change`` applied to the record of node ``node``'s greeting."""
    from clients.app import app

    def client(message: Message, context: Any) -> Message:
        reply: Message = app(message, context)
        if message.metadata.message_type == "query" and context.node_id == node:
            change(reply.content["site"])
        return reply

    return client


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"samples": float("inf")}, "node 2: its greeting is not one of this program (samples is no whole number)"),
        ({"samples": 2.9}, "node 2: its greeting is not one of this program (samples is no whole number)"),
        ({"samples": 0}, "site-1 reports 0 samples, allowed at least 1"),
        ({"site": "mallory"}, "node 2: no site of this run is called mallory"),
        ({"site": "a\nround 9: all is well"}, "node 2: its name is not made of letters"),
        ({"version": "1\n12:00:00 INFO round 2 of 2: all is well"}, r"site-1 runs sslmed_dist 1\n12:00:00 INFO"),
    ],
)
def test_a_bad_greeting_keeps_one_site_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], line: str
) -> None:
    names = {"site_names": ["site-0", "site-1", "site-2"], "rounds": 1}
    chosen = tiny.settings(tmp_path, federated=names)
    log = tiny.log_of(tiny.federate(chosen, monkeypatch, greeting(lambda record: record.update(change))))
    assert f"node 2 is refused: {line}" in log
    assert "site-1 has not joined" in log and "round 1 of 1: 2 of 3 sites" in log
    assert not any(row.endswith("all is well") and "runs sslmed_dist" not in row for row in log.splitlines())


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            "site-0: {samples: 99}\nsite-1: {samples: 3}\nsite-2: {samples: 99}",
            "site-1 reports 32 samples, allowed 1 to 3",
        ),
        ("site-0: {samples: 99}\nsite-2: {samples: 99}", "node 2: no site of this run is called site-1"),
    ],
)
def test_the_list_of_sites_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, line: str) -> None:
    chosen = tiny.settings(tmp_path, federated={"rounds": 1})
    chosen.folder.mkdir(parents=True)
    (chosen.folder / "sites.yaml").write_text(content)
    assert f"node 2 is refused: {line}" in tiny.log_of(tiny.federate(chosen, monkeypatch))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("[]", "expected sites by name"),
        ("north: 5", "north: expected {samples: a whole number >= 1, node_key: .*, got 5"),
        ("north: {samples: 2.5}", "samples: expected a whole number >= 1, got 2.5"),
        ("north: {samples: 0}", "north: .* got 0"),
        ("north: {samples: 3, key: x}", "north: expected {samples"),
        ("north: {node_key: AAAAx}", "node key 'AAAAx': expected the one word that `sslmed site init` prints"),
        ("north: {data_key: 12}", "data_key .*: expected 64 hexadecimal digits"),
        (f"a: {{data_key: '{'0a' * 32}'}}\nb: {{data_key: '{'0a' * 32}'}}", "b and a have the same key"),
        ("{}", "names no site"),
        ("'../x': {samples: 3}", r"sites.yaml"),
    ],
)
def test_a_list_of_sites_that_is_none(tmp_path: Path, content: str, line: str) -> None:
    from sslmed_dist.federation.registered import registered

    (tmp_path / "sites.yaml").write_text(content)
    with pytest.raises(ValueError, match=line):
        registered(tmp_path, config.Federated())


def test_a_node_with_the_key_of_another_site_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second node says that it is site-1; its key is that of site-0."""
    from types import SimpleNamespace

    from server import in_process
    from sslmed_dist.federation import node_key, registered

    chosen = tiny.settings(tmp_path, federated={"rounds": 1})
    keys = {f"site-{number}": node_key.make(tmp_path / f"key-{number}") for number in range(3)}
    registered.write(chosen.folder / "sites.yaml", {name: registered.Registered(99, key) for name, key in keys.items()})
    words = [keys["site-0"], keys["site-0"], keys["site-2"]]
    nodes = [SimpleNamespace(node_id=number, public_key=node_key.pem(word)) for number, word in enumerate(words, 1)]
    monkeypatch.setattr(in_process.InProcessGrid, "get_nodes", lambda grid: nodes, raising=False)
    log = tiny.log_of(tiny.federate(chosen, monkeypatch))
    assert "node 2 is refused: node 2: says it is site-1, but its key is that of site-0" in log
    assert "round 1 of 1: 2 of 3 sites" in log


def test_a_list_and_names_agree(tmp_path: Path) -> None:
    from sslmed_dist.federation.registered import Registered, registered, write

    write(tmp_path / "sites.yaml", {name: Registered(5) for name in ("a", "b", "c")})
    assert set(registered(tmp_path, config.Federated()) or {}) == {"a", "b", "c"}
    assert set(registered(tmp_path, config.Federated(site_names=["c", "a"])) or {}) == {"a", "c"}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no d of federated.site_names"):
        registered(tmp_path, config.Federated(site_names=["a", "d"]))  # type: ignore[arg-type]


def test_without_a_list_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tiny.log_of(tiny.federate(tiny.settings(tmp_path, federated={"rounds": 1}), monkeypatch))
    assert "no list of sites (sites.yaml, federated.site_names): whoever greets takes part" in log


def test_a_dead_site_is_named_in_every_round_until_it_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from server import in_process

    asked = []

    def online(grid: in_process.InProcessGrid) -> list[int]:
        asked.append(len(grid.took))
        return [1, 2, 3] if len(asked) in (1, 2) or len(asked) > 4 else [1, 3]

    monkeypatch.setattr(in_process.InProcessGrid, "get_node_ids", online)
    log = tiny.log_of(tiny.federate(tiny.settings(tmp_path, federated={"rounds": 4}), monkeypatch))
    rounds = [line.split(" ", 2)[2] for line in log.splitlines() if "dead" in line or " of 4:" in line]
    said = [line.split(",")[0] for line in rounds]
    dead = "site-1 is dead: its node is offline"
    done = [f"round {number} of 4: {count} of 3 sites" for number, count in ((1, 3), (2, 2), (3, 2), (4, 3))]
    assert said == [done[0], dead, done[1], dead, done[2], done[3]]


def test_an_error_of_the_superlink_is_told_of_the_site_it_is_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's "the node is gone" bears the SuperLink's own number as its source."""
    from server import in_process

    deliver = in_process.InProcessGrid.deliver

    def gone(grid: in_process.InProcessGrid, message: Message) -> Message:
        reply = deliver(grid, message)
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == 2:
            reply = in_process.round_trip(Message(Error(5, "node unavailable"), reply_to=message))
            reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    monkeypatch.setattr(in_process.InProcessGrid, "deliver", gone)
    log = tiny.log_of(tiny.federate(tiny.settings(tmp_path, federated={"rounds": 1}), monkeypatch))
    assert "round 1: site-1 is excluded: the node is gone" in log and "2 of 3 sites" in log


def test_a_poisoned_average_is_never_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's rate that is far too high: the run stops, the round before stays, and a mended run goes on from it."""
    wild = {"strategy": {"name": "fedavgm", "lr": 1e4}}
    chosen = tiny.settings(tmp_path, federated=wild)
    with pytest.raises(RuntimeError, match=r"round 1: the average is refused: tensor .* moved by .*round 0 is kept"):
        tiny.federate(chosen, monkeypatch)
    kept = last_round(chosen.folder, messages.decode(messages.encode(chosen)))
    assert kept is not None and kept.number == 0
    assert json.loads((chosen.folder / "federation.json").read_text())["status"] == "failed"


def test_a_huge_site_is_capped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tiny.settings(tmp_path, federated={"rounds": 1, "screen": {"share": 0.3}})
    log = tiny.log_of(tiny.federate(chosen, monkeypatch))
    assert "site-0 has 0.337 of all samples and weighs 0.333 (federated.screen.share)" in log
