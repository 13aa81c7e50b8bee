"""Clipping, noise and epsilon by themselves: exact bounds, the right distribution, the figures of other programs.

Noise comes from the operating system, so tests of its distribution can fail by chance: each does so with a probability
below 1e-7.
"""

import math
import os
from collections.abc import Callable
from decimal import Context, Decimal

import numpy as np
import pytest
import torch

from sslmed_dist.federation import accountant, discrete_gaussian, privacy
from sslmed_dist.federation.privacy import Mechanism
from sslmed_dist.federation.shared import Arrays

NORMAL = 6.2  # standard deviations that a normal number passes with a probability below 1e-9


def model(seed: int, scale: float = 1.0) -> Arrays:
    """Tensors of both types, with statistics and one number without axes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (7, 5), "a.scale": (), "n.running_mean": (5,), "n.running_var": (5,)}
    tensors = {key: torch.rand(shape, generator=generator) * scale for key, shape in shapes.items()}
    return {**tensors, "b.weight": torch.rand(3, generator=generator, dtype=torch.float64) * scale}


def norm(after: Arrays, before: Arrays) -> float:
    """The L2 norm of a change of the learned tensors, one number at a time."""
    keys = ("a.weight", "a.scale", "b.weight")
    pairs = [
        (a, b) for k in keys for a, b in zip(after[k].reshape(-1).tolist(), before[k].reshape(-1).tolist(), strict=True)
    ]
    return math.sqrt(math.fsum((a - b) ** 2 for a, b in pairs))


def test_draws_follow_the_discrete_gaussian() -> None:
    """Chi-square of 200,000 draws with sigma 4 against the exact probabilities."""
    count, sigma = 200_000, 4
    drawn = discrete_gaussian.gaussian(count, 2)
    weights = np.exp(-(np.arange(-200, 201) ** 2) / (2.0 * sigma**2))
    expected = count * weights / weights.sum()
    inner = slice(200 - 14, 200 + 15)  # cells with more than 30 expected draws; the rest is two cells
    observed = np.bincount(drawn + 200, minlength=401)
    cells = [(observed[inner], expected[inner]), (observed[:186], expected[:186]), (observed[215:], expected[215:])]
    pairs = list(zip(*map(np.ndarray.tolist, cells[0]), strict=True)) + [(o.sum(), e.sum()) for o, e in cells[1:]]
    square = sum((o - e) ** 2 / e for o, e in pairs)
    degrees = len(pairs) - 1
    # Laurent and Massart 2000, Lemma 1: P(chi2 >= k + 2 sqrt(k x) + 2 x) <= e^-x.
    assert square < degrees + 2 * math.sqrt(degrees * 20.8) + 2 * 20.8


def test_draws_of_the_grid_have_the_moments_and_bits_of_a_gaussian() -> None:
    count = 200_000
    drawn = discrete_gaussian.gaussian(count, privacy.POWER)
    standard = drawn / 2.0**privacy.POWER
    assert abs(standard.mean()) < NORMAL / math.sqrt(count)
    assert abs(np.square(standard).mean() - 1) < NORMAL * math.sqrt(2 / count)
    assert abs((standard**4).mean() - 3) < 1.3 * NORMAL * math.sqrt(96 / count)
    for bit in range(20):  # with sigma 2^24 the low-order bits are fair coins
        assert abs(((drawn >> bit) & 1).mean() - 0.5) < NORMAL * 0.5 / math.sqrt(count)
    assert abs((drawn[1:] * drawn[:-1] / 4.0**privacy.POWER).mean()) < NORMAL / math.sqrt(count - 1)


@pytest.mark.parametrize(("numerator", "power"), [(0, 3), (3, 3), (8, 3), (29, 3), (1, 0), (1 << 39, 40)])
def test_an_event_of_probability_exp(numerator: int, power: int) -> None:
    count, chance = 100_000, math.exp(-numerator / 2**power)
    came = discrete_gaussian.true_by_exp(np.full(count, numerator), power).mean()
    assert abs(came - chance) <= NORMAL * math.sqrt(chance * (1 - chance) / count)


# exp(-1) to 32, 96 and 160 bits.
FINE = Context(prec=80)
E32, E96, E160 = (int(FINE.multiply(Decimal(-1).exp(FINE), 1 << length)) for length in (32, 96, 160))


@pytest.mark.parametrize(
    ("further", "true"),
    [
        ([0], True),
        ([2**64 - 1], False),
        ([E96 - (E32 << 64) - 2], True),
        ([E96 - (E32 << 64) + 2], False),
        ([E96 - (E32 << 64), 0], True),  # 96 bits do not decide
        ([E96 - (E32 << 64), E160 - (E96 << 64) + 2], False),
    ],
)
def test_where_the_first_bits_do_not_decide_further_ones_do(
    monkeypatch: pytest.MonkeyPatch, further: list[int], true: bool
) -> None:
    waiting = [np.array([E32 - 1, E32, E32 + 1], np.uint32).tobytes(), *(n.to_bytes(8, "big") for n in further)]
    monkeypatch.setattr(os, "urandom", lambda size: waiting.pop(0))
    assert discrete_gaussian.true_by_exp(np.ones(3, np.int64), 0).tolist() == [True, true, False]
    assert waiting == []


def test_decimal_numbers_decide_as_floating_point_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same first bits, decided either way."""
    numerators = np.arange(0, 4000, 2)
    first = os.urandom(4 * len(numerators))
    found = []
    for margin in (discrete_gaussian.MARGIN, 2.0**40):  # with the second all are unsure
        with monkeypatch.context() as patch:
            patch.setattr(discrete_gaussian, "MARGIN", margin)
            patch.setattr(os, "urandom", lambda size: first if size > 8 else bytes(7) + b"\x05")
            found.append(discrete_gaussian.true_by_exp(numerators, 9).tolist())
    assert found[0] == found[1] and 150 < sum(found[0]) < 370


