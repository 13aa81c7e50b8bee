"""Measures label by label against slow references: missing labels, missing answers, DeLong, the published intervals."""

import math

import pytest
import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.downstream import metrics
from sslmed_dist.downstream.diagnosis import measures
from sslmed_dist.downstream.predictions import compare, measure

N, L = 40, 3
CLASSES = ("abnormal", "acl", "meniscus")
SCORES = (randomness.uniform("scores", torch.arange(N)[:, None], torch.arange(L)) * 50).round() / 50  # with ties
LABELS = (randomness.uniform("labels", torch.arange(N)[:, None], torch.arange(L)) + 0.4 * SCORES > 0.7).float()
LABELS[::5, 1] = torch.nan
SCORES[3::7, 2] = torch.nan
WEIGHTS = randomness.integers(3, "weights", torch.arange(4)[:, None], torch.arange(N)).double()
PREDICTIONS = measures.as_predictions(SCORES, LABELS, torch.arange(N), torch.arange(N), CLASSES)


def rows(column: int, weights: Tensor | None = None) -> list[tuple[float, float, float]]:
    """(score, label, weight) of the exams that have both."""
    given = torch.ones(N) if weights is None else weights
    triples = zip(SCORES[:, column].tolist(), LABELS[:, column].tolist(), given.tolist(), strict=True)
    return [(s, y, w) for s, y, w in triples if not math.isnan(s) and not math.isnan(y)]


def slow_auc(triples: list[tuple[float, float, float]]) -> float:
    wins = total = 0.0
    for s, y, w in triples:
        for other, label, weight in triples:
            if y == 1 and label == 0:
                wins += w * weight * (1.0 if s > other else 0.5 if s == other else 0.0)
                total += w * weight
    return wins / total


def share(triples: list[tuple[float, float, float]], label: float | None, right: bool) -> float:
    chosen = [(s, y, w) for s, y, w in triples if label is None or y == label]
    return sum(w for s, y, w in chosen if ((s > 0.5) == (y == 1)) == right) / sum(w for _, _, w in chosen)


def slow_calibration_error(triples: list[tuple[float, float, float]]) -> float:
    total = 0.0
    for k in range(10):
        inside = [(s, y, w) for s, y, w in triples if min(int(s * 10), 9) == k]
        weight = sum(w for _, _, w in inside)
        if weight:
            probability = sum(w * s for s, _, w in inside) / weight
            total += weight * abs(probability - sum(w * y for _, y, w in inside) / weight)
    return total / sum(w for _, _, w in triples)


