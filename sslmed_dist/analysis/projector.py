"""MIOv3 of a linear projector in closed form: its gradient and its Hessian, as thesis section 5.4 derives them.

The encoder's outputs h (2 N, D_i) are given, the second views after the first: n' = n + N. The projector is one
matrix psi (D_i, D_o), and z = h psi. The similarity c_nm of two rows is their dot product, not their cosine: the
thesis derives the un-normalised case. With T_n = 4 N^2 - 4 N negative pairs, Eq. 5.29 is

    L = -1/N sum_n c_nn' / tau + 1/T_n sum_n sum_{m != n, n'} e^(c_nm / tau)

Every pair has one weight, by which its A_nm (Eq. 5.36) and B_nm (Eq. 5.42) enter: -1/(N tau) of the N positive pairs,
e^(c_nm / tau) / (T_n tau) of the negative pairs.
"""

import torch
from torch import Tensor


def check(h: Tensor, psi: Tensor, tau: float) -> None:
    """``ValueError`` unless h is (2 N, D_i) of at least 2 samples, psi (D_i, D_o), and tau > 0."""
    if h.ndim != 2 or len(h) % 2 or len(h) < 4:
        raise ValueError(f"h: expected (2 N, D_i) of N >= 2 samples, got {tuple(h.shape)}")
    if psi.ndim != 2 or len(psi) != h.shape[1]:
        raise ValueError(f"psi: expected (D_i, D_o) with D_i = {h.shape[1]}, got {tuple(psi.shape)}")
    if not tau > 0:
        raise ValueError(f"tau: expected a number > 0, got {tau}")


def similarities(h: Tensor, psi: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """c_nm / tau, and e^(c_nm / tau) of the negative pairs with 0 elsewhere; both (2 N, 2 N)."""
    logits = (h @ psi) @ (h @ psi).T / tau
    row = torch.arange(len(h), device=h.device)
    negative = torch.ones_like(logits)
    negative[row, row] = 0.0
    negative[row, row.roll(len(h) // 2)] = 0.0  # the other view of each row
    return logits, logits.exp() * negative


def value(h: Tensor, psi: Tensor, tau: float) -> Tensor:
    """Thesis Eq. 5.29: MIOv3 of un-normalised dot products, a scalar. ``ValueError`` as ``check``."""
    check(h, psi, tau)
    logits, repulsion = similarities(h, psi, tau)
    return repulsion.sum() / negatives(h) - logits.diagonal(len(h) // 2).mean()


def negatives(h: Tensor) -> int:
    """T_n = 4 N^2 - 4 N, the number of ordered negative pairs of 2 N rows."""
    return len(h) * (len(h) - 2)


def pair_weights(h: Tensor, psi: Tensor, tau: float) -> Tensor:
    """The weight of every ordered pair plus that of its reverse, (2 N, 2 N): what multiplies h_n h_m^T."""
    weights = similarities(h, psi, tau)[1] / (negatives(h) * tau)
    count = len(h) // 2
    first = torch.arange(count, device=h.device)
    weights[first, first + count] = -1.0 / (count * tau)  # the positive pairs stand in the sum once, not in both orders
    return weights + weights.T


def gradient(h: Tensor, psi: Tensor, tau: float) -> Tensor:
    """Thesis Eq. 5.38: dL / dpsi, (D_i, D_o), from Eq. 5.35 to 5.37.

    Column k is the sum over pairs of weight times A_nm^(k) = z_n^(k) h_m + z_m^(k) h_n. ``ValueError`` as ``check``.
    """
    check(h, psi, tau)
    return h.T @ pair_weights(h, psi, tau) @ (h @ psi)


def hessian(h: Tensor, psi: Tensor, tau: float) -> Tensor:
    """Thesis Eq. 5.45: d2L / dpsi dpsi, (D_i, D_o, D_i, D_o). Entry [i, k, j, l] is by psi_ik and psi_jl.

    Block l = k is Eq. 5.44, block l != k is Eq. 5.43. It holds what Eq. 5.39 to 5.42 derive: B_nm^(l)(k) is
    h_m h_n^T + h_n h_m^T for l = k, and 0 otherwise. Under Eq. 5.45 the two cases are printed the other way round.
    Eq. 5.46 to 5.48 write the blocks out. ``ValueError`` as ``check``.
    """
    check(h, psi, tau)
    z, outputs = h @ psi, psi.shape[1]
    # sum of weight A^(k) A^(l)T: each of its two products occurs twice, for the negative pairs are symmetric.
    repulsion = similarities(h, psi, tau)[1] * (2.0 / (negatives(h) * tau**2))
    second = torch.einsum("nm,nk,nl,mi,mj->ikjl", repulsion, z, z, h, h)
    second += torch.einsum("nm,nk,mi,ml,nj->ikjl", repulsion, z, h, z, h)
    # sum of weight B: the same matrix for every output k, in the blocks l = k only.
    curvature = h.T @ pair_weights(h, psi, tau) @ h  # (D_i, D_i)
    return second + torch.einsum("ij,kl->ikjl", curvature, torch.eye(outputs, dtype=h.dtype, device=h.device))