def test_noise_knows_no_seed() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0), np.random.seed(0)
        drawn.append(discrete_gaussian.gaussian(100, 24))
    assert not np.array_equal(*drawn)


def test_a_power_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="power: expected an integer from 0 to 24, got 25"):
        discrete_gaussian.gaussian(1, 25)


@pytest.mark.parametrize("noise", [0.01, 0.3, 1.0, 77.0])
@pytest.mark.parametrize("clip", [1e-6, 0.7, 3.0, 1e30])
def test_a_change_is_never_longer_than_the_bound_in_whole_numbers(clip: float, noise: float) -> None:
    mechanism = Mechanism(clip, noise)
    before, after = model(0), model(1)
    for scale in (1.0, 1e-8, 1e25):
        longer = {key: (before[key].double() + scale * (after[key] - before[key]).double()) for key in before}
        steps = mechanism.shortened(longer, before)
        total = sum(int(k) ** 2 for value in steps.values() for k in value.tolist())
        assert total <= (2**24 / noise) ** 2 * (1 + 1e-12) and total <= mechanism.most
        released = mechanism.released(steps, before)
        length, wanted = norm(released, before), min(clip, norm(longer, before))
        # Rounding towards zero loses at most one step a number; the types of the tensors round, too.
        assert length <= wanted * (1 + 1e-6) + 1e-6
        assert length >= wanted - math.sqrt(39) * mechanism.step - 1e-6 * (1 + wanted)
        for key in ("n.running_mean", "n.running_var"):
            assert torch.equal(released[key], before[key])
        assert all(released[key].dtype == before[key].dtype for key in before)


def test_a_scale_that_was_rounded_up_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "factor", lambda changes, clip: 1.01 * clip / norm(model(1), model(0)))
    mechanism = Mechanism(0.7, 1.0)
    monkeypatch.setattr(privacy, "TAKEN_BACK", 1e-3)
    steps = mechanism.shortened(model(1), model(0))
    assert 0.99 * mechanism.most < sum(int(k) ** 2 for v in steps.values() for k in v.tolist()) <= mechanism.most


def test_clipping_alone_is_a_scale_or_nothing() -> None:
    before, after = model(0), model(1)
    same = privacy.clipped(after, before, 1e6)
    assert all(torch.equal(same[key], after[key]) for key in after)
    short = privacy.clipped(after, before, 0.5)
    assert norm(short, before) == pytest.approx(0.5, rel=1e-6)
    direction = (after["b.weight"] - before["b.weight"]) / (short["b.weight"] - before["b.weight"])
    assert direction.tolist() == pytest.approx([norm(after, before) / 0.5] * 3)
    assert torch.equal(short["n.running_var"], after["n.running_var"])


