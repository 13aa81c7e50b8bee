"""Sums over all pairs of a batch, tile by tile: exact at any size, with memory linear in the batch.

"Own" rows are those of this rank; columns are the rows of all ranks. A tile holds the similarities of some own rows
with some columns. Autograd through a loop over tiles would keep every tile for the backward pass. So the two sums that
all contrastive losses are made of have closed-form gradients: ``repulsion`` (a sum over negative pairs; its gradient is
ready after the forward pass) and ``row_logsumexp`` (the log of a row's softmax denominator; its gradient needs every
row's denominator first, hence a second pass over the tiles; what fits into ``KEPT`` is not computed again). A pair of
two own rows is computed once and counted for both. Where the gradient itself is differentiated again, both compute the
dense matrix of all pairs, which autograd can differentiate any number of times; its memory is quadratic.

Over ranks: the unit rows of all ranks are gathered, and for ``row_logsumexp`` also the denominators and their upstream
gradients. Every rank then knows the gradient of *all* ranks' values in its own rows, so no gradient of an embedding is
ever sent. ``repulsion`` relies on the upstream gradient being the same on every rank.
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
from sslmed_dist.losses.products import by_onednn, onednn_product
from sslmed_dist.losses.similarity import Similarity

# Most rows and columns of a tile, an even number: 1.6 MiB of float32 on a CPU, 256 MiB on a GPU.
CPU_EDGE, GPU_EDGE = 640, 8192
# Of ``row_logsumexp``, most bytes of e^logit that the forward pass keeps for the backward pass, which then need not
# compute these tiles again: all of them up to some 3,100 pairs on a CPU. Beyond it memory grows with the batch alone.
KEPT = 80 * 2**20
# log2(e): e^s = 2^(s log2(e)), and torch computes powers of two four times as fast on a CPU.
LOG2E = 1.0 / math.log(2.0)


@dataclass(frozen=True)
class Repel:
    """A function of a negative pair's logit s, alone and with its derivative. Both are 0 at s = -inf, the logit of a
    masked pair. They are given ``unit`` times s, and ``value_and_slope`` may overwrite it; the derivative is by s."""

    value: Callable[[Tensor], Tensor]
    value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]]
    unit: float = 1.0


def softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x) to the last bit of float64: torch's own cut at x = 20 leaves an error of 2e-9."""
    return F.softplus(x, threshold=40.0)


def exponential_slope(s: Tensor) -> tuple[Tensor, Tensor]:
    """e^s twice, for s / ln 2: it is its own derivative."""
    value = s.exp2_()
    return value, value


SOFTPLUS = Repel(softplus, lambda s: (softplus(s), s.sigmoid_()))
EXPONENTIAL = Repel(torch.exp2, exponential_slope, unit=LOG2E)


@dataclass(frozen=True)
class Tile:
    """Some own rows against some columns. ``diagonal``: the columns are the same rows, so each row meets itself.

    ``mirror``: set where the columns are other own rows, and says which. The tile of those rows against these is the
    transpose of this one and is not computed again; whoever sums over tiles adds its part here. Otherwise None."""

    rows: slice
    columns: slice
    mirror: slice | None
    diagonal: bool


def tiles(row_count: int, column_count: int, edge: int) -> Iterator[Tile]:
    """Tiles of at most ``edge`` x ``edge`` that cover the own rows against the columns of all ranks."""
    start = distributed.rank() * row_count  # the column that is the first own row
    blocks = [slice(first, min(first + edge, row_count)) for first in range(0, row_count, edge)]
    others = [(0, start), (start + row_count, column_count)]  # the columns of the ranks before and after this one
    foreign = [slice(i, min(i + edge, end)) for begin, end in others for i in range(begin, end, edge)]
    for block_index, rows in enumerate(blocks):
        # Of the own rows against each other: the diagonal and what is right of it.
        for mirror in blocks[block_index:]:
            columns = slice(start + mirror.start, start + mirror.stop)
            diagonal = mirror == rows
            yield Tile(rows, columns, None if diagonal else mirror, diagonal)
        for columns in foreign:
            yield Tile(rows, columns, None, False)


def work_through(rows: Tensor, columns: Tensor, fresh: int = 0) -> Iterator[tuple[Tile, Tensor]]:
    """The tiles, each with a buffer (R, C) for its similarities. The first ``fresh`` have memory of their own, the
    others share one: use such a tile before the next."""
    edge = GPU_EDGE if rows.is_cuda else CPU_EDGE
    buffer = rows.new_empty(min(edge, len(rows)) * min(edge, len(columns)))
    for tile in tiles(len(rows), len(columns), edge):
        height, width = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
        fresh -= 1
        yield tile, rows.new_empty(height, width) if fresh >= 0 else buffer[: height * width].view(height, width)


