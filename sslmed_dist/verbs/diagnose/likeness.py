"""Whether an exam is like those of the training: number of slices, spacing, intensities."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.exams.exam_dataset import whole_exam

MOST = 200  # training exams whose intensities are looked at
SLACK = 0.05  # of the range, that a value may lie outside of it


def facts(dataset: Dataset, position: int, slices: Tensor) -> dict[str, float]:
    """What is compared of the exam at ``position``, of which all ``slices`` (S, C, H, W) are given: their number, the
    spacing along each axis where it is known, and mean and deviation of its intensities on [0, 1]."""
    record = dataset.records[position] if dataset.records else {}
    low, high = dataset.value_range()
    unit = (slices.double() - low) / (high - low)
    values = {"slices": float(len(slices))}
    values |= {"intensity mean": float(unit.mean()), "intensity deviation": float(unit.std())}
    spacing = record.get("spacing_mm")
    for axis, size in enumerate(spacing or ()):
        values[f"spacing {axis + 1} in mm"] = float(size)
    return values


def likeness(dataset: Dataset, positions: Tensor) -> dict[str, list[float]]:
    """The least and greatest value of each of ``facts`` over up to 200 of the exams at ``positions``, evenly spaced."""
    step = max(1, -(-len(positions) // MOST))
    ranges: dict[str, list[float]] = {}
    for position in positions[::step].tolist():
        for name, value in facts(dataset, position, whole_exam(dataset, position)).items():
            low, high = ranges.get(name, [value, value])
            ranges[name] = [min(low, value), max(high, value)]
    return {name: [round(value, 6) for value in ends] for name, ends in ranges.items()}


def unlike(values: Mapping[str, float], ranges: Mapping[str, Any]) -> list[str]:
    """One line for each value outside of the training's range by more than 5 % of its width (or of its size where the
    range is a point), and for each that the training knew and this exam does not say."""
    lines = []
    for name, (low, high) in ranges.items():
        if name not in values:
            lines.append(f"{name}: not known here; {low:g} to {high:g} in training")
            continue
        slack = SLACK * ((high - low) or abs(high))
        if not low - slack <= values[name] <= high + slack:
            lines.append(f"{name}: {values[name]:.4g}; {low:.4g} to {high:.4g} in training")
    return lines
