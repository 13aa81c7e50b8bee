"""Optimisers against readable loops in float64, and what is excluded from decay."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist import randomness
from sslmed_dist.training import optim

Leaf = dict[str, Any]
Memory = dict[str, Tensor]  # what the readable loops keep of one parameter
STEPS = 4


class Network(nn.Module):
    """A little of everything: convolution, norm, biases, and a parameter whose gradient is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)
        self.idle = nn.Parameter(torch.ones(4))


def network() -> Network:
    """A float64 network with keyed weights."""
    made = Network().double()
    for number, p in enumerate(made.parameters()):
        p.data = randomness.normal(11, number, torch.arange(p.numel())).view_as(p)
    made.idle.data.zero_()
    return made


def gradients(model: nn.Module, step: int) -> list[Tensor]:
    """Keyed gradients of one step, in the order of the parameters; that of ``idle`` is zero."""
    made = []
    for number, (name, p) in enumerate(model.named_parameters()):
        keyed = randomness.normal(12, step, number, torch.arange(p.numel())).view_as(p)
        made.append(keyed * (name != "idle"))
    return made


def slow_sgd(p: Tensor, g: Tensor, s: Memory, step: int, *, lr: float, momentum: float, weight_decay: float) -> Tensor:
    g = g + weight_decay * p
    s["v"] = g if step == 0 else momentum * s["v"] + g
    return p - lr * s["v"]


def slow_nesterov(
    p: Tensor, g: Tensor, s: Memory, step: int, *, lr: float, momentum: float, weight_decay: float
) -> Tensor:
    g = g + weight_decay * p
    s["v"] = g if step == 0 else momentum * s["v"] + g
    return p - lr * (g + momentum * s["v"])


def slow_adamw(p: Tensor, g: Tensor, s: Memory, step: int, *, lr: float, weight_decay: float) -> Tensor:
    first, second, eps = 0.8, 0.95, 1e-6
    s["m"] = first * s.get("m", torch.zeros_like(p)) + (1 - first) * g
    s["v"] = second * s.get("v", torch.zeros_like(p)) + (1 - second) * g**2
    m, v = s["m"] / (1 - first ** (step + 1)), s["v"] / (1 - second ** (step + 1))
    return p * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps)


def slow_adam(p: Tensor, g: Tensor, s: Memory, step: int, *, lr: float, weight_decay: float) -> Tensor:
    return slow_adamw(p, g + weight_decay * p, s, step, lr=lr, weight_decay=0.0)


def slow_rmsprop(p: Tensor, g: Tensor, s: Memory, step: int, *, lr: float, weight_decay: float) -> Tensor:
    g = g + weight_decay * p
    s["v"] = 0.9 * s.get("v", torch.zeros_like(p)) + 0.1 * g**2
    s["b"] = 0.5 * s.get("b", torch.zeros_like(p)) + g / (s["v"].sqrt() + 1e-6)
    return p - lr * s["b"]


def slow_lars(
    p: Tensor, g: Tensor, s: Memory, step: int, *, lr: float, weight_decay: float, adapt: bool, clip: bool
) -> Tensor:
    size = math.sqrt(sum(v**2 for v in p.flatten().tolist()))
    grad = math.sqrt(sum(v**2 for v in g.flatten().tolist()))
    ratio = 1.0
    if adapt and size > 0 and grad > 0:
        ratio = 0.02 * size / (grad + weight_decay * size + 1e-8)
        if clip:
            ratio = min(ratio / lr, 1.0)
    s["v"] = 0.7 * s.get("v", torch.zeros_like(p)) + ratio * (g + weight_decay * p)
    return p - lr * s["v"]


def slow_lars_step(model: nn.Module, clip: bool) -> Callable[..., Tensor]:
    """LARS with biases and norms plain and without decay, told from the others by the parameter's number."""
    names = [name for name, _ in model.named_parameters()]
    plain = {number for number, name in enumerate(names) if name.endswith("bias") or name.startswith("bn.")}

    def step(p: Tensor, g: Tensor, s: Memory, step: int, *, lr: float, number: int) -> Tensor:
        decay = 0.0 if number in plain else 0.1
        return slow_lars(p, g, s, step, lr=lr, weight_decay=decay, adapt=number not in plain, clip=clip)

    return step


