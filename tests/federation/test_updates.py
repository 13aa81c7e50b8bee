"""How far a reply may move the model: attacks are refused with their numbers, drifted honest sites are not."""

import math
import re
from collections.abc import Callable

import pytest
import torch

from sslmed_dist.federated_section import Screen
from sslmed_dist.federation.replies import Reply
from sslmed_dist.federation.shared import Arrays
from sslmed_dist.federation.updates import SMALL, TOTAL, WINDOW, Plausibility, sizes

SITES = ("east", "north", "south", "west")
LAYER, SCALE, BIAS = "encoder.conv.weight", "encoder.bn.weight", "encoder.bn.bias"
MEAN, VARIANCE = "encoder.bn.running_mean", "encoder.bn.running_var"


def model() -> Arrays:
    """The first weights of a layer and a norm."""
    generator = torch.Generator().manual_seed(0)
    layer = 0.1 * torch.randn(8, 8, 3, 3, generator=generator)
    norm = {SCALE: torch.ones(8), BIAS: torch.zeros(8), MEAN: torch.zeros(8), VARIANCE: torch.ones(8)}
    return {LAYER: layer, **norm}


def honest(reference: Arrays, site: int, number: int, drift: float = 1.0) -> Reply:
    """A site's reply: it goes its own way, further than others by ``drift``, less far in later rounds; in the first
    round its variances go from 1 to what its data has, hundreds."""
    generator = torch.Generator().manual_seed(100 * number + site)
    rate = 0.3 * drift * math.cos(number * math.pi / 22)
    tensors = {}
    for key, value in reference.items():
        step = rate * max(float(value.square().mean().sqrt()), 0.1)
        tensors[key] = value + step * torch.randn(value.shape, generator=generator)
    tensors[VARIANCE] = reference[VARIANCE] * torch.exp(0.2 * torch.randn(8, generator=generator)) + 300.0 * (
        number == 0
    )
    return Reply(SITES[site], tensors, 10 + site)


def rounds(screen: Plausibility, count: int, sites: int = 4) -> Arrays:
    """Run ``count`` rounds of honest sites; returns the model after them."""
    current = model()
    for number in range(count):
        replies = [honest(current, site, number) for site in range(sites)]
        assert screen.judge(replies, current) == {}
        current = {key: torch.stack([reply.arrays[key] for reply in replies]).mean(0) for key in current}
    return current


def test_sizes_are_those_of_the_formula() -> None:
    """By hand: one tensor of each kind, and the total of the parameters."""
    before = {"w": torch.tensor([3.0, 4.0]), "b": torch.zeros(4), "n.running_var": torch.tensor([4.0])}
    before |= {"n.running_mean": torch.tensor([1.0]), "n.count": torch.tensor(3)}
    after = {"w": torch.tensor([3.0, 14.0]), "b": torch.full((4,), 0.3), "n.running_var": torch.tensor([9.0])}
    after |= {"n.running_mean": torch.tensor([7.0]), "n.count": torch.tensor(4)}
    # |w - g| = 10 of |g| = 5; 0.6 of 0.1 x 2; 5 of 4; 6 in deviations of 3; hypot(10, 0.6) of hypot(5, 0.2).
    expected = {"w": 2.0, "b": 3.0, "n.running_var": 1.25, "n.running_mean": 2.0}
    expected[TOTAL] = math.hypot(10.0, 0.6) / math.hypot(5.0, 0.2)
    assert sizes(after, before) == pytest.approx(expected, rel=1e-6)


def test_twenty_rounds_of_drifting_honest_sites_lose_none() -> None:
    """One site's updates are three times the others' throughout, as those of other data may be."""
    screen, current = Plausibility(Screen()), model()
    for number in range(20):
        replies = [honest(current, site, number, drift=3.0 if site == 2 else 1.0) for site in range(4)]
        assert screen.judge(replies, current) == {}, number
        current = {key: torch.stack([reply.arrays[key] for reply in replies]).mean(0) for key in current}


def all_times(factor: float) -> Callable[[Arrays, Arrays], Arrays]:
    return lambda tensors, _: {key: value * factor for key, value in tensors.items()}


def one_times(key: str, factor: float) -> Callable[[Arrays, Arrays], Arrays]:
    return lambda tensors, _: {**tensors, key: tensors[key] * factor}


def filled(key: str, value: float) -> Callable[[Arrays, Arrays], Arrays]:
    return lambda tensors, _: {**tensors, key: torch.full_like(tensors[key], value)}


def update_times(factor: float) -> Callable[[Arrays, Arrays], Arrays]:
    return lambda tensors, sent: {key: sent[key] + factor * (value - sent[key]) for key, value in tensors.items()}


ATTACKS = {
    "all x 1e6": all_times(1e6),
    "all x 1000": all_times(1e3),
    "layer x 1000": one_times(LAYER, 1e3),
    "scale x 1000": one_times(SCALE, 1e3),
    "shift x 1000": one_times(BIAS, 1e3),
    "layer 3e38": filled(LAYER, 3e38),
    "shift 3e38": filled(BIAS, 3e38),
    "mean 1e6": filled(MEAN, 1e6),
    "update x 1000": update_times(1e3),
}


