"""Gradients of the redundancy-reduction and whitening losses: exact, the same on any number of ranks, and in floats."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sslmed_dist import distributed
from sslmed_dist.losses import LOSSES
from tests.gloo import GlooPool
from tests.losses import redundancy_references as references
from tests.losses.golden import embeddings
from tests.losses.test_redundancy import ROWS, every_loss, every_size


def close(value: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether the norm of the difference is within ``tolerance`` of the norm of ``expected``."""
    return bool((value - expected).norm() <= tolerance * expected.norm())


@every_size
def test_gradients_to_second_order(name: str, size: tuple[int, int]) -> None:
    z0, z1 = (z.requires_grad_() for z in embeddings(*size, "gradcheck"))
    loss = LOSSES[name](**ROWS[name].exact)
    assert torch.autograd.gradcheck(loss, (z0, z1), eps=1e-6, atol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, (z0, z1), eps=1e-6, atol=1e-5, fast_mode=True)


def test_gradients_of_whitening_with_equal_eigenvalues() -> None:
    """Where torch's eigendecomposition has no derivative: orthogonal columns, and more columns than rows."""
    for x in (torch.eye(5, 3).double(), torch.eye(3, 5).double(), torch.ones(4, 3).double()):
        for name in ("zero_icl", "zero_fcl", "arb"):
            loss = LOSSES[name](eps=0.1, stop_gradient=False)
            z0, z1 = (z.requires_grad_() for z in (x.clone(), 2.0 * x))
            assert torch.autograd.gradcheck(loss, (z0, z1), eps=1e-6, atol=1e-6)


def held(name: str, z0: Tensor, z1: Tensor) -> references.Whitening:
    """What the authors' code takes for a constant: the whitening matrices, or ARB's bases."""
    if name == "zero_icl":
        z0, z1 = z0.T, z1.T
    x0, x1 = (references.standardised(references.rows(z), 1e-5) for z in (z0, z1))
    if name == "arb":
        return references.base(x0, 1, 1e-5), references.base(x1, 1, 1e-5)
    return references.inverse_root(x0, 0.1, 1e-5), references.inverse_root(x1, 0.1, 1e-5)


@pytest.mark.parametrize("name", ["zero_icl", "zero_fcl", "arb"])
@pytest.mark.parametrize("size", [(7, 3), (4, 6)])
def test_stopped_gradient_is_that_of_the_reference_with_fixed_whitening(name: str, size: tuple[int, int]) -> None:
    z0, z1 = (z.requires_grad_() for z in embeddings(*size, "stopped"))
    gradients = torch.autograd.grad(LOSSES[name]()(z0, z1), (z0, z1))
    through = torch.autograd.grad(LOSSES[name](stop_gradient=False)(z0, z1), (z0, z1))
    fixed = held(name, z0, z1)
    step = 1e-6
    for view, gradient in enumerate(gradients):
        numeric = np.zeros(size)
        for i, j in np.ndindex(size):
            values = []
            for sign in (1.0, -1.0):
                moved = [z0.detach().clone(), z1.detach().clone()]
                moved[view][i, j] += sign * step
                values.append(ROWS[name].reference(*moved, fixed=fixed))
            numeric[i, j] = (values[0] - values[1]) / (2 * step)
        assert close(gradient, torch.from_numpy(numeric), 1e-7)
        assert not close(gradient, through[view], 1e-2)


Parts = tuple[float, Tensor, Tensor]


def part_of_rank(name: str, dtype: torch.dtype, width: int, arguments: dict[str, Any]) -> Parts:
    """On this rank's slice of 16 samples: the loss, its gradient in a linear encoder's weight and in the embeddings."""
    views = embeddings(16, 6, "ranks")
    first, second = (x.to(dtype).chunk(distributed.world_size())[distributed.rank()] for x in views)
    weight = embeddings(6, width, "weight")[0].to(dtype).requires_grad_()
    z0, z1 = first @ weight, second @ weight
    distributed.seed_step(3, 4)
    loss = LOSSES[name](**arguments)(z0, z1)
    of_weight, of_z0, of_z1 = torch.autograd.grad(loss, (weight, z0, z1))
    return loss.item(), of_weight, torch.stack((of_z0, of_z1), dim=1)


