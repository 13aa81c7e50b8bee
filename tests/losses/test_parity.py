"""The table of tests that every loss passes; a loss enters ``LOSSES`` with one row of ``ROWS``."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sslmed_dist import distributed, randomness, registry
from sslmed_dist.losses import LOSSES
from tests import references
from tests.gloo import GlooPool
from tests.losses import golden, test_redundancy
from tests.losses.golden import embeddings


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def closed_nt_xent(p: float, q: float, n: int, t: float) -> float:
    return math.log(math.exp(p) + (2 * n - 2) * math.exp(q)) - p


def closed_dcl(p: float, q: float, n: int, t: float) -> float:
    return math.log(2 * n - 2) + q - p


def closed_macl(p: float, q: float, n: int, t: float) -> float:
    adapted = 1.0 + 0.5 * p * t
    surprise = closed_nt_xent(p / adapted, q / adapted, n, t)
    return surprise / max(-math.expm1(-surprise), 1e-8)


def closed_mio_v1(p: float, q: float, n: int, t: float) -> float:
    return softplus(-p) + softplus(q)


@dataclass(frozen=True)
class Row:
    """``closed(p, q, n, t)``: the value on n samples at temperature t when c/t is p for every positive and q for every
    negative pair. ``differentiable``: whether the gradient is the derivative of the value (not where weights are
    constants for it)."""

    reference: Callable[[Tensor, Tensor, float], float]
    closed: Callable[[float, float, int, float], float]
    differentiable: bool = True


ROWS = {
    "nt_xent": Row(references.nt_xent, closed_nt_xent),
    "contr": Row(references.contr, lambda p, q, n, t: closed_nt_xent(2 * p, 2 * q, n, t)),
    "dcl": Row(references.dcl, closed_dcl),
    "dclw": Row(references.dclw, closed_dcl, differentiable=False),
    "macl": Row(references.macl, closed_macl, differentiable=False),
    "binary": Row(
        references.binary,
        lambda p, q, n, t: (2 * n * softplus(-p) + (4 * n * n - 4 * n) * softplus(q)) / (4 * n * n),
    ),
    "combo": Row(
        references.combo,
        lambda p, q, n, t: closed_mio_v1(p, q, n, t) + closed_nt_xent(p * t / 0.165, q * t / 0.165, n, t),
    ),
    "mio_v1": Row(references.mio_v1, closed_mio_v1),
    "mio_v2": Row(references.mio_v2, lambda p, q, n, t: -p + softplus(q)),
    "mio_v3": Row(references.mio_v3, lambda p, q, n, t: -p + math.exp(q)),
}
NAMES = sorted(ROWS)
DEFAULTS = {"dcl": 0.1, "dclw": 0.1, "macl": 0.1, "binary": 0.25, "contr": 0.33, "combo": 0.25}
every_loss = pytest.mark.parametrize("name", NAMES)
DIFFERENTIABLE = [name for name in NAMES if ROWS[name].differentiable]


def close(value: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether the norm of the difference is within ``tolerance`` of the norm of ``expected``."""
    return bool((value - expected).norm() <= tolerance * expected.norm())


def test_every_loss_has_a_row() -> None:
    """Those of a weighted sum are its terms'."""
    rows = set(ROWS) | set(test_redundancy.ROWS)
    assert rows == set(LOSSES) - {"sum"}, "add the loss to a table ROWS, to the references and to the golden file"


@every_loss
@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("samples", [2, 7])
def test_slow_reference(name: str, temperature: float, samples: int) -> None:
    z0, z1 = embeddings(samples, 5, "reference")
    value = LOSSES[name](temperature=temperature)(z0, z1).item()
    assert value == pytest.approx(ROWS[name].reference(z0, z1, temperature), rel=1e-12)


@every_loss
def test_built_from_a_configuration(name: str) -> None:
    assert registry.build(LOSSES, {"name": name, "temperature": 0.1}, "method.loss").temperature.smallest == 0.1
    assert registry.build(LOSSES, name, "method.loss").temperature.smallest == DEFAULTS.get(name, 0.2)
    pair = {"name": name, "temperature": {"name": "dystress", "low": 0.1, "high": 0.3}}
    assert registry.build(LOSSES, pair, "method.loss").temperature.smallest == 0.1