def mask_(matrix: Tensor, tile: Tile, partner: bool, value: float) -> Tensor:
    """Overwrite the entries where a row meets itself and, unless ``partner``, its other view. They are masked, not
    subtracted from the sum afterwards: e^(1 / temperature) would cancel all digits of the rest."""
    if tile.diagonal:
        row = torch.arange(len(matrix), device=matrix.device)
        matrix[row, row] = value
        if not partner:
            matrix[row, row ^ 1] = value  # the views of a sample lie beside each other, tiles begin at even rows
    return matrix


def dense(rows: Tensor, similarity: Similarity, partner: bool) -> Tensor:
    """All logits (2 n, 2 W n) of own rows (2 n, D) with all ranks' rows, -inf where a pair is masked; for autograd."""
    cosines = rows @ distributed.gather(rows).T
    row = torch.arange(len(rows), device=rows.device)
    itself = row + distributed.rank() * len(rows)  # the column that is the row itself
    masked = torch.zeros_like(cosines, dtype=torch.bool)
    masked[row, itself] = True
    if not partner:
        masked[row, itself ^ 1] = True
    # Masked before the temperature, whose derivative at c = 1 need not exist, and after it: so no gradient at all.
    return similarity.logits(cosines.masked_fill(masked, 0.0)).masked_fill(masked, -math.inf)


def add_products(gradient: Tensor, weights: Tensor, tile: Tile, rows: Tensor, columns: Tensor) -> None:
    """Add weights @ columns to the gradient of the tile's rows; for a mirrored tile, its transpose's part as well."""
    if by_onednn(rows[tile.rows], columns[tile.columns]):
        gradient[tile.rows] += onednn_product(weights, columns[tile.columns])
        if tile.mirror is not None:
            gradient[tile.mirror] += onednn_product(weights.T, rows[tile.rows])
        return
    gradient[tile.rows].addmm_(weights, columns[tile.columns])
    if tile.mirror is not None:
        gradient[tile.mirror].addmm_(weights.T, rows[tile.rows])


class Repulsion(torch.autograd.Function):
    """See ``repulsion``."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, similarity: Similarity, repel: Repel) -> Tensor:
        columns = distributed.gather(rows)  # (2 W n, D)
        uniform = similarity.uniform_slope()
        needs_gradient = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        gradient = torch.zeros_like(rows) if needs_gradient else rows.new_empty(0)
        totals = []
        for tile, buffer in work_through(rows, columns):
            logits, slope = similarity.tile(rows[tile.rows], columns[tile.columns], buffer, repel.unit)
            mask_(logits, tile, False, -math.inf)
            value, by_logit = repel.value_and_slope(logits) if needs_gradient else (repel.value(logits), logits)
            totals.append(value.sum() * (1 if tile.mirror is None else 2))
            if needs_gradient:
                # The chain rule: d value / d cosine, then d cosine / d row = the column.
                weights = by_logit if slope is None else by_logit.mul_(slope)
                add_products(gradient, weights, tile, rows, columns)
        if needs_gradient:
            gradient.mul_(2.0)  # each unordered pair counts from both of its ends
            if uniform is not None:
                gradient.mul_(uniform)
        ctx.save_for_backward(rows, gradient)
        ctx.equation = (similarity, repel)  # type: ignore[attr-defined]
        return torch.stack(totals).sum()

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Any:
        rows, gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        if not torch.is_grad_enabled():
            return gradient * grads[0], None, None
        similarity, repel = ctx.equation  # type: ignore[attr-defined]
        # Differentiated again: the dense equation, which autograd can follow.
        value = repel.value(repel.unit * dense(rows, similarity, partner=False)).sum()
        return torch.autograd.grad(value, rows, grads[0], create_graph=True)[0], None, None


def repulsion(rows: Tensor, similarity: Similarity, repel: Repel) -> Tensor:
    """Sum of ``repel`` over the negative pairs (own unit row, row of any rank), for ``rows`` (2 n, D); a scalar."""
    total: Tensor = Repulsion.apply(rows, similarity, repel)  # type: ignore[no-untyped-call]
    return total


class RowLogSumExp(torch.autograd.Function):
    """See ``row_logsumexp``."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, similarity: Similarity, partner: bool) -> Tensor:
        columns = distributed.gather(rows)
        needs_gradient = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        lse, kept = normalisers(rows, columns, similarity, partner, keep=needs_gradient)
        ctx.save_for_backward(rows, columns, lse, *kept)  # type: ignore[arg-type]  # freed with the backward pass
        ctx.equation = (similarity, partner)  # type: ignore[attr-defined]
        return lse

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Any:
        rows, columns, lse, *kept = ctx.saved_tensors  # type: ignore[attr-defined]
        similarity, partner = ctx.equation  # type: ignore[attr-defined]
        if torch.is_grad_enabled():
            values = dense(rows, similarity, partner).logsumexp(dim=1)
            return torch.autograd.grad(values, rows, grads[0], create_graph=True)[0], None, None
        all_upstream, all_lse = distributed.gather(torch.stack([grads[0], lse], dim=1)).unbind(1)  # two (2 W n,)
        gradient, uniform = torch.zeros_like(rows), similarity.uniform_slope()
        spare, remaining, unit = None, iter(kept), LOG2E if similarity.small else 1.0
        for tile, buffer in work_through(rows, columns):
            exponentials, slope = next(remaining, None), next(remaining, None)
            if exponentials is None:
                logits, slope = similarity.tile(rows[tile.rows], columns[tile.columns], buffer, unit)
            # The upstream gradient w and the log-normaliser lse of each row i, then of each column j.
            ends = (grads[0][tile.rows], lse[tile.rows], all_upstream[tile.columns], all_lse[tile.columns])
            if similarity.small:  # e^s_ij (w_i e^-lse_i + w_j e^-lse_j): one exponential per pair, not two
                spare = torch.empty_like(buffer) if spare is None or spare.shape != buffer.shape else spare
                factor = torch.add((ends[0] * (-ends[1]).exp())[:, None], ends[2] * (-ends[3]).exp(), out=spare)
                weights = factor.mul_(logits.exp2_() if exponentials is None else exponentials)
            else:
                weights = softmax_both_ways(logits, *ends)
            mask_(weights, tile, partner, 0.0)
            add_products(gradient, weights if slope is None else weights.mul_(slope), tile, rows, columns)
        return gradient if uniform is None else gradient.mul_(uniform), None, None