def check_ranks(
    gloo: GlooPool, name: str, dtype: torch.dtype, tolerance: float, width: int, arguments: dict[str, Any]
) -> None:
    value, of_weight, of_z = part_of_rank(name, dtype, width, arguments)
    for world in (1, 2, 4):
        parts = gloo.run(part_of_rank, world, name, dtype, width, arguments)
        values, of_weights, of_zs = zip(*parts, strict=True)
        assert sum(values) / world == pytest.approx(value, rel=tolerance)
        assert close(torch.stack(of_weights).mean(0), of_weight, tolerance), world
        assert close(torch.cat(of_zs) / world, of_z, tolerance), world


@every_loss
@pytest.mark.parametrize("width", [3, 5])  # 3 columns on 4 ranks: one has none
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_ranks_together_compute_the_loss_of_one_process(
    gloo: GlooPool, name: str, dtype: torch.dtype, tolerance: float, width: int
) -> None:
    check_ranks(gloo, name, dtype, tolerance, width, {})


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("wmse", {"size": 8, "iterations": 2}),
        ("arb", {"groups": 2, "stop_gradient": False}),
        ("zero_icl", {"stop_gradient": False}),
        ("zero_fcl", {"stop_gradient": False}),
    ],
)
def test_ranks_with_other_arguments(gloo: GlooPool, name: str, arguments: dict[str, Any]) -> None:
    """The ranks' generators differ; the sub-batches of W-MSE are rank 0's."""
    check_ranks(gloo, name, torch.float64, 1e-12, 4, arguments)


def second_order_of_rank(name: str) -> Tensor:
    """This rank's part of a Hessian-vector product in a linear encoder's weight."""
    views = embeddings(16, 6, "ranks")
    first, second = (x.chunk(distributed.world_size())[distributed.rank()] for x in views)
    weight, direction = embeddings(6, 5, "weight")
    weight.requires_grad_()
    loss = LOSSES[name](**ROWS[name].exact)(first @ weight, second @ weight)
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    return torch.autograd.grad((gradient * direction).sum(), weight)[0]


@every_loss
def test_ranks_together_compute_the_second_derivative_of_one_process(gloo: GlooPool, name: str) -> None:
    expected = second_order_of_rank(name)
    for world in (2, 4):
        assert close(torch.stack(gloo.run(second_order_of_rank, world, name)).mean(0), expected, 1e-11)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    halves = [z.to(dtype).requires_grad_() for z in embeddings(16, 8, "half")]
    loss = LOSSES[name]()
    with torch.autocast("cpu", dtype=dtype):
        value = loss(*halves)
        exact = loss(*(z.detach().float() for z in halves))
    assert value.dtype == torch.float32 and torch.equal(value, exact) and torch.isfinite(value)
    value.backward()
    assert all(z.grad is not None and z.grad.dtype == dtype and torch.isfinite(z.grad).all() for z in halves)


@every_size
def test_float32_is_near_float64(name: str, size: tuple[int, int]) -> None:
    """Also far from the origin and nearly of one direction, where single precision would lose the whitening."""
    z0, z1 = embeddings(*size, "small")
    near = embeddings(*size, "near")[0][:, :1]
    for first, second in [(z0, z1), (near + 0.1 * z0 + 5.0, near + 0.1 * z1 + 5.0)]:
        values, grads = [], []
        for dtype in (torch.float64, torch.float32):
            leaf = first.float().to(dtype).requires_grad_()
            values.append(LOSSES[name]()(leaf, second.float().to(dtype)))
            grads.append(torch.autograd.grad(values[-1], leaf)[0].double())
        assert values[1].item() == pytest.approx(values[0].item(), rel=1e-5)
        assert close(grads[1], grads[0], 1e-5)
