"""Each strategy on three fake sites against a slow reference; its state, and what cannot be."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import config
from sslmed_dist.federation import strategies
from sslmed_dist.federation.averages import CONTROL, Average, Round, shares
from sslmed_dist.federation.replies import Reply
from sslmed_dist.federation.shared import Arrays
from tests.federation import tiny

KEYS = {"w": (2, 3), "b": (4,), "n.running_var": (4,)}
SAMPLES = {"east": 10, "north": 30, "south": 60}
RATES = 0.4  # the sum of a round's learning rates

Values = dict[str, list[float]]
Step = Callable[[int, float, list[float]], float]  # (place, what was sent, the sites' values) -> the next value


def fake_rounds() -> list[list[Reply]]:
    """Three rounds of three sites, seeded."""
    generator = torch.Generator().manual_seed(7)
    return [
        [
            Reply(site, {key: torch.rand(shape, generator=generator) + 0.1 for key, shape in KEYS.items()}, count)
            for site, count in SAMPLES.items()
        ]
        for _ in range(3)
    ]


def weighted(values: list[float]) -> float:
    return sum(value * count for value, count in zip(values, SAMPLES.values(), strict=True)) / sum(SAMPLES.values())


class SlowMomentum:
    """v = 0.5 v + update, w = w + 0.8 v, one number at a time."""

    def __init__(self) -> None:
        self.v: dict[Any, float] = {}

    def __call__(self, place: Any, sent: float, values: list[float]) -> float:
        self.v[place] = 0.5 * self.v.get(place, 0.0) + weighted(values) - sent
        return sent + 0.8 * self.v[place]


class SlowAdam:
    """Algorithm 2 of the paper, one number at a time."""

    def __init__(self) -> None:
        self.m: dict[Any, float] = {}
        self.v: dict[Any, float] = {}

    def __call__(self, place: Any, sent: float, values: list[float]) -> float:
        update = weighted(values) - sent
        self.m[place] = 0.9 * self.m.get(place, 0.0) + (1 - 0.9) * update
        self.v[place] = 0.99 * self.v.get(place, 0.02**2) + (1 - 0.99) * update**2
        return sent + 0.1 * self.m[place] / (math.sqrt(self.v[place]) + 0.02)


class SlowControl:
    """SCAFFOLD with the sites' own control variates written out; three of four sites answer."""

    def __init__(self) -> None:
        self.c: dict[Any, float] = {}
        self.own: dict[Any, list[float]] = {}

    def __call__(self, place: Any, sent: float, values: list[float]) -> float:
        c, own = self.c.get(place, 0.0), self.own.get(place, [0.0] * 3)
        moved = [ci - c + (sent - y) / RATES for ci, y in zip(own, values, strict=True)]
        changes = [after - before for after, before in zip(moved, own, strict=True)]
        self.c[place], self.own[place] = c + 3 / 4 * sum(changes) / 3, moved
        return sent + 0.5 * sum(y - sent for y in values) / 3


def slow_krum(replies: list[Reply], kept: int) -> list[int]:
    """Which replies krum keeps, with bad = 0: of every reply the n - 2 nearest others."""
    flat = [[float(v) for key in ("w", "b") for v in reply.arrays[key].flatten()] for reply in replies]
    gaps = [[sum((a - b) ** 2 for a, b in zip(one, two, strict=True)) for two in flat] for one in flat]
    scores = [sum(sorted(row[:i] + row[i + 1 :])[: len(replies) - 2]) for i, row in enumerate(gaps)]
    return sorted(range(len(replies)), key=lambda i: scores[i])[:kept]


@dataclass(frozen=True)
class Case:
    """A leaf, and its slow reference: of parameters, and of statistics where that is another."""

    leaf: dict[str, Any]
    make: Callable[[], Any]
    of_statistics: Callable[[list[float]], float] = weighted


