"""Learning-rate schedules at known steps."""

import math
from typing import Any

import pytest
from torch import nn

from sslmed_dist.training import optim


def rates(schedule: Any, *steps: int, epochs: int = 10, per_epoch: int = 10) -> list[float]:
    """Factors of the base rate at ``steps``."""
    leaf = {"name": "sgd", "lr": 2.0, "schedule": schedule}
    built = optim.build(leaf, nn.Linear(1, 1), batch_size=256, epochs=epochs, per_epoch=per_epoch)
    found = []
    for step in steps:
        assert built.set_rate(step) == built.learning_rate(step) == built.optimizer.param_groups[0]["lr"]
        found.append(built.learning_rate(step) / 2.0)
    return found


def test_constant_and_warm_up() -> None:
    assert rates("constant", 0, 50, 99) == [1.0, 1.0, 1.0]
    warm = rates({"name": "constant", "warmup_epochs": 2}, 0, 4, 18, 19, 20)
    assert warm == pytest.approx([1 / 20, 5 / 20, 19 / 20, 1.0, 1.0], abs=1e-15)
    assert rates({"name": "constant", "warmup_epochs": 0.25}, 0, 1, 2) == pytest.approx([1 / 2, 1.0, 1.0])


def test_cosine() -> None:
    assert rates("cosine", 0, 25, 50, 75, 100) == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0], abs=1e-15)
    warm = rates({"name": "cosine", "warmup_epochs": 2, "final": 0.1}, 0, 19, 20, 60, 99, 100)
    late = 0.1 + 0.45 * (1 + math.cos(math.pi * 79 / 80))
    assert warm == pytest.approx([1 / 20, 1.0, 1.0, 0.55, late, 0.1], abs=1e-15)


def test_cosine_is_the_default() -> None:
    built = optim.build({"name": "sgd", "lr": 1.0}, nn.Linear(1, 1), batch_size=256, epochs=10, per_epoch=10)
    assert built.learning_rate(50) == pytest.approx(0.5)


def test_step() -> None:
    schedule = {"name": "step", "milestones": [3, 5], "gamma": 0.5}
    assert rates(schedule, 0, 29, 30, 49, 50, 99) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_exponential() -> None:
    schedule = {"name": "exponential", "gamma": 0.9}
    assert rates(schedule, 0, 9, 10, 25, 99) == pytest.approx([1.0, 1.0, 0.9, 0.81, 0.9**9])
