"""What a server keeps between rounds: after a kill it goes on bit for bit, whatever the strategy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from sslmed_dist import checkpoint
from sslmed_dist.federation.local_round import first_sent
from sslmed_dist.federation.shared import norm_keys
from sslmed_dist.training import build as training_build
from tests.federation import tiny

BYOL = {"name": "byol", "encoder": {"name": "resnet", "depth": 9, "width": 4, "stem": "cifar"}}
BYOL |= {part: {"name": "projection", "hidden": 16, "out": 8, "batch_norm": True} for part in ("head", "predictor")}

RESUMED: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"federated": {"strategy": {"name": "fedprox", "mu": 0.5}}},
    "fedbn": {"federated": {"strategy": {"name": "fedbn"}}},
    "fedadam": {"federated": {"strategy": {"name": "fedadam"}}},
    "fedavgm": {"federated": {"strategy": {"name": "fedavgm"}}},
    "scaffold": {"federated": {"strategy": {"name": "scaffold"}}, "optim": {"momentum": 0.0}},
    "median": {"federated": {"strategy": {"name": "median"}, "quorum": 3}},
    "krum": {"federated": {"strategy": {"name": "krum"}, "quorum": 3}},
    "fedu": {"method": BYOL, "federated": {"strategy": {"name": "fedu", "threshold": 0.01}, "share": "all"}},
    "fedema": {"method": BYOL, "federated": {"strategy": {"name": "fedema"}, "share": "all"}},
}


# Those without a state of their own, or with one like another's, are as any other.
ALIKE = ("fedprox", "fedavgm", "median", "krum", "fedu")
CHOSEN = [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in RESUMED]


@pytest.mark.parametrize("name", CHOSEN)
def test_a_killed_server_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The server dies in the third round of three. What it kept (the strategy's state, the sizes of updates) and what
    the sites kept give the bits of an undisturbed run."""
    changes = {**RESUMED[name], "federated": {"rounds": 3, **RESUMED[name].get("federated", {})}}
    whole = tiny.federate(tiny.settings(tmp_path, "whole", **changes), monkeypatch)
    chosen = tiny.settings(tmp_path, "killed", **changes)

    class Killed(BaseException):
        """Not an error that anybody catches."""

    def kill(reply: Message) -> None:
        raise Killed

    with pytest.raises(Killed):
        tiny.federate(chosen, monkeypatch, tiny.altered(kill, rounds=(2,)))
    resumed = tiny.goes_on(chosen, monkeypatch)
    assert tiny.same(tiny.arrays(resumed, 3), tiny.arrays(whole, 3))
    ours, theirs = (checkpoint.load(f / "checkpoints" / "round_00003.pt")["server"] for f in (resumed, whole))
    assert ours["sizes"] == theirs["sizes"] and ours["seen"] == theirs["seen"] == ["site-0", "site-1", "site-2"]
    assert all(tiny.same(ours["strategy"][group], theirs["strategy"][group]) for group in theirs["strategy"])
    assert not tiny.same(tiny.arrays(whole, 2), tiny.arrays(whole, 3))
    assert "is excluded" not in tiny.log_of(whole)


@pytest.mark.parametrize("name", ["fedavg", "fedbn", "scaffold", "fedema"])
def test_a_site_knows_what_it_is_sent_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From the seed alone, bit for bit: another first model is an attack."""
    from clients.app import app

    chosen = tiny.settings(tmp_path, **RESUMED[name])
    sent: list[Any] = []

    def client(message: Message, context: Any) -> Message:
        if message.metadata.message_type == "train":
            sent.append(dict(message.content["arrays"].to_torch_state_dict()))
        reply: Message = app(message, context)
        return reply

    tiny.federate(chosen, monkeypatch, client)
    assert tiny.same(sent[0], first_sent(chosen)) and not tiny.same(sent[-1], first_sent(chosen))


def test_fedbn_leaves_norms_as_they_were_before_the_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.federate(tiny.settings(tmp_path, **RESUMED["fedbn"]), monkeypatch)
    first, last = tiny.arrays(folder, 0), tiny.arrays(folder, 2)
    norms = [key for key in first if ".bn" in key or "downsample.1" in key]
    assert norms and all(torch.equal(first[key], last[key]) for key in norms)
    assert not any(torch.equal(first[key], last[key]) for key in first.keys() - set(norms))
    states = [checkpoint.load(folder / "sites" / f"site-{n}" / "state_round_00002.pt")["method"] for n in range(3)]
    assert not torch.equal(states[0]["encoder.bn1.running_mean"], states[1]["encoder.bn1.running_mean"])


def test_a_site_is_measured_with_the_norms_that_never_left_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslmed_dist.verbs.federate import encoder_of

    chosen = tiny.settings(tmp_path, **RESUMED["fedbn"])
    folder = tiny.federate(chosen, monkeypatch)
    last = tiny.arrays(folder, 2)
    for site in ("site-0", "site-2"):
        own = checkpoint.load(folder / "sites" / site / "state_round_00002.pt")["method"]
        norms = norm_keys(training_build.build_method(chosen))
        for key, value in encoder_of("federated", site, chosen).state_dict().items():
            if f"encoder.{key}" in last:  # counters are nobody's
                expected = own if f"encoder.{key}" in norms else last
                assert torch.equal(value, expected[f"encoder.{key}"]), key
    with pytest.raises(ValueError, match="no state of this site, which alone has its norms"):
        encoder_of("federated", "site-9", chosen)


def test_scaffold_with_one_site_is_plain_descent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its control variate is the server's, so nothing is corrected."""
    alone = {"partition": {"name": "iid", "count": 1}, "quorum": 1, "rounds": 3}
    runs = []
    for name in ("fedavg", "scaffold"):
        changes = {"optim": {"momentum": 0.0}, "federated": {**alone, "strategy": {"name": name}}}
        runs.append(tiny.federate(tiny.settings(tmp_path, name, **changes), monkeypatch))
    first, second = (tiny.arrays(folder, 3) for folder in runs)
    assert all(torch.allclose(first[key], second[key], rtol=1e-3, atol=1e-4) for key in first)


@pytest.mark.parametrize(
    ("server", "line"),
    [
        ({}, "it holds no state of the strategy fedavgm"),
        ({"more": 1}, "unknown parts"),
        ({"strategy": {"velocity": {}}, "sizes": {}, "seen": []}, "the strategy's state velocity does not fit"),
        ({"strategy": 3}, "damaged or foreign"),
    ],
)
def test_a_round_without_the_servers_state_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: dict[str, Any], line: str
) -> None:
    chosen = tiny.settings(tmp_path, federated={"strategy": {"name": "fedavgm"}})
    folder = tiny.federate(chosen, monkeypatch)
    path = folder / "checkpoints" / "round_00002.pt"
    path.unlink()
    path = path.with_name("round_00001.pt")
    payload = torch.load(path, weights_only=True) | {"server": server}
    torch.save(payload, path)
    with pytest.raises(ValueError, match=rf"round_00001.pt: server: .*{line}"):
        tiny.goes_on(chosen, monkeypatch)