MEAN = Case({"name": "fedavg"}, lambda: lambda place, sent, values: weighted(values))
CASES = {
    "fedavg": MEAN,
    **{name: Case({"name": name}, MEAN.make) for name in ("fedprox", "fedbn", "fedema")},
    "fedu": Case({"name": "fedu", "threshold": 1.0}, MEAN.make),
    "fedavgm": Case({"name": "fedavgm", "momentum": 0.5, "lr": 0.8}, SlowMomentum),
    "fedadam": Case({"name": "fedadam", "lr": 0.1, "tau": 0.02}, SlowAdam),
    "scaffold": Case({"name": "scaffold", "lr": 0.5}, SlowControl),
    "median": Case({"name": "median"}, lambda: lambda p, s, values: statistics.median(values), statistics.median),
    "trimmed_mean": Case(
        {"name": "trimmed_mean", "share": 0.4}, lambda: lambda p, s, v: sorted(v)[1], lambda v: sorted(v)[1]
    ),
}


def built(leaf: dict[str, Any]) -> strategies.Strategy:
    return strategies.build(config.Federated(strategy=leaf, quorum=3))


def first() -> Arrays:
    return {key: torch.full(shape, 0.5, dtype=torch.float64) for key, shape in KEYS.items()}


def in_double(replies: list[Reply]) -> list[Reply]:
    return [Reply(r.site, {key: value.double() for key, value in r.arrays.items()}, r.samples) for r in replies]


def combine(average: Average, replies: list[Reply], reference: Arrays) -> Arrays:
    return average.combine(Round(replies, shares(replies), reference, 4, lambda: RATES))


def test_the_table_of_tests_is_complete() -> None:
    assert CASES.keys() | {"krum"} == strategies.STRATEGIES.keys()


@pytest.mark.parametrize("name", CASES)
def test_three_rounds_are_those_of_the_slow_reference(name: str) -> None:
    case, average, current = CASES[name], built(CASES[name].leaf).average, first()
    slow = case.make()
    average.load({}, current)
    expected = {key: value.flatten().tolist() for key, value in current.items()}
    for replies in map(in_double, fake_rounds()):
        current = combine(average, replies, current)
        for key, sent in expected.items():
            rows = [[float(reply.arrays[key].flatten()[i]) for reply in replies] for i in range(len(sent))]
            is_learned = key != "n.running_var"
            expected[key] = [
                slow((key, i), sent[i], row) if is_learned else case.of_statistics(row) for i, row in enumerate(rows)
            ]
        for key, values in expected.items():
            assert current[key].flatten().tolist() == pytest.approx(values, rel=1e-12), (key, name)
    if isinstance(slow, SlowControl):
        sent_control = average.sent()[CONTROL + "w"].flatten().tolist()
        assert sent_control == pytest.approx([slow.c["w", i] for i in range(6)], rel=1e-12)
        assert CONTROL + "n.running_var" not in average.sent()


@pytest.mark.parametrize("kept", [1, 2])
def test_krum_keeps_those_that_agree(kept: int) -> None:
    average = built({"name": "krum", "kept": kept}).average
    for replies in map(in_double, fake_rounds()):
        chosen = slow_krum(replies, kept)
        current = combine(average, replies, first())
        for key, value in current.items():
            assert torch.allclose(value, torch.stack([replies[i].arrays[key] for i in chosen]).mean(0), rtol=1e-12)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum"])
def test_a_robust_strategy_ignores_one_liar_among_five(name: str) -> None:
    """The liar sends what is within any limit of size: the model with its sign turned."""
    leaf = {"name": name, **({"bad": 1} if name == "krum" else {})}
    average = strategies.build(config.Federated(strategy=leaf, quorum=5)).average
    generator = torch.Generator().manual_seed(0)
    truth = torch.ones(50)
    replies = [Reply(str(n), {"w": truth + 0.01 * torch.randn(50, generator=generator)}, 1) for n in range(4)]
    replies.append(Reply("liar", {"w": -truth}, 1))
    assert (combine(average, replies, {"w": truth})["w"] - 1).abs().max() < 0.05
    assert (tiny.averaged(replies)["w"] - 1).abs().min() > 0.3