SLOW: dict[str, tuple[Leaf, Callable[..., Tensor], Leaf]] = {
    "sgd": ({"name": "sgd", "lr": 0.1, "momentum": 0.7, "weight_decay": 0.1}, slow_sgd, {"momentum": 0.7}),
    "nesterov": (
        {"name": "sgd", "lr": 0.1, "momentum": 0.7, "weight_decay": 0.1, "nesterov": True},
        slow_nesterov,
        {"momentum": 0.7},
    ),
    "adamw": ({"name": "adamw", "lr": 0.1, "weight_decay": 0.1, "betas": [0.8, 0.95], "eps": 1e-6}, slow_adamw, {}),
    "adam": ({"name": "adam", "lr": 0.1, "weight_decay": 0.1, "betas": [0.8, 0.95], "eps": 1e-6}, slow_adam, {}),
    "rmsprop": (
        {"name": "rmsprop", "lr": 0.1, "weight_decay": 0.1, "alpha": 0.9, "momentum": 0.5, "eps": 1e-6},
        slow_rmsprop,
        {},
    ),
}
LARS: Leaf = {"name": "lars", "lr": 0.3, "momentum": 0.7, "weight_decay": 0.1, "trust": 0.02}


def take_steps(model: nn.Module, built: optim.Optimisation, steps: int = STEPS) -> None:
    """Optimiser steps with keyed gradients under the schedule."""
    for step in range(steps):
        for p, g in zip(model.parameters(), gradients(model, step), strict=True):
            p.grad = g.clone()
        built.set_rate(step)
        built.optimizer.step()


def build(model: nn.Module, leaf: Leaf, **sizes: int) -> optim.Optimisation:
    """The optimiser of ``leaf`` for a run of 10 epochs of 10 steps unless said otherwise."""
    return optim.build(leaf, model, **{"batch_size": 256, "epochs": 10, "per_epoch": 10, **sizes})


@pytest.mark.parametrize("name", SLOW)
def test_steps_equal_a_slow_loop(name: str) -> None:
    leaf, slow, extra = SLOW[name]
    model, reference = network(), [p.detach().clone() for p in network().parameters()]
    built = build(model, leaf)
    take_steps(model, built)
    memory: list[Memory] = [{} for _ in reference]
    for step in range(STEPS):
        for number, gradient in enumerate(gradients(model, step)):
            kept = {"lr": built.learning_rate(step), "weight_decay": 0.1, **extra}
            reference[number] = slow(reference[number], gradient, memory[number], step, **kept)
    for p, expected in zip(model.parameters(), reference, strict=True):
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("clip", [False, True])
def test_lars_equals_a_slow_loop(clip: bool) -> None:
    model, reference = network(), [p.detach().clone() for p in network().parameters()]
    built = build(model, {**LARS, "clip": clip})
    take_steps(model, built)
    slow = slow_lars_step(model, clip)
    memory: list[Memory] = [{} for _ in reference]
    for step in range(STEPS):
        for number, gradient in enumerate(gradients(model, step)):
            rate = built.learning_rate(step)
            reference[number] = slow(reference[number], gradient, memory[number], step, lr=rate, number=number)
    for p, expected in zip(model.parameters(), reference, strict=True):
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-13)


def test_lars_never_asks_the_device_for_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """``item``, ``float`` and ``bool`` of a tensor wait for a GPU; a step over many tensors must not."""
    model = network()
    built = build(model, {**LARS, "clip": True})
    take_steps(model, built, 1)

    def forbidden(*_: Any) -> Any:
        raise AssertionError("a host synchronisation")

    for p, gradient in zip(model.parameters(), gradients(model, 1), strict=True):
        p.grad = gradient
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__float__", "__bool__", "__int__", "__index__"):
            patch.setattr(Tensor, name, forbidden)
        built.optimizer.step()


def test_lars_goes_on_from_its_state() -> None:
    """Two steps, saved, two steps more = four steps, bit for bit; a parameter without gradient is left alone."""
    whole, first, second = network(), network(), network()
    take_steps(whole, build(whole, LARS))
    built = build(first, LARS)
    take_steps(first, built, 2)
    later = build(second, LARS)
    second.load_state_dict(first.state_dict())
    later.optimizer.load_state_dict(built.optimizer.state_dict())
    for step in (2, 3):
        for p, g in zip(second.parameters(), gradients(second, step), strict=True):
            p.grad = g
        second.idle.grad = None
        later.set_rate(step)
        later.optimizer.step()
    for name, p in second.named_parameters():
        assert torch.equal(p, dict(whole.named_parameters())[name]), name