@pytest.mark.parametrize("sites", [1, 4])
@pytest.mark.parametrize("done", [0, 3])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_in_any_round_beside_any_number_of_sites(attack: str, done: int, sites: int) -> None:
    """The first round of a single site, when there is neither history nor spread, is refused, too."""
    screen = Plausibility(Screen())
    current = rounds(screen, done, sites)
    replies = [honest(current, site, done) for site in range(sites)]
    replies[0] = Reply("east", ATTACKS[attack](dict(replies[0].arrays), current), 10)
    before = screen.state()
    refused = screen.judge(replies, current)
    assert list(refused) == ["east"]
    assert re.fullmatch(
        r"(tensor \S+|the whole model) moved by \S+ of its size, allowed .*\(federated.screen.\w+\)", refused["east"]
    )
    assert screen.state().get("east") == before.get("east")  # what was refused is no history


@pytest.mark.parametrize(("done", "sites", "rule"), [(0, 4, "spread"), (3, 1, "variance"), (3, 4, "variance")])
def test_variances_are_held_to_what_is_known_of_them(done: int, sites: int, rule: str) -> None:
    """In the first round nobody knows a variance; then only the other sites' say what is too much."""
    screen = Plausibility(Screen())
    current = rounds(screen, done, sites)
    replies = [honest(current, site, done) for site in range(sites)]
    replies[0] = Reply(
        "east",
        ATTACKS["all x 1000"]({VARIANCE: replies[0].arrays[VARIANCE]}, current)
        | {key: value for key, value in replies[0].arrays.items() if key != VARIANCE},
        10,
    )
    refused = screen.judge(replies, current)
    assert (
        list(refused) == ["east"] and f"tensor {VARIANCE}" in refused["east"] and f"screen.{rule})" in refused["east"]
    )


@pytest.mark.parametrize(("sites", "rule"), [(1, "history"), (3, "history"), (4, "history")])
def test_a_late_leap_within_the_first_limits_is_seen_by_history(sites: int, rule: str) -> None:
    screen = Plausibility(Screen())
    current = rounds(screen, 11, sites)
    replies = [honest(current, site, 10) for site in range(sites)]
    replies[0] = Reply("east", update_times(60.0)(dict(replies[0].arrays), current), 10)
    assert max(sizes(replies[0].arrays, current).values()) < Screen().tensor
    refused = screen.judge(replies, current)
    assert list(refused) == ["east"] and f"screen.{rule})" in refused["east"]


@pytest.mark.parametrize(("sites", "seen"), [(3, False), (4, True)])
def test_the_spread_counts_from_four_replies_on(sites: int, seen: bool) -> None:
    """A site without a history, in the range that holds for all, but twenty times as far as the others."""
    replies = [honest(model(), site, 0, drift=0.1) for site in range(sites)]
    replies[0] = honest(model(), 0, 0, drift=2.0)
    refused = Plausibility(Screen()).judge(replies, model())
    assert list(refused) == (["east"] if seen else [])
    if seen:
        assert f"the median of {sites} sites (federated.screen.spread)" in refused["east"]


def test_updates_too_small_to_harm_are_left_alone() -> None:
    """All others send nothing new; a hundredth of a tensor's size is no attack."""
    replies = [Reply(site, model(), 1) for site in SITES]
    tensors = model()
    tensors[LAYER] *= 1 + SMALL / 2
    replies[3] = Reply("west", tensors, 1)
    assert Plausibility(Screen()).judge(replies, model()) == {}


def test_a_screen_goes_on_from_its_state() -> None:
    """The same decisions after a restart, and no more rounds kept than the rule looks at."""
    first = Plausibility(Screen())
    current = rounds(first, 8)
    assert all(len(rows) == WINDOW for rows in first.state().values())
    second = Plausibility(Screen())
    second.load(first.state(), current)
    replies = [honest(current, site, 8) for site in range(4)]
    replies[1] = Reply("north", update_times(100.0)(dict(replies[1].arrays), current), 10)
    assert first.judge(replies, current) == second.judge(replies, current) != {}
    assert first.state() == second.state()


@pytest.mark.parametrize(
    "state",
    [
        [],
        {"north": {}},
        {"north": [{}]},
        {"north": [dict.fromkeys([*model(), TOTAL], 1)]},
        {"north": [dict.fromkeys([*model(), TOTAL], math.inf)]},
        {"north": [dict.fromkeys([*model(), TOTAL], -1.0)]},
        {"north": [dict.fromkeys([*model(), TOTAL], 1.0)] * (WINDOW + 1)},
    ],
)
def test_a_damaged_state_is_refused(state: object) -> None:
    with pytest.raises(ValueError, match="the sizes of earlier updates are damaged"):
        Plausibility(Screen()).load(state, model())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"tensor": 0.0}, "federated.screen.tensor: expected a finite number > 0, got 0"),
        ({"spread": 0.5}, "federated.screen.spread: expected a number >= 1, got 0.5"),
        ({"share": 1.5}, "federated.screen.share: expected a number from 0 to 1, got 1.5"),
    ],
)
def test_limits_that_are_none(change: dict[str, float], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Screen(**change)
