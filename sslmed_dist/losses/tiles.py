"""Sums over all pairs of a batch, tile by tile: exact at any size, with memory linear in the batch.

A tile holds the similarities of some own rows with some columns. Autograd through such a loop would keep every tile for
the backward pass, so the two sums that all contrastive losses are made of are functions with closed-form gradients:
``repulsion`` (a sum of a function of each negative pair; its gradient is ready after the forward pass) and
``row_logsumexp`` (the log of a row's softmax denominator; its gradient needs every row's normaliser, hence a second
pass). A pair of own rows is met once and counts from both ends. Where the gradient itself is to be differentiated, both
fall back to the dense equation, which autograd can differentiate any number of times; its memory is quadratic.

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

# Rows and columns of a tile, even: 1 MiB of float32 on a CPU, 256 MiB on a GPU.
CPU_EDGE, GPU_EDGE = 512, 8192
# e^logit and e^-lse stay in float32's range, with digits to spare, while no logit is larger than this.
LARGEST_LOGIT = 60.0


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

    def tile(self, rows: Tensor, columns: Tensor, out: Tensor) -> tuple[Tensor, Tensor | float | None]:
        """Logits (R, C) of rows with columns, written to ``out`` where the temperature is one number, and
        d logit / dc: None where it is ``uniform_slope`` for all pairs."""
        factor, offset = (2.0, -2.0) if self.squared_distance else (1.0, 0.0)
        tau = self.temperature.tau(rows)
        if not isinstance(tau, Tensor):
            inverse = 1.0 / (tau * self.scale)
            s = torch.mm(rows * (factor * inverse), columns.T, out=out)
            return (s.add_(offset * inverse) if offset else s), None
        c = torch.mm(rows, columns.T, out=out)
        taus = self.temperature.tau(c)
        assert isinstance(taus, Tensor)
        taus.mul_(self.scale)
        s = (c * factor).add_(offset).div_(taus) if offset else c / taus
        if not self.temperature.gradient:
            return s, taus.reciprocal_().mul_(factor)
        rate = self.temperature.slope(c)
        assert isinstance(rate, Tensor)
        return s, rate.mul_(s).mul_(-1.0 * self.scale).add_(factor).div_(taus)

    def uniform_slope(self) -> Tensor | float:
        """d logit / dc where the temperature is one number."""
        tau = self.temperature.tau(torch.zeros(()))
        return (2.0 if self.squared_distance else 1.0) / (tau * self.scale)

    @property
    def small(self) -> bool:
        """Whether no logit can be larger than ``LARGEST_LOGIT``: no shift is needed before the exponential."""
        bound = (4.0 if self.squared_distance else 1.0) / self.temperature.smallest
        return isinstance(self.scale, float) and bound * max(1.0, 1.0 / self.scale) < LARGEST_LOGIT


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


SOFTPLUS = Repel(softplus, lambda s: (softplus(s), s.sigmoid_()))
EXPONENTIAL = Repel(torch.exp, exponential_slope)


@dataclass(frozen=True)
class Tile:
    """Some own rows against some columns. ``mirror``: the own rows that these columns are, where the tile on the other
    side of the diagonal is left out because this one is its transpose. ``diagonal``: rows meet themselves."""

    rows: slice
    columns: slice
    mirror: slice | None
    diagonal: bool


def tiles(own: int, total: int, edge: int) -> Iterator[Tile]:
    """Tiles that cover ``own`` rows of this rank against ``total`` columns of all ranks."""
    start = distributed.rank() * own
    blocks = [slice(first, min(first + edge, own)) for first in range(0, own, edge)]
    others = [(0, start), (start + own, total)]
    foreign = [slice(i, min(i + edge, end)) for begin, end in others for i in range(begin, end, edge)]
    for number, rows in enumerate(blocks):
        for columns in blocks[number:]:
            place = slice(start + columns.start, start + columns.stop)
            same = columns == rows
            yield Tile(rows, place, None if same else columns, same)
        for columns in foreign:
            yield Tile(rows, columns, None, False)


def work_through(rows: Tensor, columns: Tensor) -> Iterator[tuple[Tile, Tensor]]:
    """The tiles, each with room for its similarities; the room is used again for the next."""
    edge = GPU_EDGE if rows.is_cuda else CPU_EDGE
    room = rows.new_empty(min(edge, len(rows)) * min(edge, len(columns)))
    for tile in tiles(len(rows), len(columns), edge):
        height, width = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
        yield tile, room[: height * width].view(height, width)


def mask_(matrix: Tensor, tile: Tile, partner: bool, value: float) -> Tensor:
    """Overwrite the entries where a row meets itself, and its other view unless ``partner``. By index: adding such
    terms and taking them off again would cancel e^(1/temperature)."""
    if tile.diagonal:
        row = torch.arange(len(matrix), device=matrix.device)
        matrix[row, row] = value
        if not partner:
            matrix[row, row ^ 1] = value  # the views of a sample lie beside each other, tiles begin at even rows
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


def add_products(gradient: Tensor, weights: Tensor, tile: Tile, rows: Tensor, columns: Tensor) -> None:
    """Each own row gets the columns weighted by its row of the tile; and the same on the other side of the diagonal."""
    gradient[tile.rows].addmm_(weights, columns[tile.columns])
    if tile.mirror is not None:
        gradient[tile.mirror].addmm_(weights.T, rows[tile.rows])


class Repulsion(torch.autograd.Function):
    """See ``repulsion``."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, similarity: Similarity, repel: Repel) -> Tensor:
        columns = distributed.gather(rows)
        wanted = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        gradient = torch.zeros_like(rows) if wanted else rows.new_empty(0)
        totals = []
        for tile, room in work_through(rows, columns):
            s, slope = similarity.tile(rows[tile.rows], columns[tile.columns], room)
            mask_(s, tile, False, -math.inf)
            value, by_logit = repel.value_and_slope(s) if wanted else (repel.value(s), s)
            totals.append(value.sum() * (1 if tile.mirror is None else 2))
            if wanted:
                weights = by_logit if slope is None else by_logit.mul_(slope)
                add_products(gradient, weights, tile, rows, columns)
        if wanted:
            gradient.mul_(2.0)  # each unordered pair counts from both of its ends
            if slope is None:
                gradient.mul_(similarity.uniform_slope())
        ctx.save_for_backward(rows, gradient)
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
        values = normalisers(rows, columns, similarity, partner)
        ctx.save_for_backward(rows, columns, values)
        ctx.equation = (similarity, partner)  # type: ignore[attr-defined]
        return values

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Any:
        rows, columns, own = ctx.saved_tensors  # type: ignore[attr-defined]
        similarity, partner = ctx.equation  # type: ignore[attr-defined]
        if torch.is_grad_enabled():
            values = dense(rows, similarity, partner).logsumexp(dim=1)
            return torch.autograd.grad(values, rows, grads[0], create_graph=True)[0], None, None
        upstream, of_all = distributed.gather(torch.stack([grads[0], own], dim=1)).unbind(1)
        gradient = torch.zeros_like(rows)
        spare = None
        for tile, room in work_through(rows, columns):
            s, slope = similarity.tile(rows[tile.rows], columns[tile.columns], room)
            ends = (grads[0][tile.rows], own[tile.rows], upstream[tile.columns], of_all[tile.columns])
            if similarity.small:
                spare = torch.empty_like(room) if spare is None or spare.shape != room.shape else spare
                factor = torch.add((ends[0] * (-ends[1]).exp())[:, None], ends[2] * (-ends[3]).exp(), out=spare)
                weights = s.exp_().mul_(factor)
            else:
                weights = softmax_both_ways(s, *ends)
            mask_(weights, tile, partner, 0.0)
            add_products(gradient, weights if slope is None else weights.mul_(slope), tile, rows, columns)
        return gradient.mul_(similarity.uniform_slope()) if slope is None else gradient, None, None


