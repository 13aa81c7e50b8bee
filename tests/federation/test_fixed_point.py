"""Updates as whole numbers: nothing overflows, whatever the sites send, and the mean is as exact as it says."""

import numpy as np
import pytest
import torch

from sslmed_dist.federation.fixed_point import Ring

SENT = {"b.running_var": torch.ones(3), "a.weight": torch.linspace(-1, 1, 8).reshape(2, 4)}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("clip", [0.001, 1.0, 3.7, 16.0, 1e4])
@pytest.mark.parametrize("sites", [3, 4, 5, 7, 64, 1000])
def test_the_largest_updates_of_all_sites_do_not_overflow(bits: int, clip: float, sites: int) -> None:
    ring = Ring(bits, clip, sites)
    most = int(clip * ring.scale) + 1  # no rounding makes a number larger
    assert sites * most <= (1 << (bits - 1)) - 1
    assert 2 * sites * (clip * ring.scale + 0.5) > (1 << (bits - 1)) - 1  # twice the scale would be too much
    end = {name: torch.full_like(tensor.double(), clip) + tensor.double() for name, tensor in SENT.items()}
    sent = {name: tensor.double() for name, tensor in SENT.items()}
    within = {name: torch.minimum(value, sent[name] + clip * (1 - 1e-9)) for name, value in end.items()}
    total = ring.encode(within, sent, 1.0)
    for _ in range(sites - 1):
        total = total + ring.encode(within, sent, 1.0)
    mean = ring.mean(total, float(sites), sent)
    assert all(torch.allclose(mean[name], within[name], rtol=0, atol=clip * 1e-4) for name in sent)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_mean_is_as_exact_as_it_says(bits: int) -> None:
    ring, draw = Ring(bits, 16.0, 5), torch.Generator().manual_seed(1)
    weights = [1.0, 0.31, 0.77, 0.05, 0.5]
    updates = [
        {name: tensor + torch.randn(tensor.shape, generator=draw) for name, tensor in SENT.items()} for _ in weights
    ]
    total = np.zeros(11, ring.kind)
    for update, weight in zip(updates, weights, strict=True):
        total += ring.encode(update, SENT, weight)
    found = ring.mean(total, sum(weights), SENT)
    assert list(found) == list(SENT)
    for name in SENT:
        pairs = zip(updates, weights, strict=True)
        expected = torch.stack([update[name].double() * weight for update, weight in pairs]).sum(0) / sum(weights)
        assert float((found[name] - expected).abs().max()) <= ring.error(sum(weights)) + 1e-15
    assert ring.error(sum(weights)) < (1e-6 if bits == 32 else 1e-15)


@pytest.mark.parametrize("value", [16.01, -17.0, float("nan"), float("inf"), 3e38])
def test_an_update_outside_the_range_is_named(value: float) -> None:
    update = {name: tensor.clone() for name, tensor in SENT.items()}
    update["a.weight"][1, 2] = value + (0.0 if value > 1e30 else float(SENT["a.weight"][1, 2]))
    with pytest.raises(ValueError, match=r"leaves the range of the secure sum in a\.weight"):
        Ring(32, 16.0, 4).encode(update, SENT, 1.0)


def test_no_room_is_said() -> None:
    with pytest.raises(ValueError, match="no room"):
        _ = Ring(32, 1.0, 1 << 33).scale
