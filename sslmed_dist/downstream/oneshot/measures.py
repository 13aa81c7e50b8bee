"""What is measured of one-shot segmentations: weighted means over pairs of scans, for each organ and over organs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sslmed_dist.downstream.metrics import Statistic
from sslmed_dist.downstream.predictions import Measure, Predictions

# The key of a case under which each family of measures has its number.
ENTRIES = {
    "dice": "dice",
    "dice_whole": "dice_whole",
    "hd95": "hd95_mm",
    "surface_dice": "surface_dice",
    "hd95_whole": "hd95_whole_mm",
}


@dataclass(frozen=True)
class Columns:
    """The columns of the scores (N, M), where a row is a pair of scans. Each family of measures has one column per
    organ. The last column is 1 where the support is the protocol's (the last exam), else 0."""

    organs: tuple[str, ...]
    whole: bool  # with ``dice_whole``
    surface: bool  # with ``hd95`` and ``surface_dice``; with ``whole`` also ``hd95_whole``
    every_support: bool  # each exam in turn is the support

    @property
    def families(self) -> list[str]:
        """The families measured: ``dice`` and, where asked for, ``dice_whole``, ``hd95`` (mm), ``surface_dice`` and
        ``hd95_whole`` (mm)."""
        asked = {"dice_whole": self.whole, "hd95": self.surface, "surface_dice": self.surface}
        asked["hd95_whole"] = self.surface and self.whole
        return ["dice", *(family for family, wanted in asked.items() if wanted)]

    def row(self, cases: Sequence[Mapping[str, Any]], last: bool) -> list[float]:
        """The scores of one pair (M,): ``cases`` are those of its organs, in their order; NaN where a case has no
        number. ``last``: the support is the protocol's."""
        values = [case.get(ENTRIES[family]) for family in self.families for case in cases]
        return [*(float("nan") if value is None else float(value) for value in values), float(last)]

    def of(self, family: str) -> list[int]:
        """The columns of a family, one per organ."""
        start = self.families.index(family) * len(self.organs)
        return list(range(start, start + len(self.organs)))


def measures(of: Predictions, columns: Columns) -> Iterator[Measure]:
    """For each family the mean over organs (``dice``) and each organ (``dice/ORGAN``); where every exam was the
    support, also ``dice_last_support`` and ``dice_sd_supports``. The note of each says how many numbers are missing."""
    for family in columns.families:
        family_columns = columns.of(family)
        yield measured(family, mean_over(family_columns), of, family_columns)
        for organ, column in zip(columns.organs, family_columns, strict=True):
            yield measured(f"{family}/{organ}", mean_over([column]), of, [column])
    if columns.every_support:
        family_columns, flag = columns.of("dice"), of.scores.shape[1] - 1
        yield measured("dice_last_support", mean_over(family_columns, flag), of, family_columns)
        no_interval = "no interval: one number for each support"
        yield Measure(
            "dice_sd_supports", deviation(family_columns), of.labels, "undefined: fewer than two supports", no_interval
        )


def measured(name: str, statistic: Statistic, of: Predictions, columns: Sequence[int]) -> Measure:
    """The measure of ``columns`` of the scores, with a note that says how many of their numbers are missing."""
    values = of.scores[:, list(columns)]
    missing = int(values.isnan().sum())
    note = f"undefined in {missing} of {values.numel()}: a mask is empty" if missing else ""
    return Measure(name, statistic, of.labels, "undefined: a mask is empty in every pair", note=note)


def mean_over(columns: Sequence[int], flag: int | None = None) -> Statistic:
    """The statistic "mean over rows, then over ``columns``" of scores (N, M) -> (R,). With ``flag``, the number of a
    column, only the rows that have a 1 there are taken.

    A column without any number is left out. A re-sampling without a number in one of the other columns is NaN, since a
    mean over fewer organs would be another measure.
    """

    def mean(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        values = scores[:, list(columns)]
        if flag is not None:
            weights = weights * scores[:, flag]  # (R, N), 0 for the other rows
        return column_means(values[:, ~values.isnan().all(dim=0)], weights).mean(dim=1)

    return mean


def deviation(columns: Sequence[int]) -> Statistic:
    """The statistic "standard deviation (n - 1) over supports" of scores (N, M) -> (R,). What varies is ``mean_over``
    of each support's rows; ``labels`` (N,) are the supports' exam numbers. NaN for fewer than two supports."""

    def spread(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
        supports = torch.unique(labels)
        if len(supports) < 2:
            return weights.new_full((len(weights),), float("nan"))
        mean = mean_over(columns)
        support_means = [
            mean(scores[labels == support], labels, weights=weights[:, labels == support]) for support in supports
        ]
        return torch.stack(support_means).std(dim=0)

    return spread


def column_means(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of the columns of ``values`` (N, K) over the entries that are not NaN; weights (R, N) -> (R, K),
    NaN where a column has none."""
    # NaN as 0 in the sum, and its weight left out of the sum of weights
    is_number = ~values.isnan()
    return (weights @ values.nan_to_num(0.0)) / (weights @ is_number.double())
