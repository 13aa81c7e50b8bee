"""Temperatures: values at the points that the thesis names, slopes, gradients with and without the temperature's."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import registry
from sslmed_dist.losses import LOSSES
from sslmed_dist.losses.temperature import TEMPERATURES, build
from sslmed_dist.methods import METHODS
from tests import references
from tests.losses.golden import embeddings

OF_PAIRS = ["dystress", "dystress_linear", "dystress_exponential", "dystress_shifted"]
LOW, HIGH = 0.07, 0.2


def tau(leaf: dict[str, Any], c: float) -> float:
    return float(build({"low": LOW, "high": HIGH, **leaf}).tau(torch.tensor(c, dtype=torch.float64)))


@pytest.mark.parametrize(
    "leaf, lowest, highest",
    [
        ({"name": "dystress"}, [0.0], [-1.0, 1.0]),
        ({"name": "dystress_linear"}, [0.0], [-1.0, 1.0]),
        ({"name": "dystress_exponential"}, [0.0], [-1.0, 1.0]),
        ({"name": "dystress_shifted", "shift": -0.2}, [-0.4], [-1.0, 0.2, 0.5, 1.0]),
        ({"name": "dystress_shifted", "shift": -0.4}, [-0.3], [-1.0, 0.4, 0.7, 1.0]),
        ({"name": "dystress_shifted", "shift": 0.2}, [0.4], [1.0, -0.2, -0.6, -1.0]),
        ({"name": "dystress_shifted", "shift": 0.4}, [0.3], [1.0, -0.4, -0.9, -1.0]),
        ({"name": "dystress_shifted", "shift": 0.0}, [-0.5], [-1.0, 0.0, 0.5, 1.0]),
    ],
)
def test_extremes_are_where_the_thesis_has_them(
    leaf: dict[str, Any], lowest: list[float], highest: list[float]
) -> None:
    assert [tau(leaf, c) for c in lowest] == pytest.approx([LOW] * len(lowest), abs=1e-12)
    assert [tau(leaf, c) for c in highest] == pytest.approx([HIGH] * len(highest), abs=1e-12)
    assert all(LOW - 1e-12 <= tau(leaf, c / 50) <= HIGH + 1e-12 for c in range(-50, 51))


def test_profiles_between_their_ends() -> None:
    assert tau({"name": "dystress"}, 0.5) == pytest.approx((LOW + HIGH) / 2)
    assert tau({"name": "dystress_linear"}, -0.25) == pytest.approx(LOW + (HIGH - LOW) / 4)
    expected = LOW + (HIGH - LOW) * (math.exp(0.5) - 1) / (math.e - 1)
    assert tau({"name": "dystress_exponential"}, -0.5) == pytest.approx(expected)
    # Thesis Alg. 6.1 for delta c = 0.2, k = 0.6, at c = 0.1: a quarter of the way round.
    assert tau({"name": "dystress_shifted", "shift": 0.2}, 0.1) == pytest.approx((LOW + HIGH) / 2)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_slope_is_the_derivative(name: str) -> None:
    temperature = build({"name": name, "low": LOW, "high": HIGH})
    c = torch.linspace(-0.995, 0.995, 41, dtype=torch.float64).requires_grad_()
    values = temperature.tau(c)
    assert isinstance(values, Tensor)
    (expected,) = torch.autograd.grad(values.sum(), c)
    torch.testing.assert_close(temperature.slope(c.detach()), expected, rtol=1e-12, atol=1e-12)


def test_the_schedule_of_kukleva_swings_over_epochs() -> None:
    schedule = build({"name": "cosine_schedule", "low": 0.1, "high": 1.0, "period": 400})
    values = []
    for epoch in (0, 100, 200, 300, 400):
        schedule.advance(epoch)
        values.append(schedule.tau(torch.tensor(0.0)))
    assert values == pytest.approx([1.0, 0.55, 0.1, 0.55, 1.0])


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_method_tells_its_loss_the_epoch(wrapped: bool) -> None:
    loss: dict[str, Any] = {"name": "nt_xent", "temperature": {"name": "cosine_schedule", "period": 10}}
    loss = {"name": "sum", "terms": [{"name": "mio_v3"}, loss]} if wrapped else loss
    encoder = {"name": "resnet", "depth": 9, "width": 4, "stem": "cifar"}
    method = registry.build(METHODS, {"name": "contrastive", "encoder": encoder, "loss": loss}, "method")
    z0, z1 = embeddings(5, 4, "schedule")
    values = []
    for epoch in (0.0, 5.0, 10.0):
        method.step_begin(epoch, epoch / 10)
        values.append(method.objective({"z0": z0, "z1": z1}, {})["loss"].item())
    assert values[0] == values[2] != values[1]


def reference(z0: Tensor, z1: Tensor, leaf: dict[str, Any]) -> float:
    """NT-Xent with a temperature per pair, by loops."""
    rows = references.stacked(z0, z1)
    terms = []
    for n, row in enumerate(rows):
        logits = [references.dot(row, other) / tau(leaf, references.dot(row, other)) for other in rows]
        others = math.fsum(math.exp(x) for m, x in enumerate(logits) if m != n)
        terms.append(math.log(others) - logits[(n + len(rows) // 2) % len(rows)])
    return math.fsum(terms) / len(terms)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_nt_xent_under_it_against_loops(name: str) -> None:
    z0, z1 = embeddings(6, 5, "dystress")
    leaf = {"name": name, "low": LOW, "high": HIGH}
    assert LOSSES["nt_xent"](temperature=leaf)(z0, z1).item() == pytest.approx(reference(z0, z1, leaf), rel=1e-11)


@pytest.mark.parametrize("loss", ["nt_xent", "dcl", "contr", "binary", "mio_v1", "mio_v3", "combo"])
@pytest.mark.parametrize("name", OF_PAIRS)
def test_gradients_flow_through_the_temperature(loss: str, name: str) -> None:
    z0, z1 = (z.requires_grad_() for z in embeddings(3, 4, "gradcheck"))
    made = LOSSES[loss](temperature={"name": name, "low": 0.3, "high": 0.6})
    assert torch.autograd.gradcheck(made, (z0, z1), eps=1e-6, atol=1e-7)
    assert torch.autograd.gradgradcheck(made, (z0, z1), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", ["nt_xent", "dclw", "macl", "mio_v2"])
def test_or_stop_there(loss: str) -> None:
    """Without it the gradient is that of the loss whose temperatures are frozen numbers: same value, other gradient;
    and at constant temperature nothing changes."""
    gradients, values = [], []
    for gradient in (True, False):
        z0, z1 = (z.requires_grad_() for z in embeddings(5, 4, "stopped"))
        leaf = {"name": "dystress", "low": LOW, "high": HIGH, "gradient": gradient}
        value = LOSSES[loss](temperature=leaf)(z0, z1)
        gradients.append(torch.autograd.grad(value, z0)[0])
        values.append(value.item())
    assert values[0] == values[1] and not torch.allclose(*gradients, rtol=1e-3)


def test_a_stopped_temperature_is_a_constant_for_the_gradient() -> None:
    """Against autograd on a dense matrix with detached temperatures."""
    z0, z1 = (z.requires_grad_() for z in embeddings(6, 4, "stopped"))
    leaf = {"name": "dystress", "low": LOW, "high": HIGH, "gradient": False}
    (got,) = torch.autograd.grad(LOSSES["nt_xent"](temperature=leaf)(z0, z1), z0)
    x = torch.nn.functional.normalize(torch.cat([z0, z1]), dim=1)
    cosines = x @ x.T
    frozen = build(leaf).tau(cosines.detach())
    logits = (cosines / frozen).masked_fill(torch.eye(12, dtype=torch.bool), -math.inf)
    partner = torch.arange(12).roll(6)
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, partner), z0)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "leaf, message",
    [
        ({"name": "dystress", "low": 0.3, "high": 0.2}, "temperature.low: expected a number <= high = 0.2, got 0.3"),
        ({"name": "dystress_linear", "low": 0.0}, "temperature.low: expected a finite number > 0, got 0.0"),
        ({"name": "cosine_schedule", "high": math.inf}, "temperature.high: expected float, got inf"),
        ({"name": "cosine_schedule", "period": 0}, "temperature.period: expected a number of epochs > 0, got 0"),
        ({"name": "dystress_shifted", "shift": 1.5}, "temperature.shift: expected a number between -1 and 1, got 1.5"),
        ({"name": "dystress_shifted", "scale": 0.0}, "temperature.scale: expected a number > 0, got 0.0"),
        ({"name": "dystres"}, "temperature.name: 'dystres' is unknown; allowed: constant, cosine_schedule, dystress"),
        ({"name": "dystress", "hihg": 1.0}, "temperature.hihg: unknown key; allowed: low, high, gradient"),
        (-1.0, "temperature: expected a finite number > 0, got -1.0"),
    ],
)
def test_mistakes_are_one_line(leaf: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        LOSSES["nt_xent"](temperature=leaf)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_every_temperature_is_tested_here() -> None:
    assert set(TEMPERATURES) == {"constant", "cosine_schedule", *OF_PAIRS}
