"""Rounds in secure sums: the plain average, sites that are lost at any step, a server that is started again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.app import PAYLOAD, record
from sslmed_dist.federation import payload, secure_research
from tests.federation import tiny

FOUR = {"partition": {"name": "iid", "count": 4}}


def settings(folder: Path, name: str, **federated: Any) -> Any:
    """Four sites that add up."""
    return tiny.settings(folder, name=name, federated={**FOUR, "secure": {}, **federated})


def client(lost: dict[int, str], change: Callable[[payload.Message], bytes] | None = None, once: bool = True) -> Any:
    """The real client app, but the nodes ``lost`` fail at a kind of request, in the first round only (``once``).
    With a ``change`` they answer with that instead."""
    from clients.app import app

    def answer(message: Message, context: Context) -> Message:
        assert isinstance(app, ClientApp)
        if message.metadata.message_type == "train":
            asked = payload.unpack(bytes(message.content[PAYLOAD][PAYLOAD].data))
            now = asked.fields["round"] == 0 or not once
            if now and lost.get(context.node_id) == asked.kind:
                if change is None:
                    raise OSError("gone")
                reply = app(message, context)
                reply.content = record(change(payload.unpack(bytes(reply.content[PAYLOAD][PAYLOAD].data))))
                return reply
        return app(message, context)

    return answer


def furthest(one: Path, other: Path, number: int) -> float:
    """The largest difference in any number of the shared tensors after so many rounds."""
    first, second = tiny.arrays(one, number), tiny.arrays(other, number)
    assert first.keys() == second.keys() and all(first[key].dtype == second[key].dtype for key in first)
    return max(float((first[key].double() - second[key].double()).abs().max()) for key in first)


def scalars(run: Path) -> dict[tuple[str, str], float]:
    """What the run measured, by site and name."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {(str(row.get("site")), row["name"]): row["value"] for row in rows}


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedavgm", "fedbn"])
def test_the_average_is_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    federated = {
        "strategy": {"name": strategy},
        "rounds": 1,
        "partition": {"name": "dirichlet", "count": 4, "alpha": 1},
    }
    secure = tiny.federate(settings(tmp_path, "secure", **federated), monkeypatch)
    plain = tiny.federate(settings(tmp_path, "plain", **federated, secure=None), monkeypatch)
    assert 0.0 < furthest(secure, plain, 1) < 1e-6
    assert "single updates are not seen, so only their average is screened" in tiny.log_of(secure)
    ours, theirs = scalars(secure), scalars(plain)
    assert ours.keys() == theirs.keys() and len(ours) > 20  # of four sites, and their means
    assert all(abs(ours[key] - theirs[key]) < 1e-12 for key in ours if key[1] != "seconds")
    assert [path.name for path in (secure / "secure").iterdir()] == ["attempt.json"]


LOST = [
    ("secure_train", "round 1: site-1 is excluded: its app failed"),
    ("secure_mask", "round 1: site-1 is excluded: its app failed"),
    ("secure_confirm", "round 1: site-1 did not confirm the survivors: its app failed"),
    ("secure_reveal", "round 1: site-1 is in the sum, but failed afterwards: its app failed"),
]


@pytest.mark.parametrize(("kind", "line"), LOST)
def test_a_site_that_is_lost_at_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, line: str) -> None:
    """Before its masked update has come it misses the round, afterwards it is in the sum; then it takes part again."""
    folder = tiny.federate(settings(tmp_path, "lost"), monkeypatch, client({2: kind}))
    log = tiny.log_of(folder)
    in_sum = kind in ("secure_confirm", "secure_reveal")
    assert line in log and f"round 1 of 2: {4 if in_sum else 3} of 4 sites" in log and "round 2 of 2: 4 of 4" in log
    plain = settings(tmp_path, "plain", secure=None)
    gone = None if in_sum else failing
    assert furthest(folder, tiny.federate(plain, monkeypatch, gone), 1) < 1e-6


def failing(message: Message, context: Context) -> Message:
    """The real app; node 2 does not train."""
    from clients.app import app

    if message.metadata.message_type == "train" and context.node_id == 2:
        raise OSError("gone")
    return app(message, context)


def test_below_the_threshold_the_run_stops_and_goes_on_with_another_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(tmp_path, "few", rounds=1)
    line = r"round 1: 2 sites sent a masked update, 3 are needed \(federated.secure.threshold\); site-0: its app failed"
    with pytest.raises(RuntimeError, match=line):
        tiny.federate(chosen, monkeypatch, client({1: "secure_mask", 2: "secure_mask"}))
    folder = tiny.goes_on(chosen, monkeypatch)
    assert json.loads((folder / "secure" / "attempt.json").read_text()) == {"attempt": 2, "round": 0}
    whole = tiny.federate(settings(tmp_path, "whole", rounds=1), monkeypatch)
    assert tiny.same(tiny.arrays(folder, 1), tiny.arrays(whole, 1))  # the masks are others, the sum is not