def normalisers(
    rows: Tensor, columns: Tensor, similarity: Similarity, partner: bool, keep: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """ln sum_j e^(logit_ij) of each own row i, (2 n,). If ``keep``, and where no logit needs a shift, also e^logit of
    the first tiles, each followed by its slope as ``Similarity.tile`` gives it: as many as fit into ``KEPT``."""
    kept: list[Tensor | None] = []
    if similarity.small:
        sums = rows.new_zeros(len(rows))
        uniform = similarity.uniform_slope() is not None
        count = tiles_kept(rows, columns, uniform) if keep else 0
        # Logits of a uniform temperature are written into the buffer, others into new memory anyway.
        fresh = count if uniform else 0
        for number, (tile, buffer) in enumerate(work_through(rows, columns, fresh)):
            logits, slope = similarity.tile(rows[tile.rows], columns[tile.columns], buffer, LOG2E)
            exponentials = mask_(logits.exp2_(), tile, partner, 0.0)
            sums[tile.rows] += exponentials.sum(1)
            if tile.mirror is not None:
                sums[tile.mirror] += exponentials.sum(0)
            if number < count:
                kept += (exponentials, slope)
        return sums.log_(), kept
    lse = rows.new_full((len(rows),), -math.inf)
    for tile, buffer in work_through(rows, columns):
        logits = mask_(similarity.tile(rows[tile.rows], columns[tile.columns], buffer)[0], tile, partner, -math.inf)
        lse[tile.rows] = torch.logaddexp(lse[tile.rows], logits.logsumexp(1))
        if tile.mirror is not None:
            lse[tile.mirror] = torch.logaddexp(lse[tile.mirror], logits.logsumexp(0))
    return lse, kept


def tiles_kept(rows: Tensor, columns: Tensor, uniform: bool) -> int:
    """How many tiles fit into ``KEPT``, with their slopes where these are not ``uniform``."""
    edge = GPU_EDGE if rows.is_cuda else CPU_EDGE
    size = min(edge, len(rows)) * min(edge, len(columns)) * rows.element_size()
    return KEPT // (size * (1 if uniform else 2))


def softmax_both_ways(logits: Tensor, row_w: Tensor, row_lse: Tensor, column_w: Tensor, column_lse: Tensor) -> Tensor:
    """w_i e^(s_ij - lse_i) + w_j e^(s_ij - lse_j), (R, C): a pair's weight in the gradient, from its row's softmax and
    from its column's, for logits of any size. ``logits`` is overwritten."""
    from_column = (logits - column_lse[None, :]).exp_().mul_(column_w[None, :])
    return logits.sub_(row_lse[:, None]).exp_().mul_(row_w[:, None]).add_(from_column)


def row_logsumexp(rows: Tensor, similarity: Similarity, *, partner: bool) -> Tensor:
    """ln sum_j e^(logit_ij) of each own unit row (2 n, D) over all ranks' rows but itself (and, unless ``partner``,
    its other view): (2 n,)."""
    values: Tensor = RowLogSumExp.apply(rows, similarity, partner)  # type: ignore[no-untyped-call]
    return values
