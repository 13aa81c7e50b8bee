"""What is known of an examination without looking at it: scanner, voxel sizes, number of slices.

A diagnosis has to beat what these say alone, since hospitals send the ill and the healthy to different scanners.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.exams.exam_dataset import exams_of

MOST_PLACES = 64  # columns for scanners, and for sites; the rest share the last one
# Feature -> where it stands in a record; a list is taken apart.
NUMBERS: Mapping[str, tuple[str, int | None]] = {
    "step_mm": ("spacing_mm", 0),
    "pixel_mm": ("spacing_mm", 1),
    "rows": ("shape", 1),
    "oblique": ("oblique", None),
    "field_tesla": ("field_tesla", None),
    "echo_ms": ("echo_ms", None),
    "repetition_ms": ("repetition_ms", None),
    "slots": ("slots", None),  # how many series of the recipe there are
}


class MetadataColumns:
    """Columns and scales learnt on some exams, to be applied to others.

    ``names``  of each series the number of slices and those of ``NUMBERS`` that some exam has; then, where some exams
               lack a number, whether it is unknown; then a column (0 or 1) for each scanner, and for each site

    Numbers have mean 0 and standard deviation 1 over the exams that they are learnt on. An unknown number is 0, the
    mean. Columns without any difference there are left out, and so are repetitions of a column: parts of one series
    know the same. An exam of a scanner that was not learnt has 0 in all of the scanners' columns.
    """

    def __init__(self, datasets: Mapping[str, Dataset], ids: Tensor) -> None:
        """Learn on the exams ``ids`` (int64 (M,), ascending) of the ``datasets``, one for each series by its name.
        ``ValueError`` for another kind of dataset."""
        numbers = numbers_of(datasets, ids)
        self.mean = {name: float(values.nanmean()) for name, values in numbers.items()}
        self.scale = {name: spread(values) for name, values in numbers.items()}
        self.known = {kind: torch.unique(places_of(list(datasets.values()), ids, kind)) for kind in ("scanner", "site")}
        self.known = {kind: values[values >= 0] for kind, values in self.known.items()}
        kept: dict[str, Tensor] = {}
        for name, values in self.columns(datasets, ids).items():
            varies = len(values) > 0 and bool(values.max() > values.min())
            if varies and not any(torch.equal(values, other) for other in kept.values()):
                kept[name] = values
        self.names = tuple(kept)

    def __call__(self, datasets: Mapping[str, Dataset], ids: Tensor) -> Tensor:
        """The columns (N, F), float64, of the exams ``ids`` (int64 (N,), ascending), of series by the same names."""
        columns = self.columns(datasets, ids)
        return (
            torch.stack([columns[name] for name in self.names], 1) if self.names else torch.zeros(len(ids), 0).double()
        )

    def columns(self, datasets: Mapping[str, Dataset], ids: Tensor) -> dict[str, Tensor]:
        """All columns (N,) by name, also those that are left out."""
        columns, unknown = {}, {}
        numbers = numbers_of(datasets, ids)
        for name, scale in self.scale.items():
            values = numbers[name]
            columns[name] = ((values - self.mean[name]) / scale).nan_to_num(nan=0.0)
            unknown[f"{name} unknown"] = values.isnan().double()
        places = {}
        for kind, known in self.known.items():
            own = places_of(list(datasets.values()), ids, kind)
            place = torch.searchsorted(known, own).clamp_max(MOST_PLACES - 1)  # the last column is shared
            place[~torch.isin(own, known)] = -1
            for column in range(min(len(known), MOST_PLACES)):
                places[f"{kind} {column}"] = (place == column).double()
        return columns | unknown | places


def numbers_of(datasets: Mapping[str, Dataset], ids: Tensor) -> dict[str, Tensor]:
    """Numbers (N,), float64, of the exams ``ids`` by "series: name", NaN where an exam lacks the series or it."""
    table: dict[str, Tensor] = {}
    for series, dataset in datasets.items():
        exams, places = exams_of(dataset)
        wanted = torch.nonzero(torch.isin(dataset.ids, ids))[:, 0]
        rows = torch.searchsorted(ids, dataset.ids[wanted])
        records = dataset.records or [{}] * len(dataset)
        of_exams = {"slices": exams.counts[places][wanted].double()}
        for name, (key, part) in NUMBERS.items():
            found = [number_of(records[position], key, part) for position in wanted.tolist()]
            of_exams[name] = torch.tensor([float("nan") if it is None else it for it in found], dtype=torch.float64)
        for name, values in of_exams.items():
            table[f"{series}: {name}"] = torch.full((len(ids),), torch.nan, dtype=torch.float64)
            table[f"{series}: {name}"][rows] = values
    return table


def places_of(datasets: Sequence[Dataset], ids: Tensor, kind: str) -> Tensor:
    """The number of the scanner or site (``kind``) of the exams ``ids``, int64 (N,), -1 where no dataset knows it."""
    places = torch.full((len(ids),), -1)
    for dataset in datasets:
        exams, positions = exams_of(dataset)
        own = exams.scanners if kind == "scanner" else exams.sites
        if own is not None:
            wanted = torch.isin(dataset.ids, ids)
            places[torch.searchsorted(ids, dataset.ids[wanted])] = own[positions][wanted]
    return places


def number_of(record: Mapping[str, Any], key: str, part: int | None) -> float | None:
    """An entry of a record as a number, of a list the one at ``part``, or without it the length; None where it is
    missing."""
    value = record.get(key)
    if isinstance(value, (list, tuple)):
        value = len(value) if part is None else (value[part] if part < len(value) else None)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def spread(values: Tensor) -> float:
    """The standard deviation (n - 1) of the known values; 1 where there is none above 0."""
    known = values[~values.isnan()]
    return float(known.std()) if len(known) > 1 and bool(known.max() > known.min()) else 1.0
