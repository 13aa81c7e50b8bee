"""Ensembles, calibration and floors against slow references."""

import math

import pytest
import torch

from sslmed_dist import randomness
from sslmed_dist.downstream.diagnosis import calibration, ensemble, floors

NAN = math.nan


def slow_weights(accuracies: list[float]) -> list[float]:
    """Eq. 3.1 of one label, clipped and normalised."""
    raw = []
    for value in accuracies:
        if math.isnan(value):
            raw.append(0.0)
            continue
        inside = min(max(value, 0.5 + 1e-6), 1 - 1e-6)
        raw.append(math.log(inside / (1 - inside)))
    return [value / sum(raw) for value in raw]


@pytest.mark.parametrize(
    "accuracies", [[0.883, 0.860, 0.843], [1.0, 0.9, 0.5], [0.2, 0.4, 0.5], [0.8, NAN, 0.7], [1.0, 1.0, 1.0]]
)
def test_weights_are_the_equation(accuracies: list[float]) -> None:
    found = ensemble.weights(torch.tensor(accuracies)[:, None].double())[:, 0]
    assert found.tolist() == pytest.approx(slow_weights(accuracies)) and found.sum().item() == pytest.approx(1)
    assert bool((found >= 0).all())


def test_the_weighted_mean_is_normalised_over_the_models_that_are_there() -> None:
    """Three models, four exams, two labels; the last exam has no model, the third one model."""
    p = torch.tensor([[0.9, 0.2], [0.8, NAN], [NAN, NAN], [NAN, NAN]]), torch.tensor([[0.1, 0.4]] * 2 + [[NAN] * 2] * 2)
    p = (*p, torch.tensor([[0.5, 0.6], [NAN, NAN], [0.3, 0.7], [NAN, NAN]]))
    probabilities = torch.stack(p).double()
    weights = torch.tensor([[0.5, 0.2], [0.3, 0.2], [0.2, 0.6]]).double()
    found = ensemble.combined(probabilities, weights)
    for exam in range(4):
        for label in range(2):
            there = [k for k in range(3) if not math.isnan(float(probabilities[k, exam, label]))]
            if not there:
                assert math.isnan(float(found[exam, label]))
                continue
            total = sum(float(weights[k, label]) for k in there)
            mean = sum(float(weights[k, label] * probabilities[k, exam, label]) for k in there) / total
            assert float(found[exam, label]) == pytest.approx(mean)
    plain = ensemble.plain_mean(probabilities)
    assert plain[0].tolist() == pytest.approx([0.5, 0.4]) and plain[1, 0].item() == pytest.approx(0.45)


def test_models_without_a_weight_count_the_same() -> None:
    """An exam of which only models are there that weigh nothing."""
    probabilities = torch.tensor([[[0.2]], [[0.4]]]).double()
    assert ensemble.combined(probabilities, torch.tensor([[0.0], [0.0]]).double()).item() == pytest.approx(0.3)


def test_the_reliability_curve_counts_tenths() -> None:
    scores = torch.tensor([0.0, 0.05, 0.11, 0.55, 0.55, 0.99, 1.0]).double()
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    bins = calibration.reliability(scores, labels)
    assert [(b.count, round(b.share, 3), round(b.probability, 4)) for b in bins] == [
        (2, 0.5, 0.025),
        (1, 0.0, 0.11),
        (2, 0.5, 0.55),
        (2, 1.0, 0.995),
    ]


def test_the_roc_curve_bounds_the_auc() -> None:
    scores = torch.tensor([0.1, 0.4, 0.4, 0.8]).double()
    assert calibration.roc(scores, torch.tensor([0.0, 0.0, 1.0, 1.0])) == ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    assert calibration.roc(scores, torch.ones(4)) == ([], [])


