"""Drills with messages: a data side that has gone wrong, one that lies with its own key, a relay that adds things. The
real doors and the real server, in one process. The average is always that of the honest site, bit for bit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from torch import Tensor

from sslmed_dist.federation import payload
from sslmed_dist.federation.ledger import Ledger, verify
from sslmed_dist.federation.site_file import SiteFile
from tests.clients.test_relay import federate, open_doors, settings, two_sites
from tests.drills.seen import line_with, saw
from tests.federation import hospital, tiny

pytestmark = pytest.mark.slow

Tensors = dict[str, Tensor]
FIRST = "encoder.conv1.weight"


def run(folder: Path, client: Any = None) -> tuple[Path, SiteFile]:
    """One round of north and east; the run folder, and east."""
    chosen = settings(folder, "drill", quorum=1, rounds=1)
    sites = two_sites(folder, chosen)
    with open_doors(sites):
        done = federate(chosen, [{"socket": own.socket} for own in sites], client)
    for own in sites:
        assert verify(own.ledger).problems == ()
    return done, sites[1]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tensor]:
    """The average of a round in which east answers nothing but an error."""

    def silent(own: SiteFile, configuration: str, data: bytes) -> tuple[int, bytes]:
        if own.site == "east" and payload.unpack(data).kind == "train":
            raise RuntimeError
        return whole(own, configuration, data)

    whole = hospital.here
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hospital, "here", silent)
        return tiny.arrays(run(tmp_path_factory.mktemp("honest"))[0], 1)


def scaled(factor: float, *names: str) -> Callable[[Tensors], Tensors]:
    """All tensors, or those of these names, so many times as large."""
    return lambda tensors: tensors | {name: tensors[name] * factor for name in names or tensors}


def renamed(tensors: Tensors) -> Tensors:
    """One tensor under another name."""
    return {"jane_doe" if name == FIRST else name: tensor for name, tensor in tensors.items()}


GONE_WRONG = [
    ("NaN", scaled(float("nan"), FIRST), f"the update is not finite in {FIRST}"),
    ("x1e6", scaled(1e6), "the update is larger than this site's rules allow in encoder."),
    ("x1000 in one tensor", scaled(1e3, FIRST), "the update is further from the model before than this site's rules"),
    ("a renamed tensor", renamed, "the update has other tensors, shapes or types than the model before"),
]


@pytest.mark.parametrize(("what", "change", "reason"), GONE_WRONG, ids=[row[0] for row in GONE_WRONG])
def test_the_door_keeps_back_what_went_wrong_behind_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    honest: Mapping[str, Tensor],
    what: str,
    change: Callable[[Tensors], Tensors],
    reason: str,
) -> None:
    whole = hospital.here

    def wrong(own: SiteFile, configuration: str, data: bytes) -> tuple[int, bytes]:
        examinations, answer = whole(own, configuration, data)
        if own.site != "east" or payload.unpack(data).kind != "train":
            return examinations, answer
        done = payload.unpack(answer)
        return examinations, payload.pack("update", done.fields, change(dict(done.tensors)))

    monkeypatch.setattr(hospital, "here", wrong)
    folder, east = run(tmp_path)
    line = line_with("round 1: east is excluded: its rules refuse: ", tiny.log_of(folder))
    written = [entry["reason"] for entry in Ledger(east.ledger).entries if entry["kind"] == "refusal"]
    assert reason in line and len(written) == 1 and reason in written[0] and "jane" not in line
    assert tiny.same(tiny.arrays(folder, 1), honest)
    saw(f"{what}, by mistake", f"refusal in the ledger: {written[0]}", line)


def same(tensors: Tensors) -> Tensors:
    """As they are."""
    return tensors


LIES = [
    ("NaN", scaled(float("nan"), FIRST), {}, f"tensor {FIRST} is not finite"),
    ("x1e6", scaled(1e6), {}, f"tensor {FIRST} moved by"),
    ("x1000 in one tensor", scaled(1e3, FIRST), {}, f"tensor {FIRST} moved by"),
    ("a renamed tensor", renamed, {}, "unreadable reply (its tensors: encoder.conv1.weight is missing (2 such))"),
    ("an older model", same, {"model": "ab" * 32}, "its answer starts from another model than it was sent"),
    ("10^8 samples", same, {"samples": 10**8}, "it reports 100000000 samples, allowed 1 to "),
]


@pytest.mark.parametrize(("what", "change", "told", "reason"), LIES, ids=[row[0] for row in LIES])
def test_the_server_leaves_out_who_lies_with_a_key_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    honest: Mapping[str, Tensor],
    what: str,
    change: Callable[[Tensors], Tensors],
    told: Mapping[str, Any],
    reason: str,
) -> None:
    """East's people have changed their own program: it signs something else than it wrote to its ledger."""
    pack = payload.pack

    def lying(kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> bytes:
        if kind == "update" and fields["site"] == "east" and fields["sequence"]:  # as the door packs it
            return pack(kind, {**fields, **told}, change(dict(tensors or {})))
        return pack(kind, fields, tensors)

    monkeypatch.setattr(payload, "pack", lying)
    folder, _ = run(tmp_path)
    line = line_with("round 1: east is excluded: ", tiny.log_of(folder))
    assert reason in line
    assert tiny.same(tiny.arrays(folder, 1), honest)
    saw(f"{what}, on purpose", server=line)


def test_120_megabytes_of_records_that_nobody_knows(tmp_path: Path, honest: Mapping[str, Tensor]) -> None:
    """The site's relay adds them to a right answer."""
    from clients.app import app

    def relay(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == "train" and context.node_id == 2:
            reply.content["more"] = ArrayRecord(torch_state_dict={"pixels": torch.zeros(30_000_000)})
            reply.content["extra"] = ConfigRecord({"name": "jane doe"})
        return reply

    folder, _ = run(tmp_path, relay)
    line = line_with("round 1: east is excluded: ", tiny.log_of(folder))
    assert "its answer's records: extra is unknown (2 such)" in line
    assert tiny.same(tiny.arrays(folder, 1), honest)
    saw("120 MB of records that nobody knows", server=line)