@pytest.mark.parametrize("name", CASES)
def test_order_type_and_bits(name: str) -> None:
    """float32 stays float32, variances stay positive, and a state that went through a dict gives the same bits."""
    average, other = (built(CASES[name].leaf).average for _ in range(2))
    current = {key: value.float() for key, value in first().items()}
    average.load({}, current)
    for replies in fake_rounds():
        other.load(
            {group: {k: v.clone() for k, v in tensors.items()} for group, tensors in average.state().items()}, current
        )
        again = combine(other, replies, current)
        current = combine(average, replies, current)
        assert tiny.same(current, again) and all(value.dtype == torch.float32 for value in current.values())
        assert bool((current["n.running_var"] > 0).all())


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "scaffold"])
@pytest.mark.parametrize("damage", ["missing", "reshaped", "infinite", "unknown"])
def test_a_damaged_state_is_named(name: str, damage: str) -> None:
    average = built(CASES[name].leaf).average
    average.load({}, first())
    state: dict[str, Any] = {group: dict(tensors) for group, tensors in average.state().items()}
    group = next(iter(state))
    if damage == "missing":
        del state[group]["w"]
    elif damage == "reshaped":
        state[group]["w"] = state[group]["w"].flatten()
    elif damage == "infinite":
        state[group]["w"] = state[group]["w"] + float("inf")
    else:
        state["more"] = {}
    with pytest.raises(ValueError, match="the strategy's state .* does not fit"):
        average.load(state, first())


@pytest.mark.parametrize(
    ("samples", "cap", "expected"),
    [
        ((10, 30, 60), 1.0, (0.1, 0.3, 0.6)),
        ((10, 30, 60), 0.5, (0.125, 0.375, 0.5)),
        ((1, 1, 998), 0.7, (0.15, 0.15, 0.7)),
        ((1, 499, 500), 0.4, (0.2, 0.4, 0.4)),
        ((10, 30, 60), 0.1, (1 / 3, 1 / 3, 1 / 3)),
        ((7,), 0.5, (1.0,)),
    ],
)
def test_no_site_weighs_more_than_its_cap(samples: tuple[int, ...], cap: float, expected: tuple[float, ...]) -> None:
    replies = [Reply(f"site-{n}", {}, count) for n, count in enumerate(samples)]
    found = shares(replies, cap)
    assert list(found.values()) == pytest.approx(list(expected))
    if cap == 1.0:  # the same bits as without a cap
        assert list(found.values()) == [count / sum(samples) for count in samples]


@pytest.mark.parametrize(
    ("federated", "line"),
    [
        (
            {"strategy": {"name": "nonsense"}},
            "federated.strategy.name: 'nonsense' is unknown; allowed: fedadam, fedavg",
        ),
        ({"strategy": {"name": "fedprox", "mu": 0.0}}, "federated.strategy.mu: expected a finite number > 0"),
        ({"strategy": {"name": "fedprox", "nu": 0.1}}, "federated.strategy.nu: unknown key; allowed: mu"),
        ({"strategy": {"name": "fedu"}}, "federated.strategy.threshold: missing"),
        ({"strategy": {"name": "trimmed_mean", "share": 0.5}}, "federated.strategy.share: expected a number above 0"),
        ({"strategy": {"name": "fedbn"}, "keep_state": False}, "fedbn needs federated.keep_state: true"),
        ({"strategy": {"name": "krum", "bad": 1}}, "federated.quorum: 2; federated.strategy krum needs at least 5"),
        ({"strategy": {"name": "median"}}, "federated.quorum: 2; federated.strategy median needs at least 3"),
        (
            {"strategy": {"name": "trimmed_mean"}},
            "federated.quorum: 2; federated.strategy trimmed_mean needs at least 5",
        ),
        ({"strategy": {"name": "scaffold"}}, "allowed: optim.name: sgd, optim.momentum: 0, plan.clip: null"),
        ({"strategy": {"name": "fedema"}}, "need federated.share: all .here encoder. and a method with a predictor"),
        ({"strategy": {"name": "fedema"}, "share": "all"}, "such as byol or simsiam .here contrastive."),
    ],
)
def test_a_strategy_that_cannot_be_is_one_line(tmp_path: Path, federated: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        tiny.settings(tmp_path, federated=federated)
