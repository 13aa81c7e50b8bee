"""The square root of a symmetric positive definite matrix, and what is built on it: symmetric (ZCA) whitening.

The derivative of torch's eigendecomposition divides by differences of eigenvalues and is not finite where two are
equal, as they are in every rank-deficient covariance with something added to its diagonal. The derivative of the
square root itself is finite everywhere: it solves S X + X S = C, which divides by sums.
"""

import math

import torch
from torch import Tensor


class Sylvester(torch.autograd.Function):
    """X of ``root`` X + X ``root`` = ``right``, ``root`` = V diag(s) V^T given with its ``vectors`` and ``values``."""

    @staticmethod
    def forward(
        ctx: "torch.autograd.function.FunctionCtx", root: Tensor, right: Tensor, vectors: Tensor, values: Tensor
    ) -> Tensor:
        inner = vectors.T @ right @ vectors / (values[:, None] + values[None, :])
        solution = vectors @ inner @ vectors.T
        ctx.save_for_backward(root, solution, vectors, values)
        return solution

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        root, solution, vectors, values = ctx.saved_tensors  # type: ignore[attr-defined]
        of_right: Tensor = Sylvester.apply(root, grads[0], vectors, values)  # type: ignore[no-untyped-call]
        of_root = -(of_right @ solution.T + solution.T @ of_right)
        return of_root, of_right, None, None


class SquareRoot(torch.autograd.Function):
    """S with S S = the symmetric positive definite input; differentiable to any order."""

    @staticmethod
    def forward(ctx: "torch.autograd.function.FunctionCtx", matrix: Tensor) -> Tensor:
        eigenvalues, vectors = torch.linalg.eigh(matrix)
        values = eigenvalues.clamp_min(torch.finfo(matrix.dtype).tiny).sqrt()
        root: Tensor = (vectors * values) @ vectors.T
        ctx.save_for_backward(root, vectors, values)
        return root

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *grads: Tensor) -> Tensor:
        root, vectors, values = ctx.saved_tensors  # type: ignore[attr-defined]
        of_matrix: Tensor = Sylvester.apply(root, grads[0], vectors, values)  # type: ignore[no-untyped-call]
        return of_matrix


def square_root(matrix: Tensor) -> Tensor:
    """The symmetric positive definite square root of one (n, n), differentiable to any order."""
    root: Tensor = SquareRoot.apply(matrix)  # type: ignore[no-untyped-call]
    return root


def whiten(x: Tensor, shrinkage: float, eps: float, stop_gradient: bool) -> Tensor:
    """x (n, d) times A^(-1/2), A = (1 - shrinkage) x^T x / n + (shrinkage + eps) I: nearest to x among whitened x.

    ``x`` should be centred along n, and float64: in float32, of 512 samples of width 64 with condition 1e6, ARB's base
    was 3 % off (Zero-CL's whitening, shrunk, 4e-6). ``stop_gradient`` takes A^(-1/2) for a constant in the
    backward pass. With d > n the (n, n) Gram matrix is decomposed in place of A: x f(x^T x) = f(x x^T) x for every
    function f of matrices; with a = shrinkage + eps, c = 1 - shrinkage, y the constant x and S the square root of
    c y y^T / n + a I,

        A^(-1/2) = I / sqrt(a) - y^T [S (S + sqrt(a) I)]^-1 y c / (n sqrt(a)).
    """
    samples, width = x.shape
    fixed = x.detach() if stop_gradient else x
    gram = (fixed.T @ fixed if width <= samples else fixed @ fixed.T) / samples
    eye = torch.eye(len(gram), dtype=x.dtype, device=x.device)
    share, added = 1.0 - shrinkage, shrinkage + eps
    root = square_root(share * gram + added * eye)
    whitened: Tensor
    if width <= samples:
        whitened = torch.linalg.solve(root, x.T).T
    elif not stop_gradient:
        whitened = torch.linalg.solve(root, x)
    else:
        inner = torch.linalg.solve(root @ (root + math.sqrt(added) * eye), fixed)
        whitened = (x - x @ fixed.T @ inner * (share / samples)) / math.sqrt(added)
    return whitened
