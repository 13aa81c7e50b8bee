"""Geometry of features against loops over pairs, analytic values, chunks, intervals, and what has no value."""

import math
from collections.abc import Iterator
from itertools import permutations

import pytest
import torch
from torch import Tensor

from sslmed_dist import registry
from sslmed_dist.downstream import EVALUATORS, Features, Representation, Score, SplitFeatures, alignment, representation
from sslmed_dist.downstream.rows import compared_rows, pooled


def split(n: int, seed: int = 0, multi: bool = False) -> Features:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=generator) + 0.7
    labels = torch.arange(n) % 3
    truth = torch.nn.functional.one_hot(labels, 3).float() if multi else labels
    return Features(x, truth, torch.arange(n) // 2, torch.arange(n))


def made_up(test: Features, multi: bool = False) -> SplitFeatures:
    return SplitFeatures(split(0), split(0), test, "multi" if multi else "single", ("a", "b", "c"))


def measured(test: Features, multi: bool = False) -> dict[str, Score]:
    return {score.metric: score for score in Representation()(made_up(test, multi))}


def unit(x: Tensor) -> list[list[float]]:
    return [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in x.double().tolist()]


def pairs(test: Features) -> Iterator[tuple[bool, float, float]]:
    """(same class, inner product, squared distance) of every ordered pair of different samples."""
    rows = unit(test.x)
    for i, j in permutations(range(len(rows)), 2):
        inner = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
        distance = sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True))
        yield bool(test.labels[i] == test.labels[j]), inner, distance


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_measures_equal_the_loop_over_pairs() -> None:
    test = split(17)
    found = measured(test)
    assert list(found) == ["uniformity", "inter_class_uniformity", "tolerance"]
    every = list(pairs(test))
    expected = {
        "uniformity": math.log(mean([math.exp(-2 * d) for _, _, d in every])),
        "inter_class_uniformity": math.log(mean([math.exp(-2 * d) for same, _, d in every if not same])),
        "tolerance": mean([inner for same, inner, _ in every if same]),
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-12), name
        assert (found[name].n, found[name].groups) == (17, 9)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured(split(23))
    monkeypatch.setattr(representation, "CHUNK", 5 * 23)
    for name, score in measured(split(23)).items():
        for part in ("value", "low", "high"):
            assert getattr(score, part) == pytest.approx(getattr(whole[name], part), rel=1e-12)


def test_analytic_values() -> None:
    """Collapse gives 0, 0, 1; one axis per class gives e^(-4) between classes; opposite classes reach -8."""
    labels, numbers = torch.tensor([0, 0, 1, 1]), torch.arange(4)

    def values(x: Tensor) -> list[float | None]:
        return [score.value for score in measured(Features(x, labels, numbers, numbers)).values()]

    assert values(torch.full((4, 3), 2.0)) == pytest.approx([0.0, 0.0, 1.0])
    axes = torch.eye(2)[labels] * torch.tensor([[1.0], [5.0], [0.1], [3.0]])
    assert values(axes) == pytest.approx([math.log((4 + 8 * math.exp(-4)) / 12), -4.0, 1.0])
    assert values((1.0 - 2.0 * labels)[:, None]) == pytest.approx([math.log((4 + 8 * math.exp(-8)) / 12), -8.0, 1.0])


def test_the_interval_is_that_of_a_loop_over_resampled_pairs() -> None:
    """Weights count each pair of different samples as often as both are drawn."""
    test, draws = split(9), torch.tensor([[2, 0, 1, 1, 0, 3, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]]).double()
    x = torch.nn.functional.normalize(test.x.double(), dim=1)
    for times, *found in zip(
        draws.tolist(),
        representation.uniformity(x, test.labels, weights=draws),
        representation.inter_class_uniformity(x, test.labels, weights=draws),
        representation.tolerance(x, test.labels, weights=draws),
        strict=True,
    ):
        weight = [times[i] * times[j] for i, j in permutations(range(9), 2)]
        every = list(pairs(test))
        kernel = [math.exp(-2 * d) for _, _, d in every]
        other = [w * (not same) for w, (same, _, _) in zip(weight, every, strict=True)]
        alike = [w * same for w, (same, _, _) in zip(weight, every, strict=True)]
        expected = [
            math.log(sum(w * k for w, k in zip(weight, kernel, strict=True)) / sum(weight)),
            math.log(sum(w * k for w, k in zip(other, kernel, strict=True)) / sum(other)),
            sum(w * inner for w, (_, inner, _) in zip(alike, every, strict=True)) / sum(alike),
        ]
        assert [float(value) for value in found] == pytest.approx(expected, rel=1e-12)


def test_many_samples_have_no_interval_of_the_uniformities(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(score.low is not None for score in measured(split(12)).values())
    monkeypatch.setattr(representation, "LIMIT", 11)
    found = measured(split(12))
    assert found["uniformity"].low is None
    assert found["uniformity"].note == "no interval: 12 samples, a bootstrap of all pairs only up to 11"
    assert found["inter_class_uniformity"].low is None and found["tolerance"].low is not None
    first, second = (Representation().predict(made_up(split(12, seed))) for seed in (0, 1))
    rows = compared_rows({"representation": first}, {"representation": second}, arms=("a", "b"), site="all", seed=0)
    values = [measured(split(12, seed))["uniformity"].value for seed in (0, 1)]
    assert rows[0].score.value == pytest.approx((values[0] or 0) - (values[1] or 0)) and rows[0].score.low is None
    assert rows[2].score.low < rows[2].score.value < rows[2].score.high


def test_several_labels_have_a_uniformity_alone() -> None:
    assert list(measured(split(8, multi=True), multi=True)) == ["uniformity"]


def test_what_has_no_pairs_is_said() -> None:
    lonely = split(3)
    assert measured(lonely)["tolerance"].note == "undefined: no class has two test samples"
    alike = Features(lonely.x, torch.zeros(3, dtype=torch.int64), lonely.groups, lonely.index)
    assert measured(alike)["inter_class_uniformity"].note == "undefined: all test samples are of one class"
    assert measured(split(1))["uniformity"].note == "undefined: fewer than two test samples"
    assert measured(split(1))["uniformity"].value is None


def test_sites_are_not_pooled() -> None:
    made = {"representation": Representation().predict(made_up(split(6)))}
    assert pooled([made, made]) == {}


def test_built_from_a_configuration() -> None:
    assert isinstance(registry.build(EVALUATORS, "representation", "evaluate.protocols"), Representation)


def test_alignment_is_the_mean_squared_distance_of_unit_features() -> None:
    first, second = split(7).x, split(7, 1).x
    expected = mean(
        [sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) for rows in zip(unit(first), unit(second), strict=True)]
    )
    assert alignment(first, second) == pytest.approx(expected, rel=1e-12)
    assert alignment(first, 3 * first) == pytest.approx(0.0, abs=1e-12)
    assert alignment(first, -first) == pytest.approx(4.0)
    with pytest.raises(ValueError, match=r"expected two equal matrices \(N, D\), got \(7, 5\) and \(6, 5\)"):
        alignment(first, second[:6])
