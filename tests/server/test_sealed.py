"""What the server believes of a site of two processes: signed, new, of this run, from the model that was sent."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict

from server.sealed import PAYLOAD, Sealed, SiteRefused, record
from sslmed_dist.federation import payload
from sslmed_dist.federation.figures import Told
from sslmed_dist.federation.ledger import Anchor
from sslmed_dist.federation.replies import Asked
from sslmed_dist.federation.shared import model_digest

SENT = {"encoder.w": torch.ones(3)}
ASKED = Asked("north", 0, model_digest(SENT), SENT, 9)
KEY = Ed25519PrivateKey.generate()


class Reply:
    """All that is read of Flower's message."""

    def __init__(self, data: bytes) -> None:
        self.content = RecordDict({PAYLOAD: record(data)})


def reply(server: Sealed, kind: str, sequence: int, key: Ed25519PrivateKey = KEY, **changes: Any) -> Any:
    """A site's answer, signed."""
    fields: dict[str, Any] = {"run": server.run, "sequence": sequence, "site": "north"}
    public = key.public_key().public_bytes_raw().hex()
    if kind == "greeting":
        fields |= {"version": "0.1.0", "channels": 1, "samples": 9, "key": public}
    elif kind == "refusal":
        fields |= {"reason": "no", "key": public}
    else:
        fields |= {"round": 0, "samples": 9, "scalars": {}, "model": model_digest(SENT)}
    content = payload.pack(kind, fields | changes, SENT if kind == "update" else None)
    return Reply(payload.seal(content, Anchor(sequence, "ab" * 32), key.sign))


@pytest.fixture
def server(tmp_path: Path) -> Sealed:
    """A server that has met the site."""
    made = Sealed("YQ==", tmp_path)
    made.greeting(reply(made, "greeting", 1), 7)
    assert made.nodes == {7}
    return made


