"""The curves of chapter 6: they solve its equation, and pairs are pulled as its gradients say."""

import math
from typing import Any

import pytest
import torch

from sslmed_dist import registry
from sslmed_dist.analysis.pair_gradients import kinds, pair_gradients
from sslmed_dist.analysis.temperature_curves import integral_constants, ode_solution, profile, solutions
from sslmed_dist.losses import LOSSES
from sslmed_dist.losses.temperature import build

PAIRS = {"nt_xent": 0.1, "dcl": 0.1, "mio_v1": 0.2, "mio_v2": 0.2, "mio_v3": 0.2}


@pytest.mark.parametrize("strength", [0.5, 2.0, 30.0])
def test_solutions_solve_the_equation(strength: float) -> None:
    for c in (
        torch.linspace(-0.99, -0.05, 20, dtype=torch.float64),
        torch.linspace(0.05, 1.0, 20, dtype=torch.float64),
    ):
        for constant in (-1.0, *integral_constants(strength, 0.2)):
            point = c.clone().requires_grad_()
            tau = ode_solution(point, strength, constant)
            there = tau.isfinite()
            (slope,) = torch.autograd.grad(tau[there].sum(), point)
            expected = tau / c * (1.0 - tau * strength * torch.exp(-c / tau))
            assert torch.allclose(slope[there], expected.detach()[there], rtol=1e-9)


@pytest.mark.parametrize("strength, high", [(1.0, 0.2), (5.0, 0.5)])
def test_constants_put_the_highest_temperature_at_the_ends(strength: float, high: float) -> None:
    lower, upper = integral_constants(strength, high)
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert ode_solution(ends, strength, lower)[0].item() == pytest.approx(high, rel=1e-12)
    assert ode_solution(ends, strength, upper)[1].item() == pytest.approx(high, rel=1e-12)
    printed = -strength - math.exp(1 / high)  # the thesis's k'+, with the other sign
    assert ode_solution(ends, strength, printed)[1].item() != pytest.approx(high, rel=1e-3)
    curves = solutions(ends, strength, high, 5)
    assert [curves[0][0], curves[-1][0]] == pytest.approx([lower, upper])


def test_only_one_solution_goes_through_zero() -> None:
    c = torch.tensor([-1e-6, 0.0, 1e-6], dtype=torch.float64)
    assert torch.allclose(ode_solution(c, 4.0, -1.0), torch.full((3,), 0.25, dtype=torch.float64), rtol=1e-5)
    assert ode_solution(c, 4.0, -3.0)[:2].isnan().all()  # ln 3 > 0: no temperature left of zero


@pytest.mark.parametrize(
    "leaf", [0.2, *({"name": f"dystress{kind}", "gradient": g} for kind in ("", "_shifted") for g in (True, False))]
)
def test_the_slope_of_a_logit(leaf: Any) -> None:
    temperature = build(leaf)
    c = torch.linspace(-0.97, 0.97, 31, dtype=torch.float64, requires_grad=True)
    tau = temperature.tau(c if temperature.gradient else c.detach())
    (expected,) = torch.autograd.grad((c / tau).sum(), c)
    found = profile(temperature, c.detach())
    assert torch.allclose(found.slope, expected, rtol=1e-10)
    assert torch.allclose(found.logit * found.tau, found.c)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("varying", [False, True])
def test_pairs_have_the_gradient_of_the_loss(name: str, varying: bool) -> None:
    temperature: Any = {"name": "dystress", "low": 0.1, "high": 0.3} if varying else PAIRS[name]
    loss = registry.build(LOSSES, {"name": name, "temperature": temperature}, "loss")
    source = torch.Generator().manual_seed(1)
    z0, z1 = (torch.randn(5, 4, dtype=torch.float64, generator=source) for _ in range(2))
    cosines, gradients, value = pair_gradients(loss, z0, z1)
    assert torch.allclose(value, loss(z0, z1), rtol=1e-12)
    rows = torch.nn.functional.normalize(torch.stack((z0, z1), 1).flatten(0, 1)).requires_grad_()
    # Through unit rows: the tile-wise loss sees them again normalised, so only the tangential part is compared.
    (expected,) = torch.autograd.grad(loss(rows[0::2], rows[1::2]), rows)
    found = (gradients + gradients.T) @ rows.detach()
    found = found - (found * rows.detach()).sum(1, keepdim=True) * rows.detach()
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_nt_xent_pulls_as_equations_6_2_and_6_3_say() -> None:
    loss = registry.build(LOSSES, {"name": "nt_xent", "temperature": 0.2}, "loss")
    source = torch.Generator().manual_seed(2)
    z0, z1 = (torch.randn(4, 3, dtype=torch.float64, generator=source) for _ in range(2))
    cosines, gradients, _ = pair_gradients(loss, z0, z1)
    positive, negative = kinds(8)
    shares = torch.exp(cosines / 0.2) * (positive | negative)
    shares /= shares.sum(1, keepdim=True)  # p_ij
    assert torch.allclose(gradients[negative] * 8, shares[negative] / 0.2)
    assert torch.allclose(gradients[positive] * 8, -(1 - shares[positive]) / 0.2)


def test_a_loss_without_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss: gradients by pair are known of DCL, MIOv1, .*, got VICReg"):
        pair_gradients(registry.build(LOSSES, "vicreg", "loss"), torch.eye(3), torch.eye(3))
