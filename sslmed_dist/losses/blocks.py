"""Sums over all pairs of a batch, block by block: exact at any size, with memory linear in the batch.

A block holds the similarities of some own rows with all columns. Autograd through such a loop would keep every block
for the backward pass, so the two sums that all contrastive losses are made of are functions with closed-form
gradients: ``repulsion`` (a sum of a function of each negative pair; its gradient is ready after the forward pass) and
``row_logsumexp`` (the log of a row's softmax denominator; its gradient needs every row's normaliser, hence a second
pass). Where the gradient itself is to be differentiated, both fall back to the dense equation, which autograd can
differentiate any number of times, with memory quadratic in the batch.

Over ranks: a rank owns its rows. The unit rows of all ranks are gathered, and for ``row_logsumexp`` the normalisers
and their upstream gradients; every rank then knows the gradient of *all* ranks' values in its own rows, so no gradient
of an embedding is ever sent. ``repulsion`` takes it that the upstream gradient is the same on every rank.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from sslmed_dist import distributed
from sslmed_dist.losses.temperature import Temperature

# Similarities of one block: 16 MiB of float32 on a CPU (its cache), 128 MiB on a GPU.
CPU_BLOCK, GPU_BLOCK = 1 << 22, 1 << 25
# exp(logit - largest logit) keeps its digits in float32 while the logits' span, at most 2 / tau, stays below this.
SPAN = 60.0


@dataclass(frozen=True)
class Similarity:
    """A pair's logit as a function of its cosine: c / tau(c), or -|x - y|^2 / tau(c) = (2 c - 2) / tau(c) of unit rows.

    ``scale`` multiplies the temperature (MACL's adaptation to the batch): a number or a 0-d tensor.
    """

    temperature: Temperature
    squared_distance: bool = False
    scale: Tensor | float = 1.0

    def logits(self, c: Tensor) -> Tensor:
        """The logits of cosines, for autograd."""
        tau = self.temperature.tau(c if self.temperature.gradient else c.detach())
        numerator = 2.0 * c - 2.0 if self.squared_distance else c
        return numerator / (tau * self.scale)

    def block(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Callable[[], Tensor | float]]:
        """Logits (B, M) of some rows with all columns, and a function that gives d logit / dc (called before the
        logits are overwritten)."""
        factor, offset = (2.0, -2.0) if self.squared_distance else (1.0, 0.0)
        c = rows @ columns.T
        tau = self.temperature.tau(c)
        if not isinstance(tau, Tensor):
            inverse = 1.0 / (tau * self.scale)
            s = c.mul_(factor * inverse)
            return (s.add_(offset * inverse) if offset else s), lambda: factor * inverse
        tau.mul_(self.scale) if not (isinstance(self.scale, float) and self.scale == 1.0) else tau
        s = (c * factor).add_(offset).div_(tau) if offset else c / tau

        def slope() -> Tensor:
            if not self.temperature.gradient:
                return factor / tau
            rate = self.temperature.slope(c)
            assert isinstance(rate, Tensor)
            return rate.mul_(s).mul_(-1.0 * self.scale).add_(factor).div_(tau)

        return s, slope

    @property
    def narrow(self) -> bool:
        """Whether one shift serves all logits: their span is small enough for float32's exponents."""
        return isinstance(self.scale, float) and 2.0 * (1 + self.squared_distance) / self.temperature.smallest < SPAN


@dataclass(frozen=True)
class Repel:
    """A function of a negative pair's logit s and its derivative, both 0 at s = -inf; they may overwrite ``s``."""

    value: Callable[[Tensor], Tensor]
    value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]]


def softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x) to the last bit of float64: torch's own cut at x = 20 leaves an error of 2e-9."""
    return F.softplus(x, threshold=40.0)


def exponential_slope(s: Tensor) -> tuple[Tensor, Tensor]:
    """e^s twice: it is its own derivative."""
    value = s.exp_()
    return value, value


SOFTPLUS = Repel(softplus, lambda s: (softplus(s), s.sigmoid()))
EXPONENTIAL = Repel(torch.exp, exponential_slope)


def split(rows: Tensor, columns: Tensor) -> Iterator[slice]:
    """Row blocks whose similarities with all columns fit ``CPU_BLOCK`` or ``GPU_BLOCK``; never fewer than 32 rows."""
    size = max(32, (GPU_BLOCK if rows.is_cuda else CPU_BLOCK) // len(columns))
    return (slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size))


