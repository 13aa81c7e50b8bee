"""Ours against lightly 1.6 on one process, where both define the same loss (extra ``parity``)."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sslmed_dist.losses import LOSSES
from tests.losses.golden import embeddings

try:
    from lightly import loss as lightly
except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision whose compiled operators do not fit torch
    pytest.skip(f"lightly cannot be imported ({error}); pip install -e '.[parity]'", allow_module_level=True)

Loss = Callable[[Tensor, Tensor], Tensor]

# Ours (built by default arguments where none stand), and theirs with the same meaning.
PAIRS: dict[str, tuple[Callable[[], Loss], Callable[[], Loss]]] = {
    "barlow_twins": (LOSSES["barlow_twins"], lightly.BarlowTwinsLoss),
    "barlow_twins, weight": (lambda: LOSSES["barlow_twins"](0.1), lambda: lightly.BarlowTwinsLoss(lambda_param=0.1)),
    "vicreg": (LOSSES["vicreg"], lightly.VICRegLoss),
    "vicreg, weights": (
        lambda: LOSSES["vicreg"](invariance=2.0, variance=3.0, covariance=4.0, eps=0.01),
        lambda: lightly.VICRegLoss(lambda_param=2.0, mu_param=3.0, nu_param=4.0, eps=0.01),
    ),
    "wmse": (LOSSES["wmse"], lambda: Stacked(lightly.WMSELoss(embedding_dim=8, w_size=64))),
    "nt_xent": (lambda: LOSSES["nt_xent"](temperature=0.1), lambda: lightly.NTXentLoss(temperature=0.1)),
    "dcl": (lambda: LOSSES["dcl"](temperature=0.1), lambda: lightly.DCLLoss(temperature=0.1)),
    "macl": (lambda: LOSSES["macl"](temperature=0.1), lambda: lightly.MACLLoss(temperature=0.1)),
    "dclw": (lambda: LOSSES["dclw"](temperature=0.1), lambda: lightly.DCLWLoss(temperature=0.1)),
}


class Stacked:
    """lightly's W-MSE takes the views in one tensor, one view after the other."""

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        self.loss = loss

    def __call__(self, z0: Tensor, z1: Tensor) -> Tensor:
        return self.loss(torch.cat((z0, z1)))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_value_and_gradient(name: str) -> None:
    """Float64 throughout, 64 samples of width 8."""
    values, gradients = [], []
    for build in PAIRS[name]:
        z0, z1 = (z.clone().requires_grad_() for z in embeddings(64, 8, "lightly"))
        values.append(build()(z0, z1))
        gradients.append(torch.stack(torch.autograd.grad(values[-1], (z0, z1))))
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-6)
    assert (gradients[0] - gradients[1]).norm() <= 1e-6 * gradients[1].norm()
