"""Health without labels: the numbers, that measuring them changes no bit, and which round they call the best."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from sslmed_dist import checkpoint, config
from sslmed_dist.federation import health
from sslmed_dist.federation.health import BestRound
from sslmed_dist.federation.local_round import initial_arrays, local_update
from sslmed_dist.federation.messages import HEALTH
from sslmed_dist.federation.round_files import save_round
from sslmed_dist.federation.sites import simulated_sites
from sslmed_dist.training import build, pretrained
from tests.federation import tiny

ALIGNMENT, UNIFORMITY = HEALTH[3], HEALTH[2]


def test_measuring_changes_no_bit_of_the_training(tmp_path: Path) -> None:
    plain = tiny.settings(tmp_path)
    asked = config.replace(plain, federated={"health": 32})
    assert config.fingerprint(plain) == config.fingerprint(asked)
    data = simulated_sites(plain)[0].pretrain
    first = initial_arrays(plain)
    shared, scalars = local_update(plain, "site-0", data, 0, first, tmp_path / "plain")
    again, told = local_update(asked, "site-0", data, 0, first, tmp_path / "asked")
    assert tiny.same(shared, again)
    assert {name: value for name, value in told.items() if name not in HEALTH} == scalars
    assert set(told) - set(scalars) == set(HEALTH)


def test_the_numbers_are_those_of_a_plain_computation(tmp_path: Path) -> None:
    chosen = config.replace(tiny.settings(tmp_path), federated={"health": 24})
    data, encoder = simulated_sites(chosen)[0].pretrain, pretrained.untrained(chosen)
    told = health.measure(chosen, data, encoder)
    assert told == health.measure(chosen, data, encoder)
    positions = health.randomness.order(data.ids, chosen.run.seed, "health")[:24]
    batch = data.fetch(positions, seed=0, epoch=0, draw=torch.zeros(24, dtype=torch.int64))
    encoder.eval()
    with torch.no_grad():
        x = encoder(build.standard_views(chosen, data)(batch, seed=0, epoch=0)["views_0"]).double()
        views = build.build_views(chosen, data)(batch, seed=0, epoch=0)
        pair = [functional.normalize(encoder(views[f"views_{n}"]).double(), dim=1) for n in (0, 1)]
    x = functional.normalize(x, dim=1)
    squares = [float((x[i] - x[j]).square().sum()) for i in range(24) for j in range(24) if i != j]
    uniformity = torch.tensor(squares).mul(-2).exp().mean().log()
    assert told[UNIFORMITY] == pytest.approx(float(uniformity), abs=1e-6)
    assert told[ALIGNMENT] == pytest.approx(float((pair[0] - pair[1]).square().sum(dim=1).mean()), abs=1e-6)
    shares = torch.linalg.svdvals(x) / torch.linalg.svdvals(x).sum()
    assert told[HEALTH[1]] == pytest.approx(float(torch.special.entr(shares).sum().exp()), rel=1e-4)
    assert told[HEALTH[0]] == pytest.approx(float(x.std(dim=0, correction=0).mean() * x.shape[1] ** 0.5), rel=1e-6)


@pytest.mark.parametrize(("given", "read"), [(True, 256), (False, None), (None, None), (64, 64)])
def test_how_many_images(given: Any, read: Any) -> None:
    assert config.Federated(health=given).health == read


@pytest.mark.parametrize("given", [0, 15, 2049, -1])
def test_too_few_or_too_many_images_are_a_mistake(given: int) -> None:
    with pytest.raises(ValueError, match="federated.health: expected a number from 16 to 2048"):
        config.Federated(health=given)


def test_the_file_of_the_best_round_stays(tmp_path: Path) -> None:
    chosen = tiny.settings(tmp_path)
    for number in range(7):
        save_round(tmp_path, number, initial_arrays(chosen), chosen, keep=2 if number > 2 else None)
    assert list(checkpoint.numbered(tmp_path / "checkpoints", "round")) == [0, 2, 5, 6]


def told(alignment: float, uniformity: float) -> dict[str, float]:
    """What a site says."""
    return {ALIGNMENT: alignment, UNIFORMITY: uniformity, "loss": 9.0}


def test_the_best_round_by_the_stated_rule() -> None:
    best, samples = BestRound(), {"a": 100, "b": 300}
    assert best.number is None
    best.add(0, {"a": told(0, -9), "b": told(0, -9)}, samples)  # first weights are no candidate
    best.add(1, {"a": {"loss": 1.0}}, samples)  # nobody says it
    assert best.number is None
    best.add(1, {"a": told(0.5, -1.0), "b": told(0.5, -2.5)}, samples)  # (-0.5 + 3 x -2) / 4
    best.add(2, {"a": told(0.5, -2.5), "b": told(0.5, -2.0)}, samples)  # (-2 + 3 x -1.5) / 4
    assert best.sums[1] == (2, -1.625) and best.number in (1, 2) and best.sums[2] == (2, -1.625)
    assert best.number == 2  # of equals the later one
    best.add(3, {"a": told(0.0, -4.0)}, samples)  # one site alone is not compared with two
    assert best.number == 2
    again = BestRound()
    again.load(best.state())
    assert again == best
    for damaged in (None, [], {"x": [2.0, 1.0]}, {"1": [2.0]}, {"1": [2.0, "low"]}, {"1": 3}):
        with pytest.raises(ValueError, match="damaged"):
            again.load(damaged)
