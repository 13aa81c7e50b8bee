"""Spectra against matrices that are known whole: a quadratic, and a network whose exact Hessian is made row by row."""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import registry
from sslmed_dist.analysis import curvature, landscape
from sslmed_dist.analysis.curvature import Spectrum
from sslmed_dist.analysis.twice import FastTwice
from sslmed_dist.losses import LOSSES

EIGENVALUES = torch.tensor([-2.0, -0.5, 0.0, 0.1, 1.0, 4.0, 9.0], dtype=torch.float64)


def quadratic() -> Tensor:
    """A symmetric matrix of the eigenvalues above."""
    source = torch.Generator().manual_seed(3)
    turned, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64, generator=source))
    return turned @ torch.diag(EIGENVALUES) @ turned.T


class Small(torch.nn.Module):
    """Two layers with batch norm between them, under a loss of two views."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            hidden = torch.nn.Linear(3, 4)
            self.net = torch.nn.Sequential(hidden, torch.nn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
            self.views = torch.randn(12, 3)
        self.loss = registry.build(LOSSES, loss, "loss")

    def forward(self) -> Tensor:
        return self.loss(*self.net(self.views.to(self.net[0].weight.dtype)).chunk(2))

    def flat(self, vector: Tensor) -> Tensor:
        """The loss as a function of all parameters in one vector, for autograd's own Hessian."""
        names, start, parts = [], 0, {}
        for name, it in self.net.named_parameters():
            names.append(name)
            parts[name] = vector[start : start + it.numel()].view_as(it)
            start += it.numel()
        out = torch.func.functional_call(self.net, parts, (self.views.to(vector.dtype),))
        return self.loss(*out.chunk(2))


LEAVES = [
    {"name": "nt_xent", "temperature": 0.5},
    {"name": "dcl", "temperature": {"name": "dystress", "low": 0.3, "high": 0.6}},
    {"name": "mio_v3", "temperature": 0.5},
    {"name": "vicreg"},
]


def exact(small: Small) -> Tensor:
    """All eigenvalues of the network's loss, ascending."""
    parameters = list(small.net.parameters())
    point = torch.cat([it.detach().reshape(-1) for it in parameters])
    matrix = torch.autograd.functional.hessian(small.flat, point)
    assert isinstance(matrix, Tensor)
    return torch.linalg.eigvalsh(matrix)


def spectrum(small: Small, steps: int) -> Spectrum:
    parameters = list(small.net.parameters())
    size = sum(it.numel() for it in parameters)
    start = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(parameters[0].dtype)
    with FastTwice():  # as the analysis does it
        loss = small()
    return curvature.lanczos(curvature.hessian_product(loss, parameters), start, steps)


def test_a_quadratic_has_its_eigenvalues_and_its_rates() -> None:
    matrix = quadratic()
    point = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    product = curvature.hessian_product(0.5 * point @ matrix @ point, [point])
    start = torch.ones(7, dtype=torch.float64)
    found = curvature.lanczos(product, start, 100)
    assert torch.allclose(found.values, EIGENVALUES, atol=1e-12)
    assert found.errors.max() < 1e-10 and float(found.weights.sum()) == pytest.approx(1.0)
    assert float(found.weights @ found.values) == pytest.approx(float(start @ matrix @ start) / 7)
    assert found.negative_share == pytest.approx(2 / 7)
    rates = curvature.rates(found, lr=0.1)
    assert [rate.bound for rate in rates[:3]] == [None] * 3
    # Gradient descent from a point on each eigenvector: the excess of the loss shrinks by exactly this factor.
    values, vectors = torch.linalg.eigh(matrix)
    for rate, value, vector in zip(rates, values, vectors.T, strict=True):
        after = vector - 0.1 * (matrix @ vector)
        if abs(value) > 1e-9:
            assert float((after @ matrix @ after) / (vector @ matrix @ vector)) == pytest.approx(rate.factor)
        step = vector - matrix @ vector / 9.0  # the step of 1 / lambda_max, for which the bound holds
        if rate.bound is not None:
            assert float((step @ matrix @ step) / value) <= rate.bound + 1e-12


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: str(leaf["name"]))
def test_every_loss_of_a_small_network_has_its_exact_spectrum(leaf: Any) -> None:
    small = Small(leaf).double()
    expected, found = exact(small), spectrum(small, 200)
    scale = float(expected.abs().max())
    # Every Ritz value is an eigenvalue, and every eigenvalue that is not 0 is found. 0 is many-fold (batch norm).
    gaps = (found.values[:, None] - expected).abs()
    assert float(gaps.min(1).values.max()) < 1e-9 * scale
    assert float(gaps.min(0).values[expected.abs() > 1e-6 * scale].max()) < 1e-9 * scale
    single = spectrum(Small(leaf), 12)
    double = spectrum(small, 12)
    assert float((single.values - double.values).abs().max()) < 1e-4 * scale
    assert float(single.values.max()) == pytest.approx(float(expected.max()), rel=1e-4)


