"""What a site does beside plain training, of each strategy: by hand, on a method of a few parameters."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import config
from sslmed_dist.federation import strategies
from sslmed_dist.federation.averages import CONTROL
from sslmed_dist.federation.local_terms import Turn
from sslmed_dist.federation.shared import Arrays, norm_keys, shared_keys
from sslmed_dist.methods import Method
from sslmed_dist.training import build as training_build
from tests.federation import tiny


def built(leaf: dict[str, Any]) -> strategies.Strategy:
    return strategies.build(config.Federated(strategy=leaf))


BYOL = {"name": "byol", "encoder": {"name": "resnet", "depth": 9, "width": 4, "stem": "cifar"}}
BYOL |= {part: {"name": "projection", "hidden": 16, "out": 8, "batch_norm": True} for part in ("head", "predictor")}


def turn(folder: Path, *, fresh: bool = False, moved: float = 0.1, kept: Arrays | None = None) -> Turn:
    """A site whose parameters are ``moved`` away from what it is sent."""
    chosen = tiny.settings(folder, method=BYOL, federated={"share": "all"})
    torch.manual_seed(0)
    method = training_build.build_method(chosen)
    state = method.state_dict()
    sent = {key: state[key].clone() + (0.0 if "running" in key else moved) for key in shared_keys(method, "all")}
    return Turn(method, sent, "all", fresh, kept or {})


def learned(method: Method, keys: Arrays) -> dict[str, Tensor]:
    return {key: value for key, value in method.named_parameters() if key in keys}


def test_fedprox_adds_the_squared_distance(tmp_path: Path) -> None:
    term, site = built({"name": "fedprox", "mu": 0.3}).local, turn(tmp_path)
    penalty = term.begin(site)
    assert penalty is not None and float(penalty(site.method)) == 0.0  # it starts where it was sent
    parameters = learned(site.method, dict(site.sent))
    with torch.no_grad():
        for value in parameters.values():
            value += 0.5
    loss = penalty(site.method)
    loss.backward()  # type: ignore[no-untyped-call]
    count = sum(value.numel() for value in parameters.values())
    assert float(loss) == pytest.approx(0.3 / 2 * 0.25 * count, rel=1e-5)
    for value in parameters.values():
        assert value.grad is not None and torch.allclose(value.grad, torch.full_like(value, 0.3 * 0.5), atol=1e-6)


def test_fedbn_keeps_every_tensor_of_a_norm(tmp_path: Path) -> None:
    term, site = built({"name": "fedbn"}).local, turn(tmp_path)
    own = term.own(site.method)
    assert own == norm_keys(site.method) and "encoder.bn1.running_var" in own and "encoder.bn1.weight" in own
    before = {key: value.clone() for key, value in site.method.state_dict().items()}
    site.sent = {key: value for key, value in site.sent.items() if key not in own}
    assert term.begin(site) is None
    after = site.method.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in own)
    assert all(torch.equal(after[key], value) for key, value in site.sent.items()) and len(site.sent) > 5


@pytest.mark.parametrize("fresh", [True, False])
def test_scaffold_corrects_every_gradient_by_the_control_variates(tmp_path: Path, fresh: bool) -> None:
    term, site = built({"name": "scaffold"}).local, turn(tmp_path, fresh=fresh)
    names = [key for key in site.sent if "running" not in key]
    control = {key: torch.full_like(site.sent[key], 0.25) for key in names}
    own = {} if fresh else {key: torch.full_like(site.sent[key], 0.05) for key in names}
    site.sent = {**site.sent, **{CONTROL + key: value for key, value in control.items()}}
    site.kept = own
    penalty = term.begin(site)
    assert penalty is not None
    penalty(site.method).backward()  # type: ignore[no-untyped-call]
    difference = 0.25 - (0.0 if fresh else 0.05)  # c - c_i
    for value in learned(site.method, dict.fromkeys(names, torch.zeros(0))).values():
        assert value.grad is not None and torch.allclose(value.grad, torch.full_like(value, difference))
        with torch.no_grad():
            value -= 0.08
    kept = term.end(site, rates=0.4)
    assert kept.keys() == set(names)
    for value in kept.values():  # c_i - c + (w0 - w) / rates
        assert torch.allclose(value, torch.full_like(value, -difference + 0.08 / 0.4), atol=1e-5)


def divergence(site: Turn) -> float:
    """By hand: 0.1 at every learned number of encoder and head."""
    keys = [key for key in site.sent if "running" not in key and not key.startswith("predictor.")]
    return 0.1 * math.sqrt(sum(site.sent[key].numel() for key in keys))


@pytest.mark.parametrize(("factor", "fresh", "keeps"), [(0.9, False, True), (1.1, False, False), (0.9, True, False)])
def test_fedu_keeps_its_predictor_where_it_has_diverged(
    tmp_path: Path, factor: float, fresh: bool, keeps: bool
) -> None:
    site = turn(tmp_path, fresh=fresh)
    term = built({"name": "fedu", "threshold": factor * divergence(site)}).local
    before = {key: value.clone() for key, value in site.method.state_dict().items()}
    term.begin(site)
    after = site.method.state_dict()
    for key, value in site.sent.items():
        own = keeps and key.startswith("predictor.")
        assert torch.equal(after[key], before[key] if own else value), key
    assert term.scalars() == ({} if fresh else {"divergence": pytest.approx(divergence(site), rel=1e-5)})


@pytest.mark.parametrize(
    ("leaf", "kept", "share"),
    [
        ({"tau": 0.7}, None, 0.7),  # the first mix is tau, and sets the scale
        ({"tau": 0.7}, 0.25, 0.25),  # the scale that was kept, times the divergence
        ({"scale": 1e6}, None, 1.0),  # never more than all
    ],
)
def test_fedema_mixes_by_the_divergence(
    tmp_path: Path, leaf: dict[str, float], kept: float | None, share: float
) -> None:
    site = turn(tmp_path)
    if kept is not None:
        site.kept = {"scale": torch.tensor(kept / divergence(site), dtype=torch.float64)}
    term = built({"name": "fedema", **leaf}).local
    before = {key: value.clone() for key, value in site.method.state_dict().items()}
    term.begin(site)
    after = site.method.state_dict()
    for key, value in site.sent.items():
        assert torch.allclose(after[key], share * before[key] + (1 - share) * value, atol=1e-6), key
    assert term.scalars()["own_share"] == pytest.approx(share, rel=1e-5)
    assert float(term.end(site, 1.0)["scale"]) == pytest.approx(leaf.get("scale", share / divergence(site)), rel=1e-5)
    fresh = turn(tmp_path, fresh=True)
    again = built({"name": "fedema", **leaf}).local
    again.begin(fresh)
    assert tiny.same({key: fresh.method.state_dict()[key] for key in fresh.sent}, dict(fresh.sent))