@every_loss
@pytest.mark.parametrize("temperature", [0.045, 0.2, 1.0])  # 0.045: c/t beyond 20, where torch cuts its softplus
def test_analytic_values(name: str, temperature: float) -> None:
    loss, closed, n, eye = LOSSES[name](temperature=temperature), ROWS[name].closed, 6, torch.eye(6).double()
    constant = torch.ones(n, 4, dtype=torch.float64)
    for z0, z1, positive, negative in [(constant, constant, 1, 1), (eye, eye, 1, 0), (eye, -eye, -1, 0)]:
        expected = closed(positive / temperature, negative / temperature, n, temperature)
        assert loss(z0, z1).item() == pytest.approx(expected, rel=1e-12), (positive, negative)


def test_nt_xent_of_constant_embeddings_is_the_log_of_the_candidates() -> None:
    z = torch.full((16, 3), 2.0)
    assert LOSSES["nt_xent"]()(z, z).item() == pytest.approx(math.log(2 * 16 - 1), rel=1e-6)


@every_loss
def test_symmetries(name: str) -> None:
    """Swapped views, permuted samples, rotated space, embeddings of another length: the same value."""
    z0, z1 = embeddings(7, 5, "symmetry")
    loss = LOSSES[name]()
    value = loss(z0, z1).item()
    permuted = randomness.order(torch.arange(7), "permutation")
    rotation = torch.linalg.qr(embeddings(5, 5, "rotation")[0]).Q
    lengths = 10.0 ** torch.linspace(-3, 3, 7).double()[:, None]
    changed = [(z1, z0), (z0[permuted], z1[permuted]), (z0 @ rotation, z1 @ rotation), (z0 * lengths, z1 * 7.0)]
    for first, second in changed:
        assert loss(first, second).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_to_second_order(name: str) -> None:
    z0, z1 = (z.requires_grad_() for z in embeddings(3, 4, "gradcheck"))
    loss = LOSSES[name](temperature=0.4)
    assert torch.autograd.gradcheck(loss, (z0, z1), eps=1e-6, atol=1e-7)
    assert torch.autograd.gradgradcheck(loss, (z0, z1), eps=1e-6, atol=1e-6)


@every_loss
def test_golden_values(name: str) -> None:
    """Fails when a method's numbers change; see tests/losses/golden.py for the command that writes the file anew."""
    written = json.loads(golden.FILE.read_text())
    assert golden.compute()[name] == pytest.approx(written[name], rel=1e-10, abs=1e-10)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.05, 0.2])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype, temperature: float) -> None:
    halves = [z.to(dtype).requires_grad_() for z in embeddings(16, 8, "half")]
    loss = LOSSES[name](temperature=temperature)
    with torch.autocast("cpu", dtype=dtype):
        value = loss(*halves)
        exact = loss(*(z.detach().float() for z in halves))
    assert value.dtype == torch.float32 and torch.equal(value, exact) and torch.isfinite(value)
    (value / value.detach().abs().clamp_min(1.0)).backward()  # float16 gradients need a scaler: MIOv3's reach 1e7
    assert all(z.grad is not None and z.grad.dtype == dtype and torch.isfinite(z.grad).all() for z in halves)


@every_loss
def test_float32_at_a_small_temperature(name: str) -> None:
    """Equal, opposite and random embeddings at 0.05: finite, and the gradient near that of float64."""
    loss = LOSSES[name](temperature=0.05)
    for z0, z1 in (embeddings(16, 8, "small"), (torch.ones(4, 3), torch.ones(4, 3)), (torch.eye(4), -torch.eye(4))):
        values, grads = [], []
        for dtype in (torch.float64, torch.float32):
            leaf = z0.to(dtype).requires_grad_()
            values.append(loss(leaf, z1.to(dtype)))
            grads.append(torch.autograd.grad(values[-1], leaf)[0].double())
        assert values[1].item() == pytest.approx(values[0].item(), rel=1e-5, abs=1e-5)
        assert (grads[1] - grads[0]).norm() <= 1e-5 * max(grads[0].norm().item(), values[0].abs().item())


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_identities_of_mio(temperature: float) -> None:
    z0, z1 = embeddings(7, 5, "identities")
    v1, v2, v3 = (LOSSES[f"mio_v{v}"](temperature=temperature)(z0, z1).item() for v in (1, 2, 3))
    cosines = torch.nn.functional.cosine_similarity(z0, z1).tolist()
    assert v1 == pytest.approx(v2 + sum(softplus(c / temperature) for c in cosines) / 7, rel=1e-12)
    assert v3 >= v2


