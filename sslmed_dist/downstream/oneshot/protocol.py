"""The protocol of one-shot segmentation (Ouyang et al. 2020, 2022) as pure functions.

An organ's slices are divided into parts, three by the protocol. Each part of the organ has one support slice. A query
slice is segmented with the support slice of the part that it lies in. The Dice coefficient is that of a volume.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PARTS = 3


def support_slices(slices: Sequence[int], parts: int = PARTS) -> list[int]:
    """The support slice of each part of an organ, given the numbers of the ``slices`` that hold it.

    It is the middle one of its part: of the n slices, sorted, the one at position floor(p n), with p = (2 u + 1) /
    (2 parts) for part u = 0 ... parts - 1. For three parts p is 1/6, 1/2 and 5/6. Computed in integers, so that p n is
    exact where it is a whole number. ``ValueError`` for no slice or ``parts`` below 1.
    """
    if parts < 1:
        raise ValueError(f"parts: expected an integer >= 1, got {parts}")
    if not slices:
        raise ValueError("slices: expected at least one slice that holds the organ, got none")
    # floor(p n) with p = (2 u + 1) / (2 parts)
    ascending = sorted(slices)
    return [ascending[(2 * part + 1) * len(ascending) // (2 * parts)] for part in range(parts)]


def part_of(z: int, first: int, last: int, parts: int = PARTS) -> int:
    """The part that slice ``z`` of an organ's range ``first`` ... ``last`` (inclusive) belongs to. The support slice of
    this part is the one that ``z`` is segmented with.

    It is floor((z - first) / ((last - first) / parts)), clipped to 0 ... parts - 1. The only slice of a range of one is
    in part 0; the slices of a range of two are in the first and the last part. Slices outside the range belong to the
    nearest part. ``ValueError`` for ``last`` before ``first``.
    """
    if last < first:
        raise ValueError(f"last: expected a slice number >= first = {first}, got {last}")
    if last == first:
        return 0
    # in integers, as above; z = last would be in part number ``parts``, and so is clipped
    return min(max((z - first) * parts // (last - first), 0), parts - 1)


def parts_of(first: int, last: int, parts: int = PARTS) -> Tensor:
    """``part_of`` of every slice of the range: int64 (last - first + 1,)."""
    return torch.tensor([part_of(z, first, last, parts) for z in range(first, last + 1)])


def middle_of(part: int, first: int, last: int) -> int | None:
    """The middle one of the slices of the range that belong to ``part``, as shown in pictures; None without any."""
    slices = [z for z in range(first, last + 1) if part_of(z, first, last) == part]
    return slices[len(slices) // 2] if slices else None


def true_range(mask: Tensor) -> tuple[int, int] | None:
    """The first and the last slice of a mask (S, H, W) that hold a voxel; None for an empty mask."""
    organ_slices = torch.nonzero(mask.flatten(1).any(dim=1))[:, 0].tolist()
    return (int(organ_slices[0]), int(organ_slices[-1])) if organ_slices else None


@dataclass(frozen=True)
class Overlap:
    """The counts of voxels that a prediction gets right and wrong, over the slices or volumes that were scored."""

    true_positive: int
    false_positive: int
    false_negative: int

    def __add__(self, other: "Overlap") -> "Overlap":
        """The sums of the counts."""
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
    # TP, FP, FN in one tensor: one copy from the device and not three
    counts = torch.stack([(prediction & truth).sum(), (prediction & ~truth).sum(), (~prediction & truth).sum()])
    return Overlap(*(int(count) for count in counts.tolist()))
