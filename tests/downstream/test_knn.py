"""Nearest neighbours against a slow loop."""

import math

import pytest
import torch
from torch import Tensor

from sslmed_dist import registry
from sslmed_dist.downstream import EVALUATORS, KNN, Features, SplitFeatures, knn


def split(n: int, classes: int, seed: int, multi: bool = False) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(99))
    x = centres[labels] + torch.randn(n, 6, generator=generator)
    truth = (torch.rand(n, classes, generator=generator) < 0.4).float() if multi else labels
    return Features(x, truth, torch.arange(n), torch.arange(n) + 1000 * seed)


def made_up(classes: int = 3, multi: bool = False) -> SplitFeatures:
    train, val, test = (split(n, classes, seed, multi) for seed, n in enumerate((60, 0, 25)))
    return SplitFeatures(train, val, test, "multi" if multi else "single", tuple(map(str, range(classes))))


def slow(
    splits: SplitFeatures, k: int, temperature: float, metric: str, weights: str = "", normalise: bool = False
) -> list[list[float]]:
    """One query, one neighbour, one class at a time, in double precision."""
    rows = []
    for query in splits.test.x.double():
        near = []
        for number, other in enumerate(splits.train.x.double()):
            if normalise:
                query, other = query / query.norm(), other / other.norm()
            if metric == "cosine":
                near.append((float(query @ other / (query.norm() * other.norm())), number))
            else:
                near.append((-float((query - other).square().sum()), number))
        votes = [0.0] * len(splits.classes)
        total = 0.0
        for similarity, number in sorted(near, reverse=True)[:k]:
            weight = math.exp(similarity / temperature) if metric == "cosine" and weights != "uniform" else 1.0
            if weights == "distance":
                weight = 1 / math.sqrt(-similarity)
            total += weight
            for name in range(len(votes)):
                label = splits.train.labels[number]
                votes[name] += weight * (float(label[name]) if label.ndim else float(label == name))
        rows.append([vote / total for vote in votes])
    return rows


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize(("k", "metric"), [(1, "l2"), (10, "l2"), (60, "l2"), (1, "cosine"), (20, "cosine")])
def test_votes_equal_the_slow_loop(k: int, metric: str, multi: bool) -> None:
    splits = made_up(multi=multi)
    made = registry.build(EVALUATORS, {"name": "knn", "k": k, "temperature": 0.2, "metric": metric}, "evaluate")
    expected = torch.tensor(slow(splits, k, 0.2, metric), dtype=torch.float64)
    torch.testing.assert_close(made.predict(splits, seed=0).scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize(
    ("metric", "weights", "normalise"),
    [("l2", "distance", False), ("l2", "distance", True), ("l2", "uniform", True), ("cosine", "uniform", False)],
)
def test_weights_equal_the_slow_loop(metric: str, weights: str, normalise: bool, multi: bool) -> None:
    splits = made_up(multi=multi)
    leaf = {"name": "knn", "k": 10, "metric": metric, "weights": weights, "normalise": normalise}
    expected = torch.tensor(slow(splits, 10, 0.1, metric, weights, normalise), dtype=torch.float64)
    found = registry.build(EVALUATORS, leaf, "evaluate").predict(splits, seed=0).scores
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_neighbours_at_no_distance_vote_alone() -> None:
    splits = made_up()
    splits.test.x[0] = splits.train.x[5]
    scores = KNN(k=9, metric="l2", weights="distance").predict(splits).scores
    assert int(scores[0].argmax()) == int(splits.train.labels[5]) and float(scores[0].max()) > 0.99
    assert bool(scores.isfinite().all())


def test_weights_of_another_metric_are_refused() -> None:
    with pytest.raises(
        ValueError, match="knn.weights: expected one of similarity, uniform for metric cosine, got 'distance'"
    ):
        KNN(weights="distance")
    with pytest.raises(
        ValueError, match="knn.weights: expected one of uniform, distance for metric l2, got 'similarity'"
    ):
        KNN(metric="l2", weights="similarity")


def test_votes_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = made_up()
    whole = KNN(k=9).predict(splits).scores
    monkeypatch.setattr(knn, "CHUNK", 60 * 4)
    torch.testing.assert_close(KNN(k=9).predict(splits).scores, whole, rtol=1e-6, atol=1e-7)


def test_a_small_temperature_does_not_overflow() -> None:
    scores = KNN(k=5, temperature=1e-4).predict(made_up()).scores
    assert scores.isfinite().all()
    nearest = KNN(k=1).predict(made_up()).scores
    assert torch.equal(scores.argmax(1), nearest.argmax(1))


def test_l2_keeps_digits_far_from_the_origin() -> None:
    splits = made_up()
    train, test = splits.train, splits.test
    far = SplitFeatures(
        Features(train.x + 1000, train.labels, train.groups, train.index), splits.val,
        Features(test.x + 1000, test.labels, test.groups, test.index), "single", splits.classes,
    )  # fmt: skip
    assert torch.equal(KNN(10, metric="l2").predict(far).scores, KNN(10, metric="l2").predict(splits).scores)


def test_scores_name_what_the_task_asks_for() -> None:
    assert [score.metric for score in KNN(5)(made_up(2))] == ["accuracy", "balanced_accuracy", "auc"]
    assert [score.metric for score in KNN(5)(made_up(12))] == ["accuracy", "balanced_accuracy", "top5"]
    assert [score.metric for score in KNN(5)(made_up(2, multi=True))] == ["auc", "auc/0", "auc/1"]
    score = KNN(5)(made_up(3), seed=1)[0]
    assert score.evaluator == "knn" and score.n == score.groups == 25 and score.note == ""
    assert score.low is not None and score.value is not None and score.high is not None
    assert score.low <= score.value <= score.high


def test_a_single_class_at_a_site_has_no_auc_and_says_so() -> None:
    splits = made_up(2)
    splits.test.labels[:] = 1
    area = KNN(5)(splits)[2]
    assert (area.metric, area.value, area.low) == ("auc", None, None)
    assert area.note == "undefined: all test samples are of class 1; classes only in train, not scored: 0"
    many = made_up(2, multi=True)
    many.test.labels[:, 0] = 0
    scores = {score.metric: score for score in KNN(5)(many)}
    assert scores["auc/0"].value is None and scores["auc/0"].note == "undefined: every test sample is 0 = 0"
    assert scores["auc"].value == scores["auc/1"].value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "knn.k: expected an integer >= 1"),
        ({"temperature": 0.0}, "knn.temperature: expected a number > 0"),
        ({"metric": "l1"}, "'cosine', 'l2'"),
        ({"neighbours": 3}, "unknown key; allowed: k, temperature, metric"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.build(EVALUATORS, {"name": "knn", **arguments}, "evaluate.protocols[0]")


def test_more_neighbours_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="knn.k: 61 neighbours asked of n = 60 training samples"):
        KNN(k=61)(made_up())


def test_neighbours_come_nearest_first() -> None:
    train, query = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([[2.0, 1.9]])
    similarity, position = knn.neighbours_of(train, query, 3)
    assert position.tolist() == [[2, 0, 1]]
    order: Tensor = similarity.sort(descending=True).values
    assert torch.equal(order, similarity)
