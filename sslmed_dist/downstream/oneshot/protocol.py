"""The protocol of one-shot segmentation as pure functions, each a sentence of Ouyang et al. (2020, 2022): which slices
of the support scan speak for an organ, which of them serves a query slice, and the Dice coefficient of a volume."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PARTS = 3


def support_slices(slices: Sequence[int], parts: int = PARTS) -> list[int]:
    """The slice that stands for each part of an organ: of the ``n`` slices that hold it, sorted, those at the positions
    floor(p n), p = (2 u + 1) / (2 parts), u = 0 ... parts - 1: 1/6, 1/2 and 5/6 for three parts.

    In integers, so that p n is exact where it is whole. ``ValueError`` for no slice or ``parts`` below 1.
    """
    if parts < 1:
        raise ValueError(f"parts: expected an integer >= 1, got {parts}")
    if not slices:
        raise ValueError("slices: expected at least one slice that holds the organ, got none")
    ranked = sorted(slices)
    return [ranked[(2 * part + 1) * len(ranked) // (2 * parts)] for part in range(parts)]


def part_of(z: int, first: int, last: int, parts: int = PARTS) -> int:
    """The part that slice ``z`` of an organ's range ``first`` ... ``last`` belongs to, and so the support slice that
    serves it: floor((z - first) / ((last - first) / parts)), cut to 0 ... parts - 1.

    A range of one slice is part 0; of two, the first and the last part. Slices outside the range go to the nearest
    part. ``ValueError`` for ``last`` before ``first``.
    """
    if last < first:
        raise ValueError(f"last: expected a slice number >= first = {first}, got {last}")
    if last == first:
        return 0
    return min(max((z - first) * parts // (last - first), 0), parts - 1)


def parts_of(first: int, last: int, parts: int = PARTS) -> Tensor:
    """``part_of`` every slice of the range: int64 (last - first + 1,)."""
    return torch.tensor([part_of(z, first, last, parts) for z in range(first, last + 1)])


def true_range(mask: Tensor) -> tuple[int, int] | None:
    """First and last slice of a mask (S, H, W) that hold a voxel; None for an empty mask."""
    held = torch.nonzero(mask.flatten(1).any(dim=1))[:, 0].tolist()
    return (int(held[0]), int(held[-1])) if held else None


@dataclass(frozen=True)
class Overlap:
    """Voxels of a prediction and a truth, counted over whatever was scored."""

    true_positive: int
    false_positive: int
    false_negative: int

    def __add__(self, other: "Overlap") -> "Overlap":
        """The counts of both."""
        return Overlap(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
        )

    @property
    def dice(self) -> float | None:
        """2 TP / (2 TP + FP + FN), in [0, 1]; None where neither holds a voxel."""
        total = 2 * self.true_positive + self.false_positive + self.false_negative
        return 2 * self.true_positive / total if total else None


def overlap(prediction: Tensor, truth: Tensor) -> Overlap:
    """The counts of two masks (bool, or 0 and 1) of one shape. ``ValueError`` for different shapes."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction: expected the truth's shape {tuple(truth.shape)}, got {tuple(prediction.shape)}")
    prediction, truth = prediction.bool(), truth.bool()
    counts = torch.stack([(prediction & truth).sum(), (prediction & ~truth).sum(), (~prediction & truth).sum()])
    return Overlap(*(int(count) for count in counts.tolist()))
