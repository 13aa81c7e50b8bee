"""The Hessian of a loss over all parameters, without ever holding it: products with vectors, and its spectrum.

Products are made by differentiating twice (Pearlmutter 1994), which goes through any loss that autograd can follow, the
tile-wise ones of ``losses`` included. Libraries that make them by forward-mode transforms cannot: such a loss is an
``autograd.Function`` of its own, which these refuse.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]  # from a vector (P,) to the matrix times it (P,)


@dataclass(frozen=True)
class Spectrum:
    """What Lanczos says of a symmetric matrix (P, P): k Ritz values, ascending, float64 (k,).

    ``weights`` (k,) sum to 1: weight i estimates the share of all P eigenvalues that lie near value i (the Gauss
    quadrature of the start vector). ``errors`` (k,): within this distance of each value there is an eigenvalue, but for
    rounding. The largest and smallest values converge first.
    """

    values: Tensor
    weights: Tensor
    errors: Tensor

    @property
    def zero(self) -> float:
        """Below this absolute value a Ritz value counts as 0: 1e-5 of the largest."""
        return 1e-5 * float(self.values.abs().max())

    @property
    def negative_share(self) -> float:
        """Share of the Ritz values that are negative, which is what thesis Figures 5.3 to 5.5 show. In [0, 1]."""
        return float((self.values < -self.zero).double().mean())

    @property
    def negative_weight(self) -> float:
        """Estimated share of all eigenvalues that are surely negative, in [0, 1]: of Ritz values whose error is smaller
        than they are. Most eigenvalues lie close to 0, and there the sign of a Ritz value says nothing."""
        return float(self.weights[(self.values < -self.zero) & (self.values.abs() > self.errors)].sum())


def gradient(loss: Tensor, parameters: Sequence[Tensor], *, again: bool = False) -> Tensor:
    """The gradient of a scalar by all parameters, one after another, (P,). ``again``: it can be differentiated."""
    parts = torch.autograd.grad(loss, parameters, create_graph=again, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


def hessian_product(loss: Tensor, parameters: Sequence[Tensor]) -> Product:
    """The function v (P,) -> H v (P,), H being the Hessian of the scalar ``loss`` by ``parameters``.

    The graph of the gradient is made once and kept for as long as the function lives. It holds about three times what
    an ordinary backward pass holds.
    """
    slope = gradient(loss, parameters, again=True)

    def product(vector: Tensor) -> Tensor:
        if not slope.requires_grad:  # a loss that is linear in every parameter
            return torch.zeros_like(vector)
        parts = torch.autograd.grad(slope, parameters, vector, retain_graph=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts])

    return product


def lanczos(product: Product, start: Tensor, steps: int) -> Spectrum:
    """At most ``steps`` Ritz values of the symmetric matrix behind ``product``, from the vector ``start`` (P,).

    Every new vector is made orthogonal to all before, twice: else rounding lets converged eigenvalues come again, and
    shares of them mean nothing. The basis takes ``steps`` x P numbers. Fewer values come where the start vector lies in
    a smaller invariant space. Source: Lanczos 1950; Golub and Meurant 2010 for the weights. ``ValueError`` for no step,
    a start of length 0, or a product that is not finite.
    """
    norm = float(start.norm())
    if steps < 1 or not norm > 0:
        raise ValueError(f"lanczos: expected at least 1 step and a start vector that is not 0, got {steps} steps")
    basis = start.new_empty(min(steps, len(start)), len(start))
    basis[0] = start / norm
    diagonal: list[float] = []
    beside: list[float] = []
    for k in range(len(basis)):
        image = product(basis[k])
        diagonal.append(float(image @ basis[k]))
        if not math.isfinite(diagonal[-1]):
            raise ValueError("the product of the Hessian with a vector is not finite; the loss is not smooth there")
        scale = float(image.norm())
        for _ in range(2):
            image = image - basis[: k + 1].T @ (basis[: k + 1] @ image)
        beside.append(float(image.norm()))
        # What rounding leaves of a vector that lies in the space already is no new direction.
        if k + 1 == len(basis) or beside[-1] <= 10 * len(start) ** 0.5 * torch.finfo(start.dtype).eps * scale:
            break
        basis[k + 1] = image / beside[-1]
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside[:-1], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(matrix + torch.diag(off, 1) + torch.diag(off, -1))
    return Spectrum(values, vectors[0].square(), beside[-1] * vectors[-1].abs())


@dataclass(frozen=True)
class Rate:
    """How gradient descent goes down along one eigendirection of curvature ``value``.

    ``bound``  the factor of the loss's excess per step that thesis Eq. 5.53 and 5.55 give, at step size 1 / lambda_max;
               None where the curvature is not positive, for then no mu_i > 0 satisfies Eq. 5.54
    ``factor`` that of plain gradient descent at the learning rate: (1 - lr value)^2; above 1 it goes up; None without
               a rate
    """

    value: float
    bound: float | None
    factor: float | None


def rates(spectrum: Spectrum, lr: float | None) -> list[Rate]:
    """The rate along each eigendirection of a Ritz value, thesis Eq. 5.52 to 5.55.

    Along a direction of curvature lambda > 0 a quadratic has 1/2 |gradient|^2 = lambda (L - L*), so the mu_i of
    Eq. 5.54 is lambda_i. Eq. 5.53 with the Lipschitz constant L = lambda_max of Eq. 5.55 is then
    1 - lambda_i / lambda_max. ``lr`` is the learning rate of the step, None where it is not known. Momentum and decay
    are not counted.
    """
    largest = float(spectrum.values.max())
    return [
        Rate(
            value,
            1.0 - value / largest if value > spectrum.zero else None,
            None if lr is None else (1.0 - lr * value) ** 2,
        )
        for value in spectrum.values.tolist()
    ]


def kept_bytes(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> int:
    """Bytes that the graph of the gradient keeps, by making it once. Memory that tensors share counts once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)  # or its address would be given to another tensor
        return tensor

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gradient(loss(), parameters, again=True)
    return sum(storages.values())