Parts = tuple[float, Tensor, Tensor]


def part_of_rank(name: str, dtype: torch.dtype) -> Parts:
    """On this rank's slice of 4 samples: the loss, its gradient in a linear encoder's weight and in the embeddings."""
    first, second = (x.to(dtype).chunk(distributed.world_size())[distributed.rank()] for x in embeddings(4, 6, "ranks"))
    weight = embeddings(6, 5, "weight")[0].to(dtype).requires_grad_()
    z0, z1 = first @ weight, second @ weight
    loss = LOSSES[name]()(z0, z1)
    of_weight, of_z0, of_z1 = torch.autograd.grad(loss, (weight, z0, z1))
    return loss.item(), of_weight, torch.stack((of_z0, of_z1), dim=1)


@every_loss
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_ranks_together_compute_the_loss_of_one_process(
    gloo: GlooPool, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    value, of_weight, of_z = part_of_rank(name, dtype)
    for world in (1, 2, 4):
        values, of_weights, of_zs = zip(*gloo.run(part_of_rank, world, name, dtype), strict=True)
        assert sum(values) / world == pytest.approx(value, rel=tolerance)
        assert close(torch.stack(of_weights).mean(0), of_weight, tolerance), world
        assert close(torch.cat(of_zs) / world, of_z, tolerance), world


def second_order_of_rank(name: str) -> Tensor:
    """This rank's part of a Hessian-vector product in a linear encoder's weight."""
    first, second = (x.chunk(distributed.world_size())[distributed.rank()] for x in embeddings(8, 6, "ranks"))
    weight, direction = embeddings(6, 5, "weight")
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(LOSSES[name]()(first @ weight, second @ weight), weight, create_graph=True)
    return torch.autograd.grad((gradient * direction).sum(), weight)[0]


@every_loss
def test_ranks_together_compute_the_second_derivative_of_one_process(gloo: GlooPool, name: str) -> None:
    expected = second_order_of_rank(name)
    for world in (2, 4):
        assert close(torch.stack(gloo.run(second_order_of_rank, world, name)).mean(0), expected, 1e-12)


@every_loss
@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan, math.inf])
def test_temperature_out_of_range(name: str, temperature: float) -> None:
    with pytest.raises(ValueError, match="^temperature: expected a finite number > 0, got"):
        LOSSES[name](temperature=temperature)


@every_loss
@pytest.mark.parametrize(
    "z0, z1, message",
    [
        (torch.ones(4), torch.ones(4), r"z0: expected a matrix \(N, D\) .* got \(4,\)"),
        (torch.ones(4, 0), torch.ones(4, 0), r"z0: expected a matrix \(N, D\) .* D > 0, got \(4, 0\)"),
        (torch.ones(4, 3), torch.ones(4, 2), r"z1: expected the shape and dtype of z0, \(4, 3\) .* got \(4, 2\)"),
        (torch.ones(4, 3), torch.ones(4, 3).half(), "z1: expected the shape and dtype of z0"),
        (torch.ones(1, 3), torch.ones(1, 3), "z0: expected at least 2 samples over all ranks .* got 1"),
        (torch.ones(0, 3), torch.ones(0, 3), "z0: expected at least 2 samples over all ranks .* got 0"),
        (torch.ones(4, 3).long(), torch.ones(4, 3).long(), "z0: expected a floating-point dtype .* got torch.int64"),
    ],
)
def test_wrong_embeddings(name: str, z0: Tensor, z1: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        LOSSES[name]()(z0, z1)
    assert "\n" not in str(caught.value)