def test_what_is_released_depends_on_the_data_through_the_noised_whole_numbers_alone() -> None:
    """Two updates of one site differ; given the same whole numbers, what leaves has the same bits."""
    before, mechanism = model(0), Mechanism(1.0, 1.0)
    steps = mechanism.noised(mechanism.shortened(model(1), before))
    released = mechanism.released(steps, before)
    for key, value in steps.items():
        back = (released[key].double() - before[key].double()).reshape(-1).numpy() / mechanism.step
        assert np.allclose(back, value, rtol=1e-5, atol=1e-6 / mechanism.step)
    again = mechanism.released({key: value.copy() for key, value in steps.items()}, before)
    assert all(torch.equal(again[key], released[key]) for key in before)


def test_the_noise_of_a_release_has_the_said_size() -> None:
    before = {"w": torch.zeros(40_000, dtype=torch.float64)}
    mechanism = Mechanism(0.5, 3.0)
    released = mechanism.released(mechanism.noised(mechanism.shortened(before, before)), before, count=4)
    length = float(released["w"].norm())
    assert mechanism.noise_norm(before, count=4) == pytest.approx(3.0 * 0.5 * 200 / 4)
    assert abs(length / mechanism.noise_norm(before, count=4) - 1) < NORMAL / math.sqrt(2 * 40_000) * 1.1


# (noise multiplier, answers, delta): epsilon of dp-accounting 0.6.0 (RdpAccountant) and of Opacus 1.6.0
# (get_privacy_spent), the same to 12 digits, at orders 1.01 to 511; and dp-accounting's PLDAccountant, which is exact
# for the Gaussian. Both were asked for the noise z / 2, because their neighbours differ by C and ours by 2 C.
OTHERS = {
    (10, 50, 1e-6): (7.76621728978931, 7.286080969711125),
    (2, 1, 1e-6): (5.221535386670758, 4.886554124377032),
    (1, 1, 1e-5): (10.724829265113254, 9.99725615024243),
    (30, 1000, 1e-9): (15.045036948210843, 14.394704369080875),
    (1, 100, 1e-5): (293.4319976203816, 284.3918495181676),
    (0.1, 10, 1e-5): (2300.346865612481, 2269.73539951874),
}


def exact(mu: float, delta: float) -> float:
    """The epsilon of a Gaussian whose neighbours lie mu standard deviations apart (Balle and Wang 2018, arXiv
    1805.06530, Theorem 8), by halving."""

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    low, high = 0.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        at = normal(mu / 2 - middle / mu) - math.exp(middle) * normal(-mu / 2 - middle / mu)
        low, high = (middle, high) if at > delta else (low, middle)
    return high


@pytest.mark.parametrize(("case", "epsilons"), OTHERS.items())
def test_epsilon_is_that_of_other_programs(case: tuple[float, int, float], epsilons: tuple[float, float]) -> None:
    noise, answers, delta = case
    spent = answers * accountant.rho(noise)
    found = accountant.epsilon(spent, delta)
    assert found == pytest.approx(epsilons[0], rel=3e-4) and found <= epsilons[0] * (1 + 1e-12)
    assert epsilons[1] <= found <= spent + 2 * math.sqrt(spent * math.log(1 / delta))  # exact; Bun and Steinke 2016
    if epsilons[1] < 50:
        assert exact(2 * math.sqrt(answers) / noise, delta) == pytest.approx(epsilons[1], rel=1e-3)


def test_privacy_adds_up_and_has_ends() -> None:
    assert accountant.epsilon(0.0, 1e-6) == 0.0
    assert accountant.epsilon(math.inf, 1e-6) == math.inf
    assert accountant.epsilon(1e-12, 0.01) < 1e-4
    growing = [accountant.epsilon(spent, 1e-6) for spent in (1e-6, 1e-3, 0.1, 1.0, 10.0, 1e4)]
    assert growing == sorted(growing) and growing[-1] > 1e4
    each = accountant.rho(10.0)
    assert accountant.rho(10.0) == 0.02
    count = accountant.answers_within(8.0, 1e-6, each)
    assert accountant.epsilon(count * each, 1e-6) <= 8.0 < accountant.epsilon((count + 1) * each, 1e-6)
    assert accountant.answers_within(0.01, 1e-6, 100.0) == 0


@pytest.mark.parametrize("make", [lambda: model(0), lambda: {"n.running_var": torch.ones(2), "x": torch.ones(1)}])
def test_learned_tensors_and_statistics_are_all(make: Callable[[], Arrays]) -> None:
    tensors = make()
    assert sorted(privacy.learned(tensors) + privacy.statistics(tensors)) == sorted(tensors)
    assert all(key.startswith("n.running") for key in privacy.statistics(tensors))
