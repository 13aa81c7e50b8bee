"""Temperatures as curves: the solutions that chapter 6 derives, and any temperature of ``losses`` over the cosine."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist.arguments import require_positive
from sslmed_dist.losses.temperature import Temperature


@dataclass(frozen=True)
class Profile:
    """A temperature at cosines ``c`` (M,): ``tau``, the pair's ``logit`` c / tau, and its ``slope`` d logit / dc as the
    loss differentiates it. All (M,)."""

    c: Tensor
    tau: Tensor
    logit: Tensor
    slope: Tensor


def profile(temperature: Temperature, c: Tensor) -> Profile:
    """``temperature`` at the cosines ``c`` (M,).

    The slope is (tau - c tau') / tau^2, the first factor of thesis Eq. 6.6 and 6.7. Where the temperature is detached
    (``gradient: false``) it is 1 / tau.
    """
    tau = torch.as_tensor(temperature.tau(c), dtype=c.dtype).expand_as(c)
    tau_slope = torch.as_tensor(temperature.slope(c), dtype=c.dtype).expand_as(c)
    slope = (tau - c * tau_slope) / tau.square() if temperature.gradient else 1.0 / tau
    return Profile(c, tau, c / tau, slope)


def ode_solution(c: Tensor, strength: float, constant: float) -> Tensor:
    """Thesis Eq. 6.14: tau(c) = c / ln(delta K c - k'), in the shape of the cosines ``c``.

    ``strength`` is delta K, ``constant`` the integral constant k'. It solves Eq. 6.13, which is Eq. 6.9 to 6.12 for
    many pairs: dtau/dc = tau/c (1 - tau delta K e^(-c/tau)). NaN where it is no temperature: where the logarithm does
    not exist, or tau is not positive.
    """
    inside = strength * c - constant
    tau = c / torch.where(inside > 0, inside, torch.nan).log()
    if constant == -1.0:  # the only solution that goes through c = 0 with a positive temperature
        tau = torch.where(c == 0, 1.0 / strength, tau)
    return torch.where(tau > 0, tau, torch.nan)


def integral_constants(strength: float, high: float) -> tuple[float, float]:
    """Thesis Eq. 6.15: the constants k'- and k'+ for which tau is ``high`` at c = -1, and at c = 1.

    ``strength`` is delta K. They are -delta K - e^(-1/high) and delta K - e^(1/high). In the second one the thesis
    prints -delta K; its own Eq. 6.14 at c = 1 gives the other sign. ``ValueError`` for numbers that are not positive.
    """
    require_positive("strength", strength)
    inverse = torch.tensor(1.0 / require_positive("high", high), dtype=torch.float64)
    return -strength - float((-inverse).exp()), strength - float(inverse.exp())


def solutions(c: Tensor, strength: float, high: float, count: int) -> Sequence[tuple[float, Tensor]]:
    """``count`` solutions of thesis Eq. 6.14 with constants from k'- to k'+, evenly spaced on a logarithmic scale, as
    (constant, tau (M,)). Figure 6.2 draws such curves. Between the constants lie 1 and e^(1/high): hence the scale."""
    lower, upper = integral_constants(strength, high)
    # -k' runs over decades; in even steps nearly all curves would lie at its end.
    first, last = (torch.tensor(-constant, dtype=torch.float64).log() for constant in (lower, upper))
    constants = [-float(x.exp()) for x in torch.linspace(float(first), float(last), count, dtype=torch.float64)]
    return [(constant, ode_solution(c, strength, constant)) for constant in constants]
