"""Rounds in secure sums: the plain average, sites that are lost at any step, a server that is started again."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.opaque import PAYLOAD, record
from sslmed_dist.federation import payload, secure_research
from tests.federation import tiny

FOUR = {"partition": {"name": "iid", "count": 4}}


def settings(folder: Path, name: str, **federated: Any) -> Any:
    """Four sites that add up."""
    kept = {"keep_last": 9}  # rounds whose files stay
    return tiny.settings(folder, name=name, plan=kept, federated={**FOUR, "secure": {}, **federated})


Change = Callable[[payload.Message], bytes]


def client(lost: Mapping[int, tuple[str, tuple[int, ...], Change | None]]) -> Any:
    """The real client app, but in the round of each key of ``lost`` the nodes fail at a kind of request, or answer with
    what a change makes of their answer."""
    from clients.app import app

    def answer(message: Message, context: Context) -> Message:
        assert isinstance(app, ClientApp)
        if message.metadata.message_type == "train":
            asked = payload.unpack(bytes(message.content[PAYLOAD][PAYLOAD].data))
            kind, nodes, change = lost.get(asked.fields["round"], ("", (), None))
            if context.node_id in nodes and kind == asked.kind:
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


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedbn"])
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


LOST = (
    ("secure_train", "is excluded: its app failed"),
    ("secure_mask", "is excluded: its app failed"),
    ("secure_confirm", "did not confirm the survivors: its app failed"),
    ("secure_reveal", "is in the sum, but failed afterwards: its app failed"),
)


def test_a_site_that_is_lost_at_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its masked update has come it misses the round, afterwards it is in the sum; then it takes part again."""
    rounds = {"rounds": len(LOST) + 1}
    lost = {number: (kind, (2,), None) for number, (kind, _) in enumerate(LOST)}
    folder = tiny.federate(settings(tmp_path, "lost", **rounds), monkeypatch, client(lost))
    log = tiny.log_of(folder)
    for number, (kind, line) in enumerate(LOST, 1):
        count = 4 if kind in ("secure_confirm", "secure_reveal") else 3
        assert f"round {number}: site-1 {line}" in log and f"round {number} of 5: {count} of 4 sites" in log
    assert "round 5 of 5: 4 of 4 sites" in log and not list((folder / "secure").glob("*.masked"))

    def without(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and message.content["config"]["round"]:
            raise KeyboardInterrupt
        return failing(message, context)

    plain = settings(tmp_path, "plain", secure=None, **rounds)
    with pytest.raises(KeyboardInterrupt):
        tiny.federate(plain, monkeypatch, without)
    assert furthest(folder, plain.folder, 1) < 1e-6


def failing(message: Message, context: Context) -> Message:
    """The real app; node 2 does not train."""
    from clients.app import app

    if message.metadata.message_type == "train" and context.node_id == 2:
        raise OSError("gone")
    return app(message, context)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One round of which nothing was lost."""
    with pytest.MonkeyPatch.context() as patch:
        yield tiny.federate(settings(tmp_path_factory.mktemp("whole"), "whole", rounds=1), patch)


def test_below_the_threshold_the_run_stops_and_goes_on_with_another_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    chosen = settings(tmp_path, "few", rounds=1)
    line = r"round 1: 2 sites sent a masked update, 3 are needed \(federated.secure.threshold\); site-0: its app failed"
    with pytest.raises(RuntimeError, match=line):
        tiny.federate(chosen, monkeypatch, client({0: ("secure_mask", (1, 2), None)}))
    folder = tiny.goes_on(chosen, monkeypatch)
    assert json.loads((folder / "secure" / "attempt.json").read_text()) == {"attempt": 2, "round": 0}
    assert tiny.same(tiny.arrays(folder, 1), tiny.arrays(whole, 1))  # the masks are others, the sum is not


def test_a_quorum_above_the_threshold_is_asked_for_before_anything_is_revealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(tmp_path, "quorum", rounds=1, quorum=4)
    with pytest.raises(RuntimeError, match=r"3 sites sent a masked update, 4 are needed \(federated.quorum\)"):
        tiny.federate(chosen, monkeypatch, client({0: ("secure_mask", (3,), None)}))
    assert "round 1 of 1: 4 of 4 sites" in tiny.log_of(tiny.goes_on(chosen, monkeypatch))


@pytest.mark.parametrize("kind", ["secure_train", "secure_mask", "secure_confirm", "secure_reveal"])
def test_a_server_that_dies_at_a_step_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, kind: str
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
    assert tiny.same(tiny.arrays(folder, 1), tiny.arrays(whole, 1))


def repacked(**changes: Any) -> Change:
    """The site's answer with other fields."""
    return lambda message: payload.pack(message.kind, {**message.fields, **changes}, message.tensors)


def shorter(message: payload.Message) -> bytes:
    """A masked update that lacks a number."""
    return payload.pack(message.kind, message.fields, {"sum": message.tensors["sum"][1:]})


def wider(message: payload.Message) -> bytes:
    """A masked update of twice the bits."""
    return payload.pack(message.kind, message.fields, {"sum": message.tensors["sum"].to(torch.int64)})


BAD: list[tuple[str, Change, str]] = [
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


def test_a_bad_answer_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round for each."""
    lost = {number: (kind, (2,), change) for number, (kind, change, _) in enumerate(BAD)}
    log = tiny.log_of(tiny.federate(settings(tmp_path, "bad", rounds=len(BAD)), monkeypatch, client(lost)))
    for number, (_, _, line) in enumerate(BAD, 1):
        assert f"round {number}: site-1 is excluded: {line}" in log
        assert f"round {number} of {len(BAD)}: 3 of 4 sites" in log


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