def cross_entropy(scores: torch.Tensor, labels: torch.Tensor, t: float) -> float:
    total = 0.0
    for p, y in zip(scores.tolist(), labels.tolist(), strict=True):
        q = 1 / (1 + math.exp(-math.log(p / (1 - p)) / t))
        total -= math.log(q if y else 1 - q)
    return total


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_the_temperature_minimises_the_cross_entropy(true_temperature: float) -> None:
    logits = 2 * randomness.normal("z", torch.arange(800))
    labels = (randomness.uniform("u", torch.arange(800)) < torch.sigmoid(logits)).float()
    scores = torch.sigmoid(logits * true_temperature)
    found = calibration.temperature(scores, labels)
    assert found == pytest.approx(true_temperature, rel=0.15)
    best = cross_entropy(scores, labels, found)
    assert all(cross_entropy(scores, labels, found * factor) > best for factor in (0.97, 1.03))
    changed = calibration.scaled(scores[:, None], torch.tensor([found]).double())[:, 0]
    assert torch.equal(changed.argsort(), scores.argsort()) and torch.equal(changed > 0.5, scores > 0.5)


def test_nothing_to_learn_a_temperature_from_leaves_1() -> None:
    assert calibration.temperature(torch.tensor([0.3, 0.6]), torch.ones(2)) == 1.0
    assert calibration.temperature(torch.tensor([]), torch.tensor([])) == 1.0
    # Every answer right: the temperature ends at its least, and nothing is infinite.
    assert calibration.temperature(torch.tensor([0.2, 0.9]), torch.tensor([0.0, 1.0])) == pytest.approx(math.exp(-3))


def test_majority_and_random_answers() -> None:
    labels = torch.tensor([[1.0, 0.0], [1.0, NAN], [0.0, 0.0]])
    assert floors.majority(labels, 2).tolist() == [[pytest.approx(2 / 3), 0.0]] * 2
    ids = torch.arange(2000)
    answers = floors.random(ids, 2, 5)
    assert answers.mean().item() == pytest.approx(0.5, abs=0.02) and torch.equal(
        answers[10:12], floors.random(ids[10:12], 2, 5)
    )


def test_the_logistic_regression_is_at_its_minimum() -> None:
    x = randomness.normal("x", torch.arange(60)[:, None], torch.arange(3))
    target = (x[:, 0] - 0.5 * x[:, 1] + randomness.normal("e", torch.arange(60)) > 0).double()
    for penalty in (0.01, 1.0, 100.0):
        weights = floors.logistic(x, target, penalty).requires_grad_()
        logits = torch.cat([torch.ones(60, 1), x], 1) @ weights
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        (loss + 0.5 * penalty * weights[1:].square().sum()).backward()
        assert weights.grad is not None and weights.grad.abs().max().item() < 1e-6


def test_metadata_predict_what_they_hold_and_no_more() -> None:
    count = 200
    ids = torch.arange(count)
    scanner = randomness.integers(2, "scanner", ids).double()
    features = torch.stack([scanner, randomness.normal("noise", ids), torch.full((count,), 3.0).double()], 1)
    labels = torch.stack(
        [
            (scanner + randomness.normal("l", ids) > 0.5).float(),
            (randomness.uniform("coin", ids) > 0.5).float(),
            torch.ones(count),
        ],
        1,
    )
    labels[5::6, 0] = NAN
    made = floors.Metadata(features[:150], labels[:150], ids[:150] // 2, seed=0)
    predicted = made.predict(features[150:])
    one, other = (predicted[scanner[150:] == value, 0].mean() for value in (1, 0))
    assert one - other > 0.2
    assert predicted[:, 1].std().item() < 0.1 and predicted[:, 2].isnan().all() and made.penalties[2] is None
    with pytest.raises(ValueError, match=r"^metadata: expected features \(N, F\) of at least one exam, got \(0, 3\)"):
        floors.Metadata(features[:0], labels[:0], ids[:0], seed=0)
    with pytest.raises(ValueError, match=r"^metadata: expected finite features"):
        floors.Metadata(features / 0, labels, ids, seed=0)
    # Without a feature it is the majority answer.
    share = floors.Metadata(features[:, :0], labels, ids, seed=0).predict(features[:5, :0])
    assert torch.allclose(share[:, :2], labels[:, :2].double().nanmean(0).expand(5, 2), atol=1e-6)


def test_folds_keep_patients_together() -> None:
    groups = torch.arange(40) // 3
    fold = floors.folds_of(groups, 1)
    assert set(fold.tolist()) == set(range(5))
    assert all(len(set(fold[groups == group].tolist())) == 1 for group in groups.tolist())