def mask_(matrix: Tensor, part: slice, partner: bool, value: float) -> Tensor:
    """Overwrite, in a block of own rows ``part``, the entries where a row meets itself, and its partner unless
    ``partner``. By index: adding such terms and taking them off again would cancel e^(1/temperature)."""
    row = torch.arange(len(matrix), device=matrix.device)
    # The own rows are one contiguous block of the columns; the other view of row 2 k is 2 k + 1.
    own = row + part.start + distributed.rank() * (matrix.shape[1] // distributed.world_size())
    matrix[row, own] = value
    if not partner:
        matrix[row, own ^ 1] = value
    return matrix


def dense(rows: Tensor, similarity: Similarity, partner: bool) -> Tensor:
    """All logits of own rows (2 n, D) with all ranks' rows at once, -inf where a pair does not count; for autograd."""
    cosines = rows @ distributed.gather(rows).T
    row = torch.arange(len(rows), device=rows.device)
    own = row + distributed.rank() * len(rows)
    left_out = torch.zeros_like(cosines, dtype=torch.bool)
    left_out[row, own] = True
    if not partner:
        left_out[row, own ^ 1] = True
    # Before the temperature, whose derivative at c = 1 need not exist; and the masked entries get no gradient.
    return similarity.logits(cosines.masked_fill(left_out, 0.0)).masked_fill(left_out, -math.inf)


class Repulsion(torch.autograd.Function):
    """See ``repulsion``."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, similarity: Similarity, repel: Repel) -> Tensor:
        columns = distributed.gather(rows)
        wanted = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        gradient = torch.empty_like(rows) if wanted else rows.new_empty(0)
        totals = []
        for part in split(rows, columns):
            s, slope = similarity.block(rows[part], columns)
            if not wanted:
                totals.append(repel.value(mask_(s, part, False, -math.inf)).sum())
                continue
            by_cosine = slope()
            value, by_logit = repel.value_and_slope(mask_(s, part, False, -math.inf))
            totals.append(value.sum())
            gradient[part] = by_logit.mul_(by_cosine) @ columns
        ctx.save_for_backward(rows, gradient.mul_(2.0))  # each unordered pair counts from both of its ends
        ctx.equation = (similarity, repel)  # type: ignore[attr-defined]
        return torch.stack(totals).sum()

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Any:
        rows, gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        if not torch.is_grad_enabled():
            return gradient * grads[0], None, None
        similarity, repel = ctx.equation  # type: ignore[attr-defined]
        value = repel.value(dense(rows, similarity, partner=False)).sum()
        return torch.autograd.grad(value, rows, grads[0], create_graph=True)[0], None, None


def repulsion(rows: Tensor, similarity: Similarity, repel: Repel) -> Tensor:
    """Sum of ``repel`` over the ordered negative pairs of own unit rows (2 n, D) with all ranks' rows; a scalar."""
    total: Tensor = Repulsion.apply(rows, similarity, repel)  # type: ignore[no-untyped-call]
    return total


class RowLogSumExp(torch.autograd.Function):
    """See ``row_logsumexp``."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, similarity: Similarity, partner: bool) -> Tensor:
        columns = distributed.gather(rows)
        normalisers = []
        for part in split(rows, columns):
            s = mask_(similarity.block(rows[part], columns)[0], part, partner, -math.inf)
            largest = s.amax(dim=1, keepdim=True)
            normalisers.append(s.sub_(largest).exp_().sum(dim=1).log_().add_(largest[:, 0]))
        ctx.save_for_backward(rows, columns, torch.cat(normalisers))
        ctx.equation = (similarity, partner)  # type: ignore[attr-defined]
        return torch.cat(normalisers)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Any:
        rows, columns, own = ctx.saved_tensors  # type: ignore[attr-defined]
        similarity, partner = ctx.equation  # type: ignore[attr-defined]
        if torch.is_grad_enabled():
            values = dense(rows, similarity, partner).logsumexp(dim=1)
            return torch.autograd.grad(values, rows, grads[0], create_graph=True)[0], None, None
        upstream, normalisers = distributed.gather(torch.stack([grads[0], own], dim=1)).unbind(1)
        gradient = torch.empty_like(rows)
        for part in split(rows, columns):
            s, slope = similarity.block(rows[part], columns)
            by_cosine = slope()
            shares = softmax_both_ways(s, own[part], grads[0][part], normalisers, upstream, similarity.narrow)
            gradient[part] = mask_(shares, part, partner, 0.0).mul_(by_cosine) @ columns
        return gradient, None, None


def softmax_both_ways(
    s: Tensor, own: Tensor, weight: Tensor, normalisers: Tensor, weights: Tensor, narrow: bool
) -> Tensor:
    """w_i e^(s_ij - lse_i) + w_j e^(s_ij - lse_j): what the pair (i, j) gets from row i's and from row j's softmax.

    ``narrow``: the normalisers lie so close together that one exponential per pair is enough, the other being it times
    e^(lse_i - lse_j), a product of a number per row and a number per column.
    """
    if not narrow:
        other = (s - normalisers[None, :]).exp_().mul_(weights[None, :])
        return s.sub_(own[:, None]).exp_().mul_(weight[:, None]).add_(other)
    middle = normalisers.mean()
    row, column = (own - middle).exp(), (middle - normalisers).exp() * weights
    factor = torch.addcmul(weight[:, None], row[:, None], column[None, :])
    return s.sub_(own[:, None]).exp_().mul_(factor)


def row_logsumexp(rows: Tensor, similarity: Similarity, *, partner: bool) -> Tensor:
    """ln sum_j e^(logit_ij) of each own unit row (2 n, D) over all ranks' rows but itself (and, unless ``partner``,
    its other view): (2 n,)."""
    values: Tensor = RowLogSumExp.apply(rows, similarity, partner)  # type: ignore[no-untyped-call]
    return values