SLOW = {
    "auc": slow_auc,
    "accuracy": lambda triples: share(triples, None, True),
    "sensitivity": lambda triples: share(triples, 1, True),
    "specificity": lambda triples: share(triples, 0, True),
    "brier": lambda triples: sum(w * (s - y) ** 2 for s, y, w in triples) / sum(w for _, _, w in triples),
    "calibration_error": slow_calibration_error,
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("column", range(L))
def test_each_measure_is_its_slow_version_under_any_weights(name: str, column: int) -> None:
    statistic = measures.of_label(measures.STATISTICS[name], column)
    values = statistic(PREDICTIONS.scores, PREDICTIONS.labels, weights=WEIGHTS)
    for row, value in zip(WEIGHTS, values.tolist(), strict=True):
        assert value == pytest.approx(SLOW[name](rows(column, row)), abs=1e-12)


def test_the_table_has_means_and_labels_with_intervals() -> None:
    scores = {score.metric: score for score in measure(PREDICTIONS, "diagnosis", seed=0, draws=200)}
    expected = {f"{name}/{label}" for name in measures.STATISTICS for label in CLASSES} | set(measures.AVERAGED)
    assert set(scores) == expected
    for name in measures.AVERAGED:
        parts = [SLOW[name](rows(column)) for column in range(L)]
        assert scores[name].value == pytest.approx(sum(parts) / L)
    for metric, score in scores.items():
        assert score.value is not None
        if metric.startswith("calibration_error"):
            assert score.low is None and "no interval" in score.note
        else:
            assert score.low is not None and score.high is not None and score.low <= score.value <= score.high
    known = rows(1)
    counted = f"{sum(y == 1 for _, y, _ in known)} with acl = 1, {sum(y == 0 for _, y, _ in known)} with acl = 0"
    assert counted in scores["auc/acl"].note


def test_a_label_without_both_values_is_said_and_left_out_of_the_mean() -> None:
    labels = LABELS.clone()
    labels[:, 0] = 1.0
    labels[:, 2] = torch.nan
    made = measures.as_predictions(SCORES, labels, torch.arange(N), torch.arange(N), CLASSES)
    scores = {score.metric: score for score in measure(made, "diagnosis", seed=0, draws=20)}
    assert scores["auc"].value == scores["auc/acl"].value and "without abnormal, meniscus" in scores["auc"].note
    assert scores["auc/abnormal"].value is None and "undefined: 40 with abnormal = 1" in scores["auc/abnormal"].note
    assert scores["auc/meniscus"].value is None and "none with meniscus known" in scores["auc/meniscus"].note
    assert scores["specificity/abnormal"].value is None and scores["sensitivity/abnormal"].value is not None


def test_two_arms_are_compared_where_both_have_an_answer() -> None:
    other = measures.as_predictions(1 - SCORES, LABELS, torch.arange(N), torch.arange(N), CLASSES)
    other.scores[0] = torch.nan
    rows_of = {score.metric: score for score in compare(PREDICTIONS, other, "diagnosis", seed=0, draws=50)}
    triples = [row for k, row in enumerate(rows(0)) if k]
    gap = slow_auc(triples) - slow_auc([(1 - s, y, w) for s, y, w in triples])
    assert rows_of["auc/abnormal"].value == pytest.approx(gap)


def slow_delong(first: list[float], second: list[float], positive: list[bool]) -> tuple[float, float]:
    """The variance of a difference of two AUCs from its components, in loops."""

    def win(a: float, b: float) -> float:
        return 1.0 if a > b else 0.5 if a == b else 0.0

    ups, downs = ([i for i, y in enumerate(positive) if y is kind] for kind in (True, False))
    gap = {(i, j): win(first[i], first[j]) - win(second[i], second[j]) for i in ups for j in downs}
    of_up = [sum(gap[i, j] for j in downs) / len(downs) for i in ups]
    of_down = [sum(gap[i, j] for i in ups) / len(ups) for j in downs]
    mean = sum(of_up) / len(ups)
    parts = [sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values) for values in (of_up, of_down)]
    return mean, math.sqrt(sum(parts))


def test_delong_is_its_slow_version_and_agrees_with_the_bootstrap() -> None:
    count = 300
    truth = randomness.uniform("truth", torch.arange(count)) > 0.6
    first, second = (
        (randomness.normal(name, torch.arange(count)) + shift * truth).round(decimals=1)
        for name, shift in (("first", 1.2), ("second", 0.5))
    )
    found = measures.delong(first, second, truth)
    assert found is not None
    assert found == pytest.approx(slow_delong(first.tolist(), second.tolist(), truth.tolist()), abs=1e-12)
    interval = measures.delong_interval(*found)
    value, drawn = metrics.difference(measures.area, first, second, truth.float(), torch.arange(count), seed=0)
    assert value == pytest.approx(found[0]) and interval.low is not None and interval.high is not None
    assert drawn.low is not None and drawn.high is not None
    assert interval.low == pytest.approx(drawn.low, abs=0.015) and interval.high == pytest.approx(drawn.high, abs=0.015)
    assert measures.delong(first[:2], second[:2], torch.tensor([True, False])) is None


def test_the_published_way_is_narrower_by_what_it_pretends() -> None:
    """1,000 of 120: about the square root of 1000 / 120 = 2.9 times."""
    count = 120
    labels = (torch.arange(count) < 54).float()
    scores = torch.sigmoid(randomness.normal("p", torch.arange(count)) + 1.2 * labels)
    found = measures.published_way(measures.area, scores, labels, seed=0)
    assert found is not None and found.interval.low is not None and found.interval.high is not None
    honest = metrics.bootstrap(measures.area, (scores, labels), torch.arange(count), seed=0)
    assert honest.low is not None and honest.high is not None
    ratio = (honest.high - honest.low) / (found.interval.high - found.interval.low)
    assert 2.2 < ratio < 3.7
    assert found.value == pytest.approx(
        slow_auc(list(zip(scores.tolist(), labels.tolist(), [1.0] * count, strict=True))), abs=0.01
    )
    assert measures.published_way(measures.area, scores, torch.ones(count), seed=0) is None


def test_the_published_way_draws_each_side_in_its_proportion() -> None:
    """The statistic sees 450 positives and 550 negatives in every re-sampling."""
    labels = (torch.arange(120) < 54).float()

    def sides(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        assert (weights @ labels.double()).tolist() == [450.0] * 100 and weights.sum(1).tolist() == [1000.0] * 100
        return weights[:, 0]

    measures.published_way(sides, labels, labels, seed=3)
