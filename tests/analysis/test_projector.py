"""The closed forms of chapter 5 against automatic differentiation."""

import pytest
import torch
from torch import Tensor

from sslmed_dist.analysis import projector


def case(samples: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(samples)
    h = torch.randn(2 * samples, inputs, dtype=torch.float64, generator=source)
    return h, 0.3 * torch.randn(inputs, outputs, dtype=torch.float64, generator=source)


def slow_value(h: Tensor, psi: Tensor, tau: float) -> Tensor:
    """Eq. 5.29 pair by pair."""
    z, count = h @ psi, len(h) // 2
    total = h.new_zeros(())
    for n in range(count):
        total = total - z[n] @ z[n + count] / tau / count
    for n in range(2 * count):
        for m in range(2 * count):
            if m not in (n, (n + count) % (2 * count)):
                total = total + (z[n] @ z[m] / tau).exp() / (4 * count**2 - 4 * count)
    return total


@pytest.mark.parametrize("samples, inputs, outputs, tau", [(2, 3, 2, 0.5), (4, 5, 3, 0.9), (3, 4, 1, 2.0)])
def test_value_gradient_and_hessian(samples: int, inputs: int, outputs: int, tau: float) -> None:
    h, psi = case(samples, inputs, outputs)
    psi.requires_grad_()
    expected = slow_value(h, psi, tau)
    assert torch.allclose(projector.value(h, psi, tau), expected, rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(expected, psi)
    found = projector.gradient(h, psi.detach(), tau)
    assert (found - slope).abs().max() <= 1e-10 * slope.abs().max()
    curvature = torch.autograd.functional.hessian(lambda it: slow_value(h, it, tau), psi)
    found = projector.hessian(h, psi.detach(), tau)
    assert isinstance(curvature, Tensor)
    assert (found - curvature).abs().max() <= 1e-10 * curvature.abs().max()
    if outputs > 1:  # the cases of B as they are printed would be off by far more than rounding
        b = h.T @ projector.pair_weights(h, psi.detach(), tau) @ h
        same = torch.eye(outputs, dtype=torch.float64)
        printed = found + torch.einsum("ij,kl->ikjl", b, 1.0 - 2.0 * same)
        assert (printed - curvature).abs().max() > 1e-2 * curvature.abs().max()


@pytest.mark.parametrize(
    "shape, weights, tau, line",
    [
        ((5, 3), (3, 2), 0.2, r"h: expected \(2 N, D_i\) of N >= 2 samples, got \(5, 3\)"),
        ((4, 3), (2, 2), 0.2, r"psi: expected \(D_i, D_o\) with D_i = 3, got \(2, 2\)"),
        ((4, 3), (3, 2), 0.0, r"tau: expected a number > 0, got 0.0"),
    ],
)
def test_bad_input_is_one_line(shape: tuple[int, int], weights: tuple[int, int], tau: float, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        projector.gradient(torch.zeros(shape), torch.zeros(weights), tau)