def excluded_of(leaf: Leaf) -> set[str]:
    """Names of the parameters that get no weight decay."""
    model = network()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build(model, leaf).optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(names)
    return {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}


@pytest.mark.parametrize(
    "exclude, names",
    [
        ([], set()),
        (["bias"], {"conv.bias", "bn.bias", "head.bias"}),
        (["norm"], {"bn.weight", "bn.bias"}),
        (["bias", "norm"], {"conv.bias", "bn.bias", "head.bias", "bn.weight"}),
        (["head.*"], {"head.weight", "head.bias"}),
        (["idle", "*.weight"], {"idle", "conv.weight", "bn.weight", "head.weight"}),
    ],
)
def test_exclusion(exclude: list[str], names: set[str]) -> None:
    for name in ("sgd", "adamw", "rmsprop", "lars"):
        assert excluded_of({"name": name, "lr": 0.1, "weight_decay": 0.1, "exclude": exclude}) == names


def test_exclusion_by_default_is_that_of_lars_only() -> None:
    assert excluded_of({"name": "lars", "lr": 0.1}) == {"conv.bias", "bn.bias", "head.bias", "bn.weight"}
    assert excluded_of({"name": "sgd", "lr": 0.1}) == set()


def test_what_lars_excludes_takes_the_plain_step_even_without_decay() -> None:
    """Exclusion is stated, not guessed from ``weight_decay: 0``, which would turn LARS into SGD."""
    groups = build(network(), {"name": "lars", "lr": 0.1, "weight_decay": 0.0}).optimizer.param_groups
    assert [group["adapt"] for group in groups] == [True, False]


def test_frozen_parameters_are_not_the_optimisers() -> None:
    model = network()
    model.conv.requires_grad_(False)
    groups = build(model, {"name": "sgd", "lr": 0.1}).optimizer.param_groups
    assert len(groups[0]["params"]) == 5


@pytest.mark.parametrize("scale, factor", [("none", 1.0), ("linear", 4.0), ("sqrt", 32.0)])
def test_the_rate_scales_with_the_batch(scale: str, factor: float) -> None:
    built = build(network(), {"name": "sgd", "lr": 0.5, "scale": scale}, batch_size=1024)
    assert built.lr == pytest.approx(0.5 * factor)


@pytest.mark.parametrize(
    "leaf, message",
    [
        ({"name": "adagrad", "lr": 1}, "optim.name: 'adagrad' is unknown; allowed: adam, adamw, lars, rmsprop, sgd"),
        ({"name": "sgd"}, "optim.lr: missing; it is required by optim"),
        ({"name": "sgd", "lr": 0}, "optim.lr: expected a number > 0, got 0"),
        (
            {"name": "sgd", "lr": math.nan},
            "optim.lr: expected float, got nan; a number has to be finite in float32, a whole number within 2^53",
        ),
        (
            {"name": "sgd", "lr": 1, "schdule": "cosine"},
            "optim.schdule: unknown key; allowed: lr, momentum, weight_decay, nesterov, schedule, exclude, decay, "
            "scale",
        ),
        ({"name": "sgd", "lr": 1, "groups": []}, None),
        ({"name": "sgd", "lr": 1, "scale": "log"}, "optim.scale: expected none, linear or sqrt, got 'log'"),
        (
            {"name": "sgd", "lr": 1, "exclude": "bias"},
            "optim.exclude: expected a list of bias, norm or patterns of names, got 'bias'",
        ),
        (
            {"name": "sgd", "lr": 1, "exclude": ["nrom"]},
            "optim.exclude: 'nrom' fits no parameter; allowed: bias, norm, patterns of names",
        ),
        (
            {"name": "sgd", "lr": 1, "schedule": "linear"},
            "optim.schedule.name: 'linear' is unknown; allowed: constant, cosine, exponential, step",
        ),
        (
            {"name": "sgd", "lr": 1, "schedule": "step"},
            "optim.schedule.milestones: missing; it is required by optim.schedule",
        ),
        (
            {"name": "sgd", "lr": 1, "schedule": {"name": "cosine", "warmup_epochs": 10}},
            "optim.schedule.warmup_epochs: 100 steps of warm-up, the run has only 100",
        ),
    ],
)
def test_mistakes(leaf: Leaf, message: str | None) -> None:
    with pytest.raises(ValueError) as caught:
        build(network(), leaf)
    if message is None:
        message = (
            "optim.groups: unknown key; allowed: lr, momentum, weight_decay, nesterov, schedule, exclude, decay, scale"
        )
    assert str(caught.value) == message
