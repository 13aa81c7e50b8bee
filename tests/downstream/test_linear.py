"""The batched linear probe against autograd and torch.optim, one learning rate at a time."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sslmed_dist import randomness, registry
from sslmed_dist.downstream import EVALUATORS, Features, LinearProbe, SplitFeatures


def split(n: int, seed: int, multi: bool) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    centres = 1.2 * torch.randn(3, 8, generator=torch.Generator().manual_seed(7))
    x = 5 + 3 * (centres[labels] + torch.randn(n, 8, generator=generator))
    truth = functional.one_hot(labels, 3).float() if multi else labels
    return Features(x, truth, torch.arange(n), torch.randperm(n, generator=generator) + 1000 * seed)


def made_up(multi: bool = False, val: int = 40) -> SplitFeatures:
    train, held, test = (split(n, seed, multi) for seed, n in enumerate((100, val, 50)))
    return SplitFeatures(train, held, test, "multi" if multi else "single", ("a", "b", "c"))


def slow(train: Features, rate: float, probe: LinearProbe, seed: int, multi: bool) -> tuple[Tensor, Tensor]:
    """``torch.nn.functional`` losses, autograd, ``torch.optim.SGD`` and its cosine schedule."""
    weight, bias = torch.zeros(8, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    groups: list[dict[str, Any]] = [{"params": [weight], "weight_decay": probe.weight_decay}, {"params": [bias]}]
    optimiser = torch.optim.SGD(groups, lr=rate, momentum=probe.momentum)
    steps = probe.epochs * math.ceil(len(train) / probe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for epoch in range(probe.epochs):
        for part in torch.split(randomness.order(train.index, seed, "linear", epoch), probe.batch_size):
            output, truth = train.x[part] @ weight + bias, train.labels[part]
            loss = functional.binary_cross_entropy_with_logits if multi else functional.cross_entropy
            optimiser.zero_grad()
            torch.autograd.backward(loss(output, truth))
            optimiser.step()
            schedule.step()
    return weight.detach(), bias.detach()


@pytest.mark.parametrize("multi", [False, True])
def test_all_rates_at_once_equal_one_rate_alone_and_autograd(multi: bool) -> None:
    rates = (0.01, 0.1, 0.5)
    train = made_up(multi).train
    train = Features((train.x - train.x.mean(0)) / train.x.std(0), train.labels, train.groups, train.index)
    probe = LinearProbe(rates, epochs=4, batch_size=32, weight_decay=0.01)
    weights, biases = probe.fit(train, 3, seed=2)
    for number, rate in enumerate(rates):
        weight, bias = slow(train, rate, probe, 2, multi)
        torch.testing.assert_close(weights[number], weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(biases[number], bias, rtol=1e-4, atol=1e-5)
        alone, _ = LinearProbe((rate,), epochs=4, batch_size=32, weight_decay=0.01).fit(train, 3, seed=2)
        torch.testing.assert_close(weights[number], alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("multi", [False, True])
def test_scores_are_good_bounded_and_repeat(multi: bool) -> None:
    probe = registry.build(EVALUATORS, {"name": "linear", "epochs": 20, "batch_size": 32}, "evaluate")
    splits = made_up(multi)
    first, again = probe(splits, seed=0), probe(splits, seed=0)
    assert first == again
    names = ["auc", "auc/a", "auc/b", "auc/c"] if multi else ["accuracy", "balanced_accuracy", "auc"]
    assert [score.metric for score in first] == names
    assert first[0].value is not None and first[0].value > 0.8
    assert first[0].evaluator == "linear" and first[0].note.startswith("learning rate ")
    scores = probe.predict(splits, seed=0).scores
    assert scores.min() >= 0 and scores.max() <= 1


def test_rate_is_chosen_on_val_and_test_has_no_say() -> None:
    splits = made_up()
    probe = LinearProbe((1e-6, 0.1), epochs=5, batch_size=32)
    assert "learning rate 0.1 chosen on val, at the edge" in probe(splits, seed=0)[0].note
    # Val turned round makes the rate that has learnt nothing the better one, whatever test says.
    splits.val.labels[:] = (splits.val.labels + 1) % 3
    note = LinearProbe((1e-6, 0.1), epochs=5, batch_size=32)(splits, seed=0)[0].note
    splits.test.labels[:] = (splits.test.labels + 1) % 3
    assert LinearProbe((1e-6, 0.1), epochs=5, batch_size=32)(splits, seed=0)[0].note == note


def test_ties_on_val_are_broken_by_the_loss() -> None:
    probe, labels = LinearProbe((0.1, 0.2, 0.3)), torch.tensor([0, 1])
    logits = torch.stack([scale * torch.eye(2) for scale in (1.0, 3.0, 2.0)])
    assert probe.choose(logits, labels) == 1


def test_diverged_rates_are_left_out_and_all_diverged_is_an_error() -> None:
    probe, labels = LinearProbe((0.1, 0.2)), torch.tensor([0, 1])
    broken = torch.full((2, 2), torch.nan)
    assert probe.choose(torch.stack([broken, torch.eye(2)]), labels) == 1
    with pytest.raises(ValueError, match="linear.learning_rates: all of .* diverged"):
        probe.choose(torch.stack([broken, broken]), labels)


def test_constant_features_do_not_blow_up() -> None:
    splits = made_up()
    for part in (splits.train, splits.val, splits.test):
        part.x[:, 3] = 1e-3
    splits.test.x[:, 3] = 2e-3
    value = LinearProbe(epochs=10, batch_size=32)(splits, seed=0)[0].value
    assert value is not None and value > 0.7


def test_result_does_not_depend_on_the_order_of_the_training_samples() -> None:
    splits, shuffle = made_up(), torch.randperm(100, generator=torch.Generator().manual_seed(1))
    train = splits.train
    mixed = Features(train.x[shuffle], train.labels[shuffle], train.groups[shuffle], train.index[shuffle])
    again = SplitFeatures(mixed, splits.val, splits.test, "single", splits.classes)
    probe = LinearProbe((0.1,), epochs=5, batch_size=32)
    torch.testing.assert_close(probe.predict(again, seed=0).scores, probe.predict(splits, seed=0).scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rates": []}, "linear.learning_rates: expected at least one number"),
        ({"learning_rates": [0.1, -1.0]}, "linear.learning_rates: expected at least one number, all > 0"),
        ({"learning_rates": 0.1}, "learning_rates: expected"),
        ({"epochs": 0}, "expected epochs >= 1"),
        ({"momentum": 1.0}, "expected 0 <= momentum < 1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.build(EVALUATORS, {"name": "linear", **arguments}, "evaluate.protocols[0]")


def test_an_empty_validation_split_is_refused() -> None:
    with pytest.raises(ValueError, match="linear: the split val is empty; the learning rate is chosen on it"):
        LinearProbe()(made_up(val=0), seed=0)
