"""Which slice of another exam shows the organ that is to be found on a slice."""

from typing import Self

import torch
from torch import Tensor

from sslmed_dist import randomness


class Partners:
    """The supports that the queries of labelled episodes may have.

    A support shows the query's organ and is of another exam. ``shown`` (N, L) says which of L organs each of N slices
    shows, ``groups`` int64 (N,) its exam; an exam's slices follow one another. ``positions`` are the slices that may be
    supports, by default all. Source: episodes are made so by Wang et al. 2019 (PANet) and Guha Roy et al. 2020
    (SE-Net); both draw two images that show the class.
    """

    def __init__(self, shown: Tensor, groups: Tensor, positions: Tensor | None = None) -> None:
        may = torch.ones(len(shown), dtype=torch.bool)
        if positions is not None:
            may = torch.zeros_like(may).index_fill(0, positions, True)
        self.shown, self.groups = shown, groups
        # of each organ the slices that may be supports, in their order
        self.supports = [torch.nonzero(column & may)[:, 0] for column in shown.unbind(1)]
        # exams in the order of their slices, and of each organ how many supports each exam has, and all before it
        self.exam = torch.cat([torch.zeros(min(len(groups), 1)), (groups[1:] != groups[:-1]).cumsum(0)]).long()  # (N,)
        exams = int(self.exam[-1]) + 1 if len(groups) else 0
        counts = [torch.bincount(self.exam[supports], minlength=exams) for supports in self.supports]
        self.own = torch.stack(counts, 1)  # (exams, L)
        self.before = self.own.cumsum(0) - self.own
        self.offered = shown & (self.own.sum(0) - self.own[self.exam] > 0)  # (N, L)

    def among(self, positions: Tensor) -> Self:
        """The same slices, of which only those at ``positions`` may be supports."""
        return type(self)(self.shown, self.groups, positions)

    def having(self) -> Tensor:
        """Bool (N,): which slices show an organ that another exam shows on one of the supports."""
        return self.offered.any(1)

    def draw(self, positions: Tensor, seed: int, epoch: int, ids: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """For the queries at ``positions`` (B,) their organs, 0 to L - 1, and the positions of their supports, int64
        (B,). The organ is uniform over those of the query that have a support, the support over the organ's slices in
        other exams. Keyed by (seed, "organ" or "support", epoch, id, draw), ``ids`` being those of all slices.
        ``ValueError`` for a query that can have no support here."""
        offered, parts = self.offered[positions], (epoch, ids[positions], draw)
        counts = offered.sum(1)
        if bool((counts == 0).any()):
            exam = int(self.groups[positions[int(counts.argmin())]])
            raise ValueError(
                f"masks: labelled: no other exam of this part shows an organ of a slice of exam {exam}; allowed: a "
                "part with two exams that show it"
            )
        nth = randomness.integers(counts, seed, "organ", *parts)
        organ = ((offered.cumsum(1) == nth[:, None] + 1) & offered).int().argmax(1)
        own, before = self.own[self.exam[positions], organ], self.before[self.exam[positions], organ]
        totals = torch.tensor([len(supports) for supports in self.supports])[organ]
        # the own exam's slices follow one another: step over them
        chosen = randomness.integers(totals - own, seed, "support", *parts)
        chosen = torch.where(chosen >= before, chosen + own, chosen)
        support = torch.stack([self.supports[k][n] for k, n in zip(organ.tolist(), chosen.tolist(), strict=True)])
        return organ, support
