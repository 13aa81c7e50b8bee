"""What a server keeps between rounds: after a kill it goes on bit for bit, whatever the strategy."""

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from sslmed_dist import checkpoint
from sslmed_dist.checkpoint import numbered
from sslmed_dist.config import Config, replace
from sslmed_dist.federation.local_round import first_sent
from sslmed_dist.federation.shared import Arrays, norm_keys
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


@dataclass
class Federated:
    """A federation of three rounds: its settings and run folder, what sites were sent, in order, and the run folder as
    it was when the second site was about to answer in the third round, which is what a killed server leaves."""

    settings: Config
    folder: Path
    sent: list[Arrays]
    killed: Path


@pytest.fixture(scope="module")
def federated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Federated]]:
    """The federation under each strategy of ``RESUMED``, run once."""
    with pytest.MonkeyPatch.context() as patch:

        @functools.cache
        def run(name: str) -> Federated:
            from clients.app import app

            place = tmp_path_factory.mktemp(name)
            changes = {**RESUMED[name], "federated": {"rounds": 3, **RESUMED[name].get("federated", {})}}
            done = Federated(tiny.settings(place, **changes), place / "runs" / "tiny", [], place / "killed")

            def client(message: Message, context: Any) -> Message:
                if message.metadata.message_type == "train":
                    done.sent.append(dict(message.content["arrays"].to_torch_state_dict()))
                    if context.node_id == 2 and message.content["config"]["round"] == 2:
                        shutil.copytree(done.folder, done.killed)
                reply: Message = app(message, context)
                return reply

            tiny.federate(done.settings, patch, client)
            return done

        yield run


@pytest.mark.parametrize("name", CHOSEN)
def test_a_killed_server_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, federated: Callable[[str], Federated], name: str
) -> None:
    """The server dies in the third round of three. What it kept (the strategy's state, the sizes of updates) and what
    the sites kept give the bits of an undisturbed run."""
    done = federated(name)
    whole = done.folder
    chosen = replace(done.settings, run={"dir": str(tmp_path)})
    shutil.copytree(done.killed, chosen.folder)
    assert list(numbered(chosen.folder / "checkpoints", "round")) == [0, 1, 2]
    resumed = tiny.goes_on(chosen, monkeypatch)
    assert "rounds 3 to 3" in tiny.log_of(resumed)
    assert tiny.same(tiny.arrays(resumed, 3), tiny.arrays(whole, 3))
    ours, theirs = (checkpoint.load(f / "checkpoints" / "round_00003.pt")["server"] for f in (resumed, whole))
    assert ours["sizes"] == theirs["sizes"] and ours["seen"] == theirs["seen"] == ["site-0", "site-1", "site-2"]
    assert all(tiny.same(ours["strategy"][group], theirs["strategy"][group]) for group in theirs["strategy"])
    assert not tiny.same(tiny.arrays(whole, 2), tiny.arrays(whole, 3))
    assert "is excluded" not in tiny.log_of(whole)


@pytest.mark.parametrize("name", ["fedavg", "fedbn", "scaffold", "fedema"])
def test_a_site_knows_what_it_is_sent_first(federated: Callable[[str], Federated], name: str) -> None:
    """From the seed alone, bit for bit: another first model is an attack."""
    done = federated(name)
    first = first_sent(done.settings)
    assert tiny.same(done.sent[0], first) and not tiny.same(done.sent[-1], first)


def test_fedbn_leaves_norms_as_they_were_before_the_first_round(federated: Callable[[str], Federated]) -> None:
    folder = federated("fedbn").folder
    first, last = tiny.arrays(folder, 0), tiny.arrays(folder, 3)
    norms = [key for key in first if ".bn" in key or "downsample.1" in key]
    assert norms and all(torch.equal(first[key], last[key]) for key in norms)
    assert not any(torch.equal(first[key], last[key]) for key in first.keys() - set(norms))
    states = [checkpoint.load(folder / "sites" / f"site-{n}" / "state_round_00003.pt")["method"] for n in range(3)]
    assert not torch.equal(states[0]["encoder.bn1.running_mean"], states[1]["encoder.bn1.running_mean"])


def test_a_site_is_measured_with_the_norms_that_never_left_it(federated: Callable[[str], Federated]) -> None:
    from sslmed_dist.verbs.federate import encoder_of

    chosen, folder = federated("fedbn").settings, federated("fedbn").folder
    last = tiny.arrays(folder, 3)
    for site in ("site-0", "site-2"):
        own = checkpoint.load(folder / "sites" / site / "state_round_00003.pt")["method"]
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


@pytest.fixture(scope="module")
def first_round(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings of a federation of two rounds under fedavgm, of which one is done."""
    chosen = tiny.settings(tmp_path_factory.mktemp("first"), federated={"strategy": {"name": "fedavgm"}})
    with pytest.MonkeyPatch.context() as patch:
        folder = tiny.federate(chosen, patch)
    (folder / "checkpoints" / "round_00002.pt").unlink()
    return chosen


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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first_round: Config,
    server: dict[str, Any],
    line: str,
) -> None:
    chosen = replace(first_round, run={"dir": str(tmp_path)})
    shutil.copytree(first_round.folder, chosen.folder)
    path = chosen.folder / "checkpoints" / "round_00001.pt"
    payload = torch.load(path, weights_only=True) | {"server": server}
    torch.save(payload, path)
    with pytest.raises(ValueError, match=rf"round_00001.pt: server: .*{line}"):
        tiny.goes_on(chosen, monkeypatch)
