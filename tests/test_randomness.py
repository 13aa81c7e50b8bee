"""Keyed random numbers: fixed for ever, independent of the batch, uniform, and sensitive to every bit of the key."""

import math

import pytest
import torch
from torch import Tensor

from sslmed_dist import randomness

CELLS = torch.arange(65536)

# What the keyed functions gave when they were written, for the key (0, "views", n).
WORD = 5362810249035079429
KEY = -2199122266681262586
NEGATIVE = -8161145859479288728
UNIFORM = [0.2196468706771354, 0.1973403644638717, 0.14529815928500955]
NORMAL = [-0.34826522313046326, 0.4166703074861208, -1.584662170076788]
ORDER = [5, 7, 6, 3, 2, 1, 0, 4]


def test_known_vectors() -> None:
    """Any change here changes every run that was ever made. ``mix`` is pinned by SplitMix64's published outputs."""
    outputs = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    states = [randomness.signed(n * 0x9E3779B97F4A7C15) for n in (1, 2, 3)]
    assert [randomness.mix_int(state) for state in states] == [randomness.signed(output) for output in outputs]
    assert randomness.mix(torch.tensor(states)).tolist() == [randomness.signed(output) for output in outputs]
    assert randomness.word("views") == WORD
    assert randomness.key(0, "views", 7) == KEY
    assert randomness.keys(0, "views", torch.tensor([7, -1])).tolist() == [KEY, NEGATIVE]
    assert randomness.uniform(0, "views", torch.arange(3)).tolist() == UNIFORM
    assert randomness.normal(0, "views", torch.arange(3)).tolist() == pytest.approx(NORMAL, rel=1e-14)
    assert randomness.order(torch.arange(8), 0, "views").tolist() == ORDER


def test_integers_and_tensors_give_the_same_bits() -> None:
    for parts in ((0,), (3, "hue", 5), (-1, 2**63 - 1, -(2**63)), (randomness.key("a"), "b")):
        as_tensors = [torch.tensor(part) if isinstance(part, int) else part for part in parts]
        for mixed in (as_tensors, [as_tensors[0], *parts[1:]], [*parts[:-1], as_tensors[-1]]):
            assert randomness.keys(*mixed).item() == randomness.key(*parts)
    assert randomness.key(2**64 + 5) == randomness.key(5)


def test_a_draw_does_not_depend_on_its_batch() -> None:
    ids = randomness.integers(1 << 40, "ids", torch.arange(64))
    whole = randomness.normal(1, "views", ids, 3)
    assert torch.equal(whole[10:20], randomness.normal(1, "views", ids[10:20], 3))
    assert torch.equal(whole[7], randomness.normal(1, "views", int(ids[7]), 3))
    table = randomness.uniform(1, ids[:, None], torch.arange(5))
    assert table.shape == (64, 5) and torch.equal(table[:, 2], randomness.uniform(1, ids, 2))


def test_global_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    randomness.normal("a", CELLS)
    assert torch.equal(torch.get_rng_state(), before)


def chi_square(draws: Tensor, bins: int) -> float:
    """Pearson's statistic of counts against equal ones, in standard deviations above its mean."""
    counts = torch.bincount((draws * bins).long(), minlength=bins).double()
    expected = draws.numel() / bins
    statistic = ((counts - expected).square() / expected).sum().item()
    return (statistic - (bins - 1)) / math.sqrt(2 * (bins - 1))


@pytest.mark.parametrize("parts", [(CELLS,), (CELLS, 0), (0, "hue", CELLS), (CELLS << 32,), (CELLS, "hue", 1)])
def test_uniform_over_consecutive_keys(parts: tuple[int | str | Tensor, ...]) -> None:
    draws = randomness.uniform(*parts)
    assert draws.dtype == torch.float64 and draws.min() >= 0.0 and draws.max() < 1.0
    assert abs(chi_square(draws, 256)) < 4.0
    assert abs(chi_square((draws * 256) % 1.0, 256)) < 4.0  # the lower bits
    pairs = (draws[0::2] * 16).long() * 16 + (draws[1::2] * 16).long()
    assert abs(chi_square(pairs.double() / 256, 256)) < 4.0  # neighbours


def test_neighbouring_streams_are_uncorrelated() -> None:
    streams = [(0, CELLS), (1, CELLS), (CELLS, 0), (0, CELLS + 1), (0, "a", CELLS), (0, "b", CELLS)]
    draws = torch.stack([randomness.uniform(*parts) for parts in streams])
    correlation = torch.corrcoef(draws) - torch.eye(len(streams))
    assert correlation.abs().max() < 5.0 / math.sqrt(CELLS.numel())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_bit_of_a_key_flips_half_of_the_output(place: int) -> None:
    parts = [randomness.integers(1 << 53, "avalanche", part, torch.arange(2048)) for part in range(3)]
    plain = randomness.keys(*parts)
    output = torch.arange(64)
    for bit in range(64):
        flipped = list(parts)
        flipped[place] = parts[place] ^ randomness.signed(1 << bit)
        changed = ((plain ^ randomness.keys(*flipped))[:, None] >> output) & 1
        share = changed.double().mean(0)
        assert (share - 0.5).abs().max() < 0.5 * 5.0 / math.sqrt(2048), bit


def test_no_collisions_between_shapes_of_keys() -> None:
    ids = torch.arange(1, 2000)
    everything = torch.cat([randomness.keys(*parts) for parts in ((ids,), (0, ids), (ids, 0), (0, 0, ids), ("a", ids))])
    assert everything.unique().numel() == everything.numel()


def test_order_of_a_subset_is_the_order_of_the_whole_without_the_others() -> None:
    ids = torch.arange(1000) * 3
    whole = ids[randomness.order(ids, 1, "epoch", 4)]
    assert whole.sort().values.equal(ids) and not whole.equal(ids)
    kept = ids[randomness.uniform("subset", ids) < 0.3]
    inside = torch.isin(whole, kept)
    assert kept[randomness.order(kept, 1, "epoch", 4)].equal(whole[inside])
    shuffled = ids.flip(0)
    assert shuffled[randomness.order(shuffled, 1, "epoch", 4)].equal(whole)
    assert not ids[randomness.order(ids, 1, "epoch", 5)].equal(whole)


def test_integers_cover_their_range_and_no_more() -> None:
    draws = randomness.integers(7, "range", CELLS)
    assert draws.dtype == torch.int64 and draws.unique().tolist() == list(range(7))
    bounds = torch.arange(1, 65)
    assert bool((randomness.integers(bounds, "range", torch.arange(64)) < bounds).all())


def test_bounds_and_moments() -> None:
    between = randomness.uniform_between(-2.0, 3.0, "between", CELLS)
    assert between.min() >= -2.0 and between.max() <= 3.0 and between.mean().item() == pytest.approx(0.5, abs=0.03)
    normal = randomness.normal("normal", CELLS)
    assert bool(torch.isfinite(normal).all())
    moments = [normal.mean().item(), normal.var().item(), normal.pow(3).mean().item(), normal.pow(4).mean().item()]
    assert moments == pytest.approx([0.0, 1.0, 0.0, 3.0], abs=0.1)