def test_an_update_becomes_the_records_that_the_screen_reads(server: Sealed) -> None:
    records = server.update(reply(server, "update", 2), ASKED)
    assert records["site"]["site"] == "north" and records["metrics"]["num-examples"] == 9
    assert torch.equal(records["arrays"].to_torch_state_dict()["encoder.w"], SENT["encoder.w"])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sequence": 1}, "number 1 is a repeat; the last one was 1"),
        ({"sequence": 2, "key": Ed25519PrivateKey.generate()}, "not signed by the site's data side"),
        ({"sequence": 2, "run": "1" * 64}, "belongs to another site or run"),
        ({"sequence": 2, "run": "0" * 64}, "belongs to another run"),
        ({"sequence": 2, "site": "east"}, "belongs to another site or run"),
        ({"sequence": 2, "round": 1}, "answers another question"),
        ({"sequence": 2, "model": "1" * 64}, "starts from another model"),
    ],
)
def test_what_is_not_believed(server: Sealed, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(SiteRefused, match=line):
        server.update(reply(server, "update", **changes), ASKED)


def test_the_same_answer_may_come_again_and_a_gap_is_said(server: Sealed, caplog: pytest.LogCaptureFixture) -> None:
    first = reply(server, "update", 2)
    server.update(first, ASKED)
    again = Sealed("YQ==", server.path.parent)  # a server that was started anew
    again.update(first, ASKED)
    for sequence in (3, 4, 5):  # a greeting to each start of the server
        again.greeting(reply(server, "greeting", sequence), 7)
    again.update(first, ASKED)
    with pytest.raises(SiteRefused, match="repeat"):
        again.update(reply(server, "update", 2, samples=10), ASKED)
    with caplog.at_level(logging.WARNING, "sslmed.server"):
        again.update(reply(server, "update", 8), ASKED)
    assert "north: 2 of its answers did not arrive" in caplog.text
    assert again.known["north"]["anchor"] == f"8:{'ab' * 32}"


@pytest.mark.parametrize("restarted", [False, True])
def test_an_answer_that_was_given_while_no_server_was_there_is_no_repeat(server: Sealed, restarted: bool) -> None:
    stored = reply(server, "update", 2)  # answered after the server had been killed, and stored by the site
    server.greeting(reply(server, "greeting", 4), 7)
    again = Sealed("YQ==", server.path.parent) if restarted else server
    again.update(stored, ASKED)
    again.update(stored, ASKED)
    assert again.known["north"]["sequence"] == 4 and again.known["north"]["anchor"] == f"4:{'ab' * 32}"
    assert again.known["north"]["awaited"] == [3]
    for number in (1, 2, 4):  # another answer of a number that came
        with pytest.raises(SiteRefused, match=f"number {number} is a repeat; the last one was 4"):
            again.update(reply(server, "update", number, samples=8), ASKED)
    again.update(reply(server, "update", 3, samples=8), ASKED)
    assert "awaited" not in again.known["north"]
    again.greeting(reply(server, "greeting", 1000), 7)
    assert again.known["north"]["awaited"] == list(range(936, 1000))


FIGURE = ["random", 0, "auc", 0.7, 0.6, 0.8, 40, 30]


def figures(server: Sealed, sequence: int, **changes: Any) -> Any:
    """An answer to "evaluate", signed."""
    fields = {"run": server.run, "sequence": sequence, "site": "north", "round": 3, "figures": [FIGURE]}
    content = payload.pack("figures", {**fields, "scalars": {}, "model": "ab" * 32, **changes})
    return Reply(payload.seal(content, Anchor(sequence, "ab" * 32), KEY.sign))


def test_figures_are_believed_as_updates_are(server: Sealed) -> None:
    told = Told.from_record(server.figures(figures(server, 2), "north")["site"])
    assert (told.site, told.round, [figure.to_list() for figure in told.figures]) == ("north", 3, [FIGURE])
    for answer, line in (
        (figures(server, 2, round=4), "repeat"),
        (figures(server, 3, site="south"), "another site"),
        (figures(server, 3, run="cd" * 32), "another site or run"),
        (reply(server, "update", 3), "another question"),
    ):
        with pytest.raises(SiteRefused, match=line):
            server.figures(answer, "north")
    unsigned: Any = Reply(b"")
    unsigned.content = RecordDict({})
    with pytest.raises(SiteRefused, match="not signed, as those before were"):
        server.figures(unsigned, "north")


def test_another_key_takes_no_name_over(server: Sealed) -> None:
    with pytest.raises(SiteRefused, match="not signed by the site's data side"):
        server.greeting(reply(server, "greeting", 9, Ed25519PrivateKey.generate()), 8)
    assert 8 not in server.nodes


def test_a_refusal_makes_no_site_known_and_counts_for_one_that_is(server: Sealed) -> None:
    with pytest.raises(SiteRefused, match="its rules refuse: no"):
        server.greeting(reply(server, "refusal", 3, site="south"), 9)
    assert list(server.known) == ["north"]
    with pytest.raises(SiteRefused, match="its rules refuse: no"):
        server.update(reply(server, "refusal", 2), ASKED)
    assert server.known["north"]["sequence"] == 2


@pytest.mark.parametrize("data", [b"", b"x" * 300, payload.SEALED + b"\0" * 200])
def test_bytes_that_are_no_answer(server: Sealed, data: bytes) -> None:
    answer: Any = Reply(data)
    for ask in (lambda: server.greeting(answer, 1), lambda: server.update(answer, ASKED)):
        with pytest.raises(SiteRefused):
            ask()


def test_no_first_greeting_is_believed_but_that_of_the_pinned_key(tmp_path: Path) -> None:
    public = KEY.public_key().public_bytes_raw().hex()
    pinned = Sealed("YQ==", tmp_path, {"north": public})
    with pytest.raises(SiteRefused, match="not signed by the site's data side"):
        pinned.greeting(reply(pinned, "greeting", 1, Ed25519PrivateKey.generate()), 7)
    assert pinned.known == {} and pinned.nodes == set()
    pinned.greeting(reply(pinned, "greeting", 1), 7)
    assert pinned.nodes == {7}


def test_a_site_with_a_pinned_key_cannot_answer_without_a_signature(tmp_path: Path) -> None:
    from flwr.app import ConfigRecord

    from sslmed_dist.federation.messages import SITE, Greeting

    pinned = Sealed("YQ==", tmp_path, {"north": "0f" * 32})
    plain: Any = Reply(b"")
    for name, refused in (("north", True), ("south", False)):
        plain.content = RecordDict({SITE: ConfigRecord(Greeting(name, "0.1.0", 1, 9).to_record())})
        if not refused:
            assert pinned.greeting(plain, 7) is plain.content
            continue
        for read in (lambda: pinned.greeting(plain, 7), lambda: pinned.update(plain, ASKED)):
            with pytest.raises(SiteRefused, match="not signed, and the list of sites has a key for it"):
                read()


def test_what_was_kept_of_another_key_counts_for_nothing(server: Sealed) -> None:
    """A site that made itself a new key, which the list pins now, begins its ledger anew."""
    other = Ed25519PrivateKey.generate()
    again = Sealed("YQ==", server.path.parent, {"north": other.public_key().public_bytes_raw().hex()})
    assert again.known == {}
    again.greeting(reply(again, "greeting", 1, other), 7)
    assert again.known["north"]["sequence"] == 1
