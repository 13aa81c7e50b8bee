"""Values of the redundancy-reduction and whitening losses; their gradients are in ``test_redundancy_gradients``."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import randomness, registry
from sslmed_dist.losses import LOSSES
from tests.losses import redundancy_references as references
from tests.losses.golden import embeddings


@dataclass(frozen=True)
class Row:
    """``arguments``: some that are not the defaults. ``exact``: those under which the gradient is that of the value.

    ``sizes``: samples and width to test on, more samples than dimensions and, where it is defined, fewer.
    """

    reference: Callable[..., float]
    arguments: dict[str, Any]
    exact: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ((12, 4), (5, 9))


def vicreg_reference(z0: Tensor, z1: Tensor, covariance: float = 1.0, **arguments: float) -> float:
    return references.vicreg(z0, z1, covariance_weight=covariance, **arguments)


THROUGH = {"stop_gradient": False}
ROWS = {
    "barlow_twins": Row(references.barlow_twins, {"redundancy": 0.3, "eps": 0.01}),
    "vicreg": Row(vicreg_reference, {"invariance": 2.0, "variance": 3.0, "covariance": 0.5, "gamma": 2.0, "eps": 0.1}),
    "wmse": Row(references.wmse, {"shrinkage": 0.2}, sizes=((12, 4), (20, 7))),
    "zero_icl": Row(references.zero_icl, {"shrinkage": 0.0, "eps": 0.01}, THROUGH),
    "zero_fcl": Row(references.zero_fcl, {"shrinkage": 0.0, "eps": 0.01}, THROUGH),
    "arb": Row(references.arb, {"groups": 2, "eps": 0.01}, THROUGH, sizes=((12, 4), (5, 10))),
    "logdet": Row(references.logdet, {"invariance": 2.0, "decorrelation": 3.0, "eps": 0.1}),
}
NAMES = sorted(ROWS)
every_loss = pytest.mark.parametrize("name", NAMES)
every_size = pytest.mark.parametrize("name, size", [(name, size) for name in NAMES for size in ROWS[name].sizes])

# Eight samples of four features: orthogonal columns of a Hadamard matrix, mean 0, variance (1/n) 1.
SIGNS = torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in (1, 2, 4, 7)] for i in range(8)], dtype=torch.float64)


@every_size
def test_slow_reference(name: str, size: tuple[int, int]) -> None:
    z0, z1 = embeddings(*size, "redundancy")
    row = ROWS[name]
    for arguments in ({}, row.arguments):
        value = LOSSES[name](**arguments)(z0, z1).item()
        assert value == pytest.approx(row.reference(z0, z1, **arguments), rel=1e-9)
        assert LOSSES[name](**arguments, **row.exact)(z0, z1).item() == pytest.approx(value, rel=1e-10)


@every_loss
def test_built_from_a_configuration(name: str) -> None:
    for argument, value in ROWS[name].arguments.items():
        loss = registry.build(LOSSES, {"name": name, argument: value}, "method.loss")
        assert getattr(loss, argument) == value
    with pytest.raises(ValueError, match="method.loss.temperature: unknown key"):
        registry.build(LOSSES, {"name": name, "temperature": 0.2}, "method.loss")


@pytest.mark.parametrize(
    "name, arguments, same, opposite",
    [
        ("barlow_twins", {}, 0.0, 16.0),
        ("vicreg", {}, 0.0, 100.0),
        ("wmse", {}, 0.0, 4.0),
        ("zero_fcl", {}, 0.0, 16.0),
        ("zero_fcl", {"shrinkage": 0.0}, 0.0, 16.0),
        ("arb", {}, 0.0, 32.0),
        ("logdet", {}, 2 * (8 / 7 + 1e-4 - math.log(8 / 7 + 1e-4) - 1), None),
    ],
)
def test_orthogonal_design(name: str, arguments: dict[str, Any], same: float, opposite: float | None) -> None:
    """Uncorrelated features of variance 1: equal views are the minimum, opposite ones have correlation -1."""
    loss = LOSSES[name](**arguments)
    assert loss(SIGNS, SIGNS).item() == pytest.approx(same, abs=1e-8)
    if opposite is not None:
        assert loss(SIGNS, -SIGNS).item() == pytest.approx(opposite, abs=1e-3)


def test_instances_of_an_orthogonal_design() -> None:
    """Four samples whose values over eight features are orthogonal: ICL of equal views is 0, of opposite ones 4 N."""
    assert LOSSES["zero_icl"]()(SIGNS.T, SIGNS.T).item() == pytest.approx(0.0, abs=1e-8)
    assert LOSSES["zero_icl"]()(SIGNS.T, -SIGNS.T).item() == pytest.approx(16.0, abs=1e-3)


def test_barlow_twins_by_hand() -> None:
    """One feature repeated: every correlation is 1, and only the redundancy is left."""
    z = SIGNS[:, :1].expand(8, 5)
    assert LOSSES["barlow_twins"](redundancy=0.5, eps=1e-12)(z, 3.0 * z + 1.0).item() == pytest.approx(0.5 * 20)


def test_vicreg_by_hand() -> None:
    """Halved, the variance is 2/7; a repeated feature has covariance 8/7 with its copy."""
    hinge = 25.0 * (1.0 - math.sqrt(2 / 7 + 1e-4))
    assert LOSSES["vicreg"]()(SIGNS / 2, SIGNS / 2).item() == pytest.approx(hinge, rel=1e-12)
    z = SIGNS[:, :1].expand(8, 2)
    assert LOSSES["vicreg"](covariance=3.0)(z, z).item() == pytest.approx(3.0 * 2 * (8 / 7) ** 2, rel=1e-12)
    assert LOSSES["vicreg"](variance=0, covariance=0)(z, z + 0.5).item() == pytest.approx(25.0 / 4, rel=1e-12)


def test_wmse_does_not_see_a_triangular_map() -> None:
    """Cholesky whitening undoes L z + m for every lower triangular L with a positive diagonal."""
    z0, z1 = embeddings(20, 4, "triangular")
    lower = embeddings(4, 4, "lower")[0].tril()
    lower.diagonal().abs_()
    value = LOSSES["wmse"]()(z0, z1).item()
    assert LOSSES["wmse"]()(z0 @ lower.T + 3.0, z1 @ lower.T).item() == pytest.approx(value, rel=1e-10)
    assert LOSSES["wmse"]()(z0, z0 @ lower.T).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", ["zero_fcl", "arb"])
def test_symmetric_whitening_is_unbiased(name: str) -> None:
    """Without shrinkage, any equal views of full rank: FCL is 0, and ARB is the distance to the own base."""
    z = embeddings(40, 4, "unbiased")[0]
    arguments = {"shrinkage": 0.0} if name == "zero_fcl" else {}
    value = LOSSES[name](eps=1e-12, **arguments)(z, z).item()
    x = (z - z.mean(0)) / z.std(0, correction=0)
    singular = torch.linalg.svd(x / math.sqrt(40), full_matrices=False)
    nearest = singular.U @ singular.Vh * math.sqrt(40)
    expected = 0.0 if name == "zero_fcl" else 2 * (1 - (x * nearest).mean(0)).square().sum().item()
    assert value == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_wmse_slices() -> None:
    """Sub-batches are drawn from torch's generator, every sample once per iteration."""
    z0, z1 = embeddings(24, 3, "slices")
    torch.manual_seed(5)
    value = LOSSES["wmse"](size=8, iterations=2)(z0, z1).item()
    torch.manual_seed(5)
    parts = [part for _ in range(2) for part in torch.randperm(24).chunk(3)]
    assert value == pytest.approx(sum(references.wmse(z0[p], z1[p]) for p in parts) / 6, rel=1e-10)
    assert LOSSES["wmse"](size=24)(z0, z1).item() == pytest.approx(references.wmse(z0, z1), rel=1e-10)


