"""What is measured of one-shot segmentations: weighted means over pairs of scans, by organ and over organs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sslmed_dist.downstream.metrics import Statistic
from sslmed_dist.downstream.predictions import Measure, Predictions

# A case's entry for each family of measures.
ENTRIES = {"dice": "dice", "dice_whole": "dice_whole", "hd95": "hd95_mm", "surface_dice": "surface_dice"}


@dataclass(frozen=True)
class Columns:
    """The columns of the scores (N, M): for each family one per organ, then whether the support is the protocol's."""

    organs: tuple[str, ...]
    whole: bool
    surface: bool
    every_support: bool

    @property
    def families(self) -> list[str]:
        """The families measured: ``dice`` and, where asked for, ``dice_whole``, ``hd95`` (mm) and ``surface_dice``."""
        return ["dice", *(["dice_whole"] if self.whole else []), *(["hd95", "surface_dice"] if self.surface else [])]

    def row(self, cases: Sequence[Mapping[str, Any]], last: bool) -> list[float]:
        """The scores of one pair: ``cases`` of its organs in their order, NaN where there is no number."""
        values = [case.get(ENTRIES[family]) for family in self.families for case in cases]
        return [*(float("nan") if value is None else float(value) for value in values), float(last)]

    def of(self, family: str) -> list[int]:
        """Columns of a family, one per organ."""
        start = self.families.index(family) * len(self.organs)
        return list(range(start, start + len(self.organs)))


def measures(of: Predictions, columns: Columns) -> Iterator[Measure]:
    """``dice`` (mean over organs), ``dice/ORGAN``, and so for each family; with every support ``dice_last_support`` and
    ``dice_sd_supports``. Each says how many pairs have no number."""
    for family in columns.families:
        own = columns.of(family)
        yield measured(family, mean_over(own), of, own)
        for organ, column in zip(columns.organs, own, strict=True):
            yield measured(f"{family}/{organ}", mean_over([column]), of, [column])
    if columns.every_support:
        own, flag = columns.of("dice"), of.scores.shape[1] - 1
        yield measured("dice_last_support", mean_over(own, flag), of, own)
        alone = "no interval: one number for each support"
        yield Measure("dice_sd_supports", deviation(own), of.labels, "undefined: fewer than two supports", alone)


def measured(name: str, statistic: Statistic, of: Predictions, columns: Sequence[int]) -> Measure:
    """A measure with its note: how many of its numbers are missing."""
    values = of.scores[:, list(columns)]
    missing = int(values.isnan().sum())
    note = f"undefined in {missing} of {values.numel()}: a mask is empty" if missing else ""
    return Measure(name, statistic, of.labels, "undefined: a mask is empty in every pair", note=note)


def mean_over(columns: Sequence[int], flag: int | None = None) -> Statistic:
    """The statistic "mean over rows, then over ``columns``"; ``flag``: over the rows alone whose number there is 1.

    A column without any number is left out; a re-sampling without a number in one of the others is NaN, for a mean over
    fewer organs would be another measure.
    """

    def mean(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        values = scores[:, list(columns)]
        if flag is not None:
            weights = weights * scores[:, flag]
        return column_means(values[:, ~values.isnan().all(dim=0)], weights).mean(dim=1)

    return mean


def deviation(columns: Sequence[int]) -> Statistic:
    """The standard deviation (n - 1) over supports (``labels``) of what ``mean_over`` says of each support's rows."""

    def spread(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        numbers = torch.unique(labels)
        if len(numbers) < 2:
            return weights.new_full((len(weights),), float("nan"))
        mean = mean_over(columns)
        found = [mean(scores[labels == n], labels, weights=weights[:, labels == n]) for n in numbers]
        return torch.stack(found).std(dim=0)

    return spread


def column_means(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of the columns of ``values`` (N, K) over their numbers that are no NaN; weights (R, N) -> (R, K),
    NaN where there are none."""
    numbers = ~values.isnan()
    return (weights @ values.nan_to_num(0.0)) / (weights @ numbers.double())