def normalisers(rows: Tensor, columns: Tensor, similarity: Similarity, partner: bool) -> Tensor:
    """ln sum_j e^(logit_ij) of each own row."""
    if similarity.small:
        sums = rows.new_zeros(len(rows))
        for tile, room in work_through(rows, columns):
            s = similarity.tile(rows[tile.rows], columns[tile.columns], room)[0]
            e = mask_(s.exp_(), tile, partner, 0.0)
            sums[tile.rows] += e.sum(1)
            if tile.mirror is not None:
                sums[tile.mirror] += e.sum(0)
        return sums.log_()
    values = rows.new_full((len(rows),), -math.inf)
    for tile, room in work_through(rows, columns):
        s = mask_(similarity.tile(rows[tile.rows], columns[tile.columns], room)[0], tile, partner, -math.inf)
        values[tile.rows] = torch.logaddexp(values[tile.rows], s.logsumexp(1))
        if tile.mirror is not None:
            values[tile.mirror] = torch.logaddexp(values[tile.mirror], s.logsumexp(0))
    return values


def softmax_both_ways(s: Tensor, weight: Tensor, own: Tensor, weights: Tensor, of_all: Tensor) -> Tensor:
    """w_i e^(s_ij - lse_i) + w_j e^(s_ij - lse_j): what a pair gets from its row's and from its column's softmax, for
    logits of any size."""
    other = (s - of_all[None, :]).exp_().mul_(weights[None, :])
    return s.sub_(own[:, None]).exp_().mul_(weight[:, None]).add_(other)


def row_logsumexp(rows: Tensor, similarity: Similarity, *, partner: bool) -> Tensor:
    """ln sum_j e^(logit_ij) of each own unit row (2 n, D) over all ranks' rows but itself (and, unless ``partner``,
    its other view): (2 n,)."""
    values: Tensor = RowLogSumExp.apply(rows, similarity, partner)  # type: ignore[no-untyped-call]
    return values
