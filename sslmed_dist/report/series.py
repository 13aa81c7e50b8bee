"""The metrics of a run, read once: numbers by measure, arm, site and split, and no row kept."""

import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sslmed_dist import run_folder

AXES = ("step", "round", "epoch")  # what a curve may be drawn over, the finest first
TRAIN = "train"


class Key(NamedTuple):
    """What a series is of. ``arm`` None: the run itself. ``split`` None: training."""

    name: str
    arm: str | None
    site: str | None
    split: str | None


@dataclass
class Series:
    """The values of one key in the order in which they were written, and as many numbers of each of ``AXES`` that all
    of them have. ``last_row`` is the place of the last value among all rows of the run."""

    values: "array[float]" = field(default_factory=lambda: array("d"))
    axes: dict[str, "array[float]"] = field(default_factory=lambda: {name: array("d") for name in AXES})
    last_row: int = 0

    def add(self, row: dict[str, Any], place: int) -> None:
        """Append one row."""
        self.values.append(row["value"])
        self.last_row = place
        for name in tuple(self.axes):
            at = row.get(name)
            if at is None:
                del self.axes[name]
            else:
                self.axes[name].append(at)


def read_series(paths: list[Path], remarks: list[str]) -> dict[Key, Series]:
    """The finite values of a run's files ``metrics.jsonl``. ``site`` and ``arm`` follow from the folder (``sites/A``,
    ``arms/pooled``, ``arms/local-A``, ``sites/A/local``) where the row itself does not have them.

    A torn last line (the run is being written, or was killed) and values that are not finite are left out, and
    ``remarks`` gets a line about them. ``ValueError`` names any other line that cannot be read.
    """
    series: dict[Key, Series] = {}
    place = 0
    for path in paths:
        kind, name = path.parent.parent.name, path.parent.name
        where = f"{kind}/{name}/{path.name}" if kind in ("sites", "arms") else path.name
        arm, _, site = name.partition("-") if kind == "arms" else ("", "", name if kind == "sites" else "")
        if name == "local" and path.parent.parent.parent.name == "sites":  # what a site trained by itself
            arm, site, where = name, kind, f"sites/{kind}/{name}/{path.name}"
        lines, not_finite = run_folder.read_metrics(path), 0
        for _, row in lines:
            if not math.isfinite(row["value"]):
                not_finite += 1
                continue
            place += 1
            split = row.get("split")
            split = None if split == TRAIN else split or None
            key = Key(row["name"], row.get("arm") or arm or None, row.get("site") or site or None, split)
            if key not in series:
                series[key] = Series()
            series[key].add(row, place)
        if lines.torn:
            remarks.append(f"{where}: the last line is torn and was left out")
        if not_finite:
            remarks.append(f"{where}: {not_finite} values that are not finite were left out")
    return series
