"""Measures against scikit-learn and by hand; bootstrap intervals."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor

from sslmed_dist.downstream import metrics


def ones(n: int, rows: int = 1) -> Tensor:
    return torch.ones(rows, n, dtype=torch.float64)


def scores_and_labels(n: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores that know the label a little, rounded so that many tie."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    scores = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    scores[torch.arange(n), labels] += 0.8
    return (4 * scores).round() / 4, labels


def test_accuracy_balanced_accuracy_and_top_k_equal_sklearn() -> None:
    scores, labels = scores_and_labels(500, 12)
    guess, truth = scores.argmax(1).numpy(), labels.numpy()
    assert metrics.point(metrics.accuracy, (scores, labels)) == pytest.approx(reference.accuracy_score(truth, guess))
    balanced = metrics.point(metrics.balanced_accuracy, (scores, labels))
    assert balanced == pytest.approx(reference.balanced_accuracy_score(truth, guess))
    fine = scores + 1e-6 * torch.arange(12)
    among = reference.top_k_accuracy_score(truth, fine.numpy(), k=5, labels=range(12))
    assert metrics.point(metrics.top(5), (fine, labels)) == pytest.approx(among)
    assert metrics.point(metrics.top(1), (scores, labels)) == metrics.point(metrics.accuracy, (scores, labels))


@pytest.mark.parametrize("seed", range(5))
def test_auc_with_ties_and_weights_equals_sklearn(seed: int) -> None:
    scores, labels = scores_and_labels(200, 2, seed)
    weights = torch.randint(0, 4, (3, 200), generator=torch.Generator().manual_seed(seed)).double()
    ours = metrics.binary_auc(scores, labels, weights=weights)
    flat = (scores[:, 1] - scores[:, 0]).numpy()
    theirs = [reference.roc_auc_score(labels.numpy(), flat, sample_weight=row.numpy()) for row in weights]
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64))


def test_macro_and_multi_label_auc_equal_sklearn() -> None:
    scores, labels = scores_and_labels(300, 5)
    softmax = scores.softmax(1)
    macro = reference.roc_auc_score(labels.numpy(), softmax.numpy(), multi_class="ovr", average="macro")
    assert metrics.point(metrics.macro_auc, (softmax, labels)) == pytest.approx(macro)
    many = (scores + torch.randn(300, 5, dtype=torch.float64) > 0).float()
    mean = reference.roc_auc_score(many.numpy(), scores.numpy(), average="macro")
    assert metrics.point(metrics.mean_auc, (scores, many)) == pytest.approx(mean)


def test_auc_by_hand() -> None:
    # Pairs (positive, negative): (2, 1) right, (2, 2) tie, (3, 1) right, (3, 2) right: 3.5 of 4.
    area = metrics.auc(torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([0, 0, 1, 1]), weights=ones(4))
    assert area.item() == 3.5 / 4


def test_auc_of_a_single_class_is_none_and_never_nan() -> None:
    scores, labels = torch.rand(6, 2), torch.zeros(6, dtype=torch.int64)
    assert metrics.point(metrics.binary_auc, (scores, labels)) is None
    assert metrics.point(metrics.mean_auc, (scores, torch.zeros(6, 2))) is None
    half = torch.stack([torch.zeros(6), torch.tensor([0, 1, 0, 1, 0, 1.0])], dim=1)
    assert metrics.point(metrics.mean_auc, (scores, half)) is not None


def test_bootstrap_repeats_and_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, groups = scores_and_labels(97, 3), torch.arange(97)
    first = metrics.bootstrap(metrics.accuracy, arrays, groups, seed=3, draws=200)
    monkeypatch.setattr(metrics, "CHUNK", 97 * 7)
    assert metrics.bootstrap(metrics.accuracy, arrays, groups, seed=3, draws=200) == first
    assert metrics.bootstrap(metrics.accuracy, arrays, groups, seed=4, draws=200) != first


def test_bootstrap_equals_a_loop_over_resampled_indices() -> None:
    (scores, labels), groups = scores_and_labels(30, 2), torch.arange(30) // 3
    values = []
    for times in metrics.resample(torch.arange(100), 10, seed=5):
        chosen = [i for g, t in enumerate(times.tolist()) for _ in range(int(t)) for i in range(3 * g, 3 * g + 3)]
        assert len(chosen) == 30
        values.append(reference.roc_auc_score(labels[chosen], (scores[:, 1] - scores[:, 0])[chosen]))
    ours = metrics.bootstrap(metrics.binary_auc, (scores, labels), groups, seed=5, draws=100)
    assert (ours.low, ours.high) == pytest.approx(tuple(np.percentile(values, [5, 95])))


def test_interval_covers_the_truth_about_nine_times_in_ten() -> None:
    covered = 0
    for trial in range(200):
        right = torch.rand(100, generator=torch.Generator().manual_seed(trial)) < 0.7
        arrays = (torch.stack([~right, right], dim=1).double(), torch.ones(100, dtype=torch.int64))
        interval = metrics.bootstrap(metrics.accuracy, arrays, torch.arange(100), seed=trial, draws=300)
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= 0.7 <= interval.high
    assert 0.83 <= covered / 200 <= 0.96


def test_intervals_over_patients_are_wider_than_over_their_samples() -> None:
    right = torch.arange(20).repeat_interleave(10) % 4 > 0  # a patient's ten samples agree
    arrays = (torch.stack([~right, right], dim=1).double(), torch.ones(200, dtype=torch.int64))
    alone = metrics.bootstrap(metrics.accuracy, arrays, torch.arange(200), seed=0)
    patients = metrics.bootstrap(metrics.accuracy, arrays, torch.arange(20).repeat_interleave(10), seed=0)
    widths = [one.high - one.low for one in (alone, patients) if one.low is not None and one.high is not None]
    assert widths[1] > 2.5 * widths[0]


def test_few_groups_and_undefined_draws_are_said() -> None:
    scores, labels = torch.rand(8, 2), torch.tensor([0, 1] * 4)
    one = metrics.bootstrap(metrics.binary_auc, (scores, labels), torch.zeros(8, dtype=torch.int64), seed=0)
    assert (one.low, one.high, one.note) == (None, None, "no interval: 1 group")
    rare = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0])
    some = metrics.bootstrap(metrics.binary_auc, (scores, rare), torch.arange(8), seed=0)
    assert some.low is not None and "of 1000 draws; undefined in the others" in some.note
    pair = metrics.bootstrap(metrics.binary_auc, (scores[:2], labels[:2]), torch.arange(2), seed=0)
    assert pair.low is not None or "undefined in" in pair.note


def test_paired_difference_is_narrower_than_either_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (300,), generator=generator)
    easy = torch.rand(300, generator=generator) < 0.7
    guess = torch.where(easy, labels, 1 - labels)
    better = guess.clone()
    better[:15] = labels[:15]
    first, second = (torch.nn.functional.one_hot(g, 2).double() for g in (better, guess))
    groups = torch.arange(300)
    value, gap = metrics.difference(metrics.accuracy, first, second, labels, groups, seed=0)
    single = metrics.bootstrap(metrics.accuracy, (first, labels), groups, seed=0)
    assert value == pytest.approx(float((better == labels).double().mean() - (guess == labels).double().mean()))
    assert gap.low is not None and gap.high is not None and single.low is not None and single.high is not None
    assert 0 <= gap.low <= gap.high and gap.high - gap.low < (single.high - single.low) / 2


@pytest.mark.parametrize("statistic", [metrics.accuracy, metrics.balanced_accuracy, metrics.binary_auc])
def test_a_thousand_draws_of_six_hundred_samples_are_fast(statistic: Any) -> None:
    arrays, groups = scores_and_labels(600, 2), torch.arange(600)
    start = time.process_time()
    metrics.bootstrap(statistic, arrays, groups, seed=0)
    assert time.process_time() - start < 2
