"""Secure sums of hospitals of two processes, from the server through relay and socket to the door and back."""

import json
from pathlib import Path

import pytest

from clients.opaque import PAYLOAD
from sslmed_dist.federation import payload, site_key
from sslmed_dist.federation.ledger import Anchor, Ledger, verify
from tests.clients.test_relay import federate, open_doors
from tests.federation import hospital, tiny

NAMES = ("east", "north", "south")


def test_three_hospitals_give_the_bits_of_research(tmp_path: Path) -> None:
    three = {"partition": {"name": "iid", "count": 3}, "secure": {}}
    chosen = tiny.settings(tmp_path, name="hospitals", federated=three)
    data = Path(str(chosen.data["root"]))
    keys = {}
    for name in NAMES:
        keys[name] = site_key.load(Path(hospital.site(tmp_path / name, data, name=name).state) / "key").peer
    sites = []
    for name in NAMES:
        others = ", ".join(f"{peer}: {key!r}" for peer, key in keys.items() if peer != name)
        sites.append(hospital.site(tmp_path / name, data, {"peers: {}": f"peers: {{{others}}}"}, name))
        hospital.accept(sites[-1], chosen)
    with open_doors(sites):
        folder = federate(chosen, [{"socket": own.socket} for own in sites])
    research = tiny.settings(tmp_path, name="research", federated=three)
    nodes = [{"site": name, "data-root": str(data), "state-dir": str(tmp_path / "state")} for name in NAMES]
    assert tiny.same(tiny.arrays(folder, 2), tiny.arrays(federate(research, nodes), 2))
    known = json.loads((folder / "sites.json").read_text())
    for own in sites:
        assert verify(own.ledger, Anchor.parse(known[own.site]["anchor"])).problems == ()
        said = [entry["message"] for entry in Ledger(own.ledger).entries if entry["kind"] == "answer"]
        assert said == ["greeting", *[f"secure_{w}" for w in ("shares", "masked", "confirmed", "revealed")] * 2]
    assert "did not arrive" not in tiny.log_of(folder) and "round 2 of 2: 3 of 3 sites" in tiny.log_of(folder)


def test_a_relay_cannot_answer_for_the_data_side(tmp_path: Path) -> None:
    """One site's relay sends back what it was asked; the others go on where they are enough."""
    from clients.app import app

    three = {"partition": {"name": "iid", "count": 3}, "secure": {}, "rounds": 1}
    chosen = tiny.settings(tmp_path, name="relay", federated=three)
    data = Path(str(chosen.data["root"]))
    own = hospital.site(tmp_path / "east", data, name="east")
    hospital.accept(own, chosen)
    research = {"data-root": str(data), "state-dir": str(tmp_path / "state")}
    nodes = [{"socket": own.socket}, *({"site": name, **research} for name in ("north", "south"))]

    def relay(message, context):  # type: ignore[no-untyped-def]
        reply = app(message, context)
        if message.metadata.message_type == "train" and context.node_id == 1:
            fields = payload.unpack(memoryview(bytes(reply.content[PAYLOAD][PAYLOAD].data))[48:-64]).fields
            seen.append(str(fields.get("reason")))
            reply.content = message.content
        return reply

    seen: list[str] = []
    line = "round 1: 2 sites sent shares, 3 are needed .*east: the bytes are no answer of a site's data side"
    with open_doors([own]), pytest.raises(RuntimeError, match=line):
        federate(chosen, nodes, relay)
    assert seen == ["this site knows no peer key of north (peers)"]