@pytest.mark.parametrize(
    "arguments", [{}, {"stride": 2, "padding": 1, "bias": False}, {"groups": 2, "dilation": 2}, {"padding": "same"}]
)
def test_convolutions_that_are_quick_twice_are_the_same(arguments: Any) -> None:
    layer = torch.nn.Conv2d(4, 6, 3, **arguments).double()
    images = torch.randn(3, 4, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    inputs = [images, *layer.parameters()]
    products = []
    for mode in (contextlib.nullcontext(), FastTwice()):
        with mode:
            loss = (layer(images).sin() * layer(images.cos())).sum()
        slope = curvature.gradient(loss, inputs, again=True).detach()
        way = torch.linspace(-1, 1, len(slope), dtype=torch.float64)
        products.append((loss.detach(), slope, curvature.hessian_product(loss, inputs)(way)))
    for plain, quick in zip(*products, strict=True):
        assert torch.allclose(plain, quick, rtol=1e-11, atol=1e-11)
    with FastTwice():
        assert torch.autograd.gradgradcheck(lambda *_: layer(images).tanh(), inputs, atol=1e-5)


def test_what_a_linear_loss_and_bad_input_give() -> None:
    point = torch.ones(3, requires_grad=True)
    product = curvature.hessian_product(point.sum(), [point])
    assert not product(torch.ones(3)).any()
    for start, steps in ((torch.zeros(3), 2), (torch.ones(3), 0)):
        with pytest.raises(ValueError, match="lanczos: expected at least 1 step"):
            curvature.lanczos(product, start, steps)
    with pytest.raises(ValueError, match="not finite"):
        curvature.lanczos(lambda v: v * torch.nan, torch.ones(3), 2)


def test_the_graph_is_weighed() -> None:
    """Of x -> exp(x) summed the gradient keeps exp(x), and the gradient of that graph keeps it again, shared."""
    x = torch.zeros(1000, requires_grad=True)
    assert 4000 <= curvature.kept_bytes(lambda: x.exp().sum(), [x]) <= 12100


def test_the_ratio_of_a_quadratic_lies_between_its_curvatures() -> None:
    values = torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64)
    for point in (torch.tensor([1.0, -2.0, 0.5]).double(), *torch.eye(3, dtype=torch.float64)):
        slope, excess = values * point, 0.5 * float((values * point.square()).sum())
        ratio = landscape.polyak_lojasiewicz(float(slope @ slope), excess)
        assert ratio is not None and 0.5 - 1e-12 <= ratio <= 8.0 + 1e-12
        if int((point != 0).sum()) == 1:
            assert ratio == pytest.approx(float(values[point.argmax()]))
    assert landscape.polyak_lojasiewicz(1.0, 0.0) is None


def test_a_line_through_a_quadratic_is_its_parabola_and_leaves_no_trace() -> None:
    matrix = quadratic()
    first, second = torch.zeros(3, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    parameters = [first.requires_grad_(), second.requires_grad_()]

    def loss() -> Tensor:
        x = torch.cat(parameters)
        return 0.5 * x @ matrix @ x

    origin, way = torch.arange(7.0).double(), torch.linspace(1, -1, 7).double()
    at = [-1.0, 0.0, 0.5, 2.0]
    expected = [float(0.5 * (origin + a * way) @ matrix @ (origin + a * way)) for a in at]
    assert landscape.along(loss, parameters, origin, way, at) == pytest.approx(expected)
    assert bool((first == 0).all()) and bool((second == 1).all())


@pytest.mark.parametrize("name", ["nt_xent", "dcl", "mio_v1", "mio_v2", "mio_v3"])
def test_no_embedding_lies_below_the_lowest_value(name: str) -> None:
    loss = registry.build(LOSSES, {"name": name, "temperature": 0.3}, "loss")
    lowest = landscape.lowest_value(loss, 5)
    assert lowest is not None
    z = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)  # 5 samples in 4 dimensions: the simplex can be reached
    for _ in range(600):
        optimizer.zero_grad()
        value = loss(z[0], z[1])
        value.backward()
        optimizer.step()
        assert float(value.detach()) >= lowest - 1e-12
    assert float(value.detach()) == pytest.approx(lowest, abs=1e-3)


def test_where_no_lowest_value_is_known_none_is_given() -> None:
    terms = [{"name": "nt_xent", "temperature": 0.2}, {"name": "vicreg"}]
    for leaf in (
        {"name": "vicreg"},
        {"name": "sum", "terms": terms},
        {"name": "nt_xent", "temperature": {"name": "dystress"}},
        {"name": "macl"},
    ):
        assert landscape.lowest_value(registry.build(LOSSES, leaf, "loss"), 5) is None
