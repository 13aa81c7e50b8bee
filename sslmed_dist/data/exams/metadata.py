"""What is known of an examination without looking at it: scanner, voxel sizes, number of slices.

A diagnosis has to beat what these say alone, since hospitals send the ill and the healthy to different scanners.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.exams.exam_dataset import exams_of

MOST_SCANNERS = 64  # columns; the rest of the scanners share the last one
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


def metadata_features(dataset: Dataset) -> tuple[Tensor, tuple[str, ...]]:
    """(features float32 (N, F), their names) of the exams of a set, or of a subset of one.

    Columns: the number of slices, then those of ``NUMBERS`` that some record has, then one for each scanner (0 or 1;
    of a set without scanners, for each site). A missing number is the mean of its column. Columns of numbers have mean
    0 and standard deviation 1 over all exams of the set, so the rows of a subset are those of the set; columns without
    any difference are left out. ``ValueError`` for another kind of dataset.
    """
    whole, positions = exams_of(dataset)
    columns = {"slices": whole.counts.double()}
    for name, (key, part) in NUMBERS.items():
        values = [number_of(record, key, part) for record in whole.records]
        if any(value is not None for value in values):
            columns[name] = torch.tensor([float("nan") if value is None else value for value in values]).double()
    scaled = {name: standardised(values) for name, values in columns.items()}
    features = {name: values for name, values in scaled.items() if values is not None}
    places = whole.scanners if whole.scanners is not None else whole.sites
    if places is not None:
        numbers, row = torch.unique(places, return_inverse=True)
        kind = "scanner" if whole.scanners is not None else "site"
        for column in range(min(len(numbers), MOST_SCANNERS)):
            last = column == MOST_SCANNERS - 1
            features[f"{kind} {column}"] = ((row >= column) if last else (row == column)).double()
    if not features:
        return torch.zeros(len(positions), 0), ()
    return torch.stack(list(features.values()), 1).float()[positions], tuple(features)


def number_of(record: Mapping[str, Any], key: str, part: int | None) -> float | None:
    """An entry of a record as a number, of a list the one at ``part``, or without it the length; None where it is
    missing."""
    value = record.get(key)
    if isinstance(value, list):
        value = len(value) if part is None else (value[part] if part < len(value) else None)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def standardised(values: Tensor) -> Tensor | None:
    """Values (N,) with mean 0 and standard deviation 1, 0 for a missing one (NaN); None where all are equal."""
    known = values[~values.isnan()]
    if len(known) < 2 or not bool(known.max() > known.min()):
        return None
    return ((values - known.mean()) / known.std()).nan_to_num(nan=0.0)