@every_size
def test_symmetries(name: str, size: tuple[int, int]) -> None:
    """Swapped views and permuted samples: the same value; so do moved embeddings, but for ICL's axis."""
    z0, z1 = embeddings(*size, "symmetry")
    loss = LOSSES[name]()
    value = loss(z0, z1).item()
    permuted = randomness.order(torch.arange(size[0]), "permutation")
    for first, second in [(z1, z0), (z0[permuted], z1[permuted])]:
        assert loss(first, second).item() == pytest.approx(value, rel=1e-9)
    if name != "zero_icl":
        assert loss(z0 + 3.0, z1 + 3.0).item() == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("barlow_twins", 5.0),
        ("vicreg", 25 * 0.99),
        ("zero_icl", 16.0),
        ("zero_fcl", 5.0),
        ("arb", 10.0),
        ("logdet", 2 * (1e-4 - math.log(1e-4) - 1)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_constant_embeddings(name: str, expected: float, dtype: torch.dtype) -> None:
    """Collapse has a finite value and a finite gradient, on constants and one direction, beside other views."""
    constant = torch.full((16, 5), 0.7, dtype=dtype)
    direction = embeddings(1, 5, "direction")[0].to(dtype).expand(16, 5)
    other = embeddings(16, 5, "other")[0].to(dtype)
    assert LOSSES[name]()(constant, constant).item() == pytest.approx(expected, rel=1e-5)
    for first, second in [
        (constant, constant),
        (direction, direction),
        (constant, other),
        (other[:, :1] + constant,) * 2,
    ]:
        for arguments in ({}, ROWS[name].exact):
            leaf = first.clone().requires_grad_()
            value = LOSSES[name](**arguments)(leaf, second)
            (gradient,) = torch.autograd.grad(value, leaf)
            assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_wmse_refuses_what_cannot_be_whitened(dtype: torch.dtype) -> None:
    constant = torch.full((16, 5), 0.7, dtype=dtype)
    repeated = embeddings(16, 5, "repeated")[0].to(dtype)[:, [0, 1, 2, 3, 0]]
    full = embeddings(16, 5, "full")[0].to(dtype)
    for first, second, where in [(constant, full, "z0"), (full, repeated, "z1"), (repeated + constant, full, "z0")]:
        with pytest.raises(ValueError, match=f"^{where}: expected embeddings of full rank, got a batch of 16"):
            LOSSES["wmse"]()(first, second)
    leaf = constant.clone().requires_grad_()
    value = LOSSES["wmse"](shrinkage=0.1)(leaf, full)
    assert value.item() == 2.0 and torch.autograd.grad(value, leaf)[0].isfinite().all()


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("barlow_twins", {"redundancy": -1.0}, "redundancy: expected a finite number >= 0, got -1.0"),
        ("barlow_twins", {"eps": 0.0}, "eps: expected a finite number > 0, got 0.0"),
        *(("vicreg", {key: -1.0}, f"{key}: .* >= 0") for key in ("invariance", "variance", "covariance", "gamma")),
        ("vicreg", {"eps": math.nan}, "eps: expected a finite number > 0, got nan"),
        ("wmse", {"shrinkage": 1.5}, r"shrinkage: expected a number from 0 to 1, got 1.5"),
        ("wmse", {"size": 1}, "size: expected an integer >= 2 or null, got 1"),
        ("wmse", {"iterations": 0}, "iterations: expected an integer >= 1, got 0"),
        *((name, {"shrinkage": -0.1}, r"shrinkage: .* from 0 to 1") for name in ("zero_icl", "zero_fcl")),
        *((name, {"eps": -1.0}, "eps: expected a finite number > 0") for name in ("zero_icl", "zero_fcl", "arb")),
        ("arb", {"groups": 0}, "groups: expected an integer >= 1, got 0"),
        ("logdet", {"decorrelation": math.inf}, "decorrelation: expected a finite number >= 0, got inf"),
        ("logdet", {"invariance": -1.0}, "invariance: expected a finite number >= 0"),
        ("logdet", {"eps": 0.0}, "eps: expected a finite number > 0, got 0.0"),
    ],
)
def test_arguments_out_of_range(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        LOSSES[name](**arguments)


@every_loss
@pytest.mark.parametrize(
    "z0, z1, message",
    [
        (torch.ones(4), torch.ones(4), r"z0: expected a matrix \(N, D\) .* got \(4,\)"),
        (torch.ones(4, 3), torch.ones(4, 2), r"z1: expected the shape and dtype of z0, \(4, 3\) .* got \(4, 2\)"),
        (torch.ones(1, 3), torch.ones(1, 3), "z0: expected at least 2 samples over all ranks .* got 1"),
        (torch.ones(4, 3).long(), torch.ones(4, 3).long(), "z0: expected a floating-point dtype .* got torch.int64"),
        (torch.ones(4, 3), torch.tensor([1.0, math.nan, 0.0]) * torch.ones(4, 1), "z1: expected finite .* row 0 of 4"),
    ],
)
def test_wrong_embeddings(name: str, z0: Tensor, z1: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        LOSSES[name]()(z0, z1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, arguments, size, message",
    [
        ("wmse", {}, (9, 5), "z0: batch over all ranks: expected at least 10 rows, twice the 5 dimensions, got 9"),
        ("wmse", {"size": 8}, (16, 5), "size: expected at least 10 rows, twice the 5 dimensions, got 8"),
        ("wmse", {"size": 12}, (16, 5), "size: expected a divisor of the batch of 16 over all ranks, got 12"),
        ("wmse", {"size": 32}, (16, 5), "size: expected a divisor of the batch of 16 over all ranks, got 32"),
        ("zero_icl", {}, (4, 1), "z0: expected at least 2 dimensions .* got 1"),
        ("arb", {"groups": 3}, (4, 5), "groups: expected a divisor of the 5 embedding dimensions, got 3"),
    ],
)
def test_sizes_that_do_not_fit(name: str, arguments: dict[str, Any], size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        LOSSES[name](**arguments)(*embeddings(*size, "sizes"))