def test_a_quorum_above_the_threshold_is_asked_for_before_anything_is_revealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(tmp_path, "quorum", rounds=1, quorum=4)
    with pytest.raises(RuntimeError, match=r"3 sites sent a masked update, 4 are needed \(federated.quorum\)"):
        tiny.federate(chosen, monkeypatch, client({3: "secure_mask"}))
    assert "round 1 of 1: 4 of 4 sites" in tiny.log_of(tiny.goes_on(chosen, monkeypatch))


@pytest.mark.parametrize("kind", ["secure_train", "secure_mask", "secure_confirm", "secure_reveal"])
def test_a_server_that_dies_at_a_step_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from clients.app import app

    def dies(message: Message, context: Context) -> Message:
        train = message.metadata.message_type == "train"
        asked = payload.unpack(bytes(message.content[PAYLOAD][PAYLOAD].data)) if train else None
        reply = app(message, context)
        if asked is not None and (asked.kind, asked.fields["round"], context.node_id) == (kind, 0, 3):
            raise KeyboardInterrupt  # the site has answered, and the server is gone
        return reply

    chosen = settings(tmp_path, "killed", rounds=1)
    with pytest.raises(KeyboardInterrupt):
        tiny.federate(chosen, monkeypatch, dies)
    folder = tiny.goes_on(chosen, monkeypatch)
    again = "its secure sum goes on with the last step" in tiny.log_of(folder)
    assert again == (kind == "secure_reveal")
    whole = tiny.federate(settings(tmp_path, "whole", rounds=1), monkeypatch)
    assert tiny.same(tiny.arrays(folder, 1), tiny.arrays(whole, 1))


def repacked(**changes: Any) -> Callable[[payload.Message], bytes]:
    """The site's answer with other fields."""
    return lambda message: payload.pack(message.kind, {**message.fields, **changes}, message.tensors)


def shorter(message: payload.Message) -> bytes:
    """A masked update that lacks a number."""
    return payload.pack(message.kind, message.fields, {"sum": message.tensors["sum"][1:]})


def wider(message: payload.Message) -> bytes:
    """A masked update of twice the bits."""
    return payload.pack(message.kind, message.fields, {"sum": message.tensors["sum"].to(torch.int64)})


BAD: list[tuple[str, Callable[[payload.Message], bytes], str]] = [
    ("secure_train", lambda _: b"nonsense", "the bytes are no message of this program"),
    ("secure_train", repacked(samples=10**9), "it reports 1000000000 samples, allowed 1 to 24"),
    ("secure_train", repacked(model="0" * 64), "it started from another model than this round's"),
    ("secure_train", repacked(scalars={"jane": 1.0}), "scalar jane is unknown"),
    ("secure_train", repacked(sealed={}), "its shares are not for the sites of this round"),
    ("secure_train", repacked(site="site-0"), "it answers another question than it was asked"),
    ("secure_mask", repacked(attempt=7), "it answers another question than it was asked"),
    ("secure_mask", shorter, "its masked update has another length or type than this round's"),
    ("secure_mask", wider, "its masked update has another length or type than this round's"),
]


@pytest.mark.parametrize(("kind", "change", "line"), BAD)
def test_a_bad_answer_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, change: Any, line: str
) -> None:
    folder = tiny.federate(settings(tmp_path, "bad", rounds=1), monkeypatch, client({2: kind}, change))
    assert f"round 1: site-1 is excluded: {line}" in tiny.log_of(folder)
    assert "round 1 of 1: 3 of 4 sites" in tiny.log_of(folder)


def test_the_average_passes_the_screen_that_single_updates_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = secure_research.local_update

    def scaled(chosen: Any, site: str, *rest: Any) -> Any:
        update, scalars = real(chosen, site, *rest)
        return ({k: v + 15.0 for k, v in update.items()} if site == "site-1" else update), scalars

    monkeypatch.setattr(secure_research, "local_update", scaled)
    with pytest.raises(RuntimeError, match="round 1: the average is refused: .* moved by .* allowed"):
        tiny.federate(settings(tmp_path, "scaled"), monkeypatch)


def test_an_update_outside_the_range_is_left_out_by_its_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = secure_research.local_update

    def far(chosen: Any, site: str, *rest: Any) -> Any:
        update, scalars = real(chosen, site, *rest)
        return ({k: v + 17.0 for k, v in update.items()} if site == "site-1" else update), scalars

    monkeypatch.setattr(secure_research, "local_update", far)
    log = tiny.log_of(tiny.federate(settings(tmp_path, "far", rounds=1), monkeypatch))
    assert "round 1: site-1 is excluded: the update leaves the range of the secure sum in encoder." in log
