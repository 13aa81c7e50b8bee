"""What was found on a query, brought into its own voxels one label after another.

Of all that grows with labels x voxels nothing is kept: the label map, the winning margins and one label's margins are
in memory, and the probabilities go to their file as they come.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslmed_dist.data.scans.grid import Placement, from_model, slab
from sslmed_dist.data.scans.nifti_writing import nifti_stream
from sslmed_dist.data.scans.scan import StoredScan
from sslmed_dist.downstream.oneshot.reliability import rounded_down
from sslmed_dist.verbs.segment.search import OUTSIDE, Found, Organ

Array = np.ndarray[Any, np.dtype[Any]]


def ignore(_: Array) -> None:
    """Probabilities that nobody asked for."""


class Drawing:
    """The labels found on one query. Margins are interpolated in the plane first and compared with 0 then; of labels
    above 0 the largest margin wins, and of equal ones the first.

    values    label ids (I, J, K) in the scan's voxels
    margins   the winning margin (I, J, K) float32; 0, the background's, where no label is
    winners   (S, size, size) int16 in the model's pixels: the number of the winning label, counted from 1; 0: none
    findings  of each label, without its margins
    """

    def __init__(self, scan: StoredScan, placement: Placement, organs: Sequence[Organ]) -> None:
        largest = max(organ.label for organ in organs)
        self.scan, self.placement, self.count = scan, placement, len(organs)
        self.values: Array = np.zeros(scan.voxels.shape, np.uint8 if largest < 256 else np.uint16)
        self.margins: Array = np.zeros(scan.voxels.shape, np.float32)
        sides = (placement.slices, placement.size, placement.size)
        self.best, self.winners = torch.zeros(sides), torch.zeros(sides, dtype=torch.int16)
        self.findings: list[Found] = []

    def draw(self, findings: Iterable[Found], keep: Callable[[Array], None] = ignore) -> None:
        """Add every label; ``keep`` gets the probability of each (I, J, K) float32, one after another."""
        for finding in findings:
            self.add(finding, keep)

    def add(self, finding: Found, keep: Callable[[Array], None] = ignore) -> None:
        """Add one label. Only the slices of its range are looked at: elsewhere it cannot be."""
        number = len(self.findings) + 1
        better = finding.margins > self.best
        self.winners[better], self.best[better] = number, finding.margins[better]
        index, part = slab(self.placement, finding.estimate.first, finding.estimate.last)
        margin = from_model(finding.margins[finding.estimate.first : finding.estimate.last + 1], part, outside=OUTSIDE)
        values, winning = self.values[index], self.margins[index]  # views: what is set in them is set in the volume
        higher = margin > winning
        values[higher], winning[higher] = finding.label, margin[higher]
        if keep is not ignore:
            probability = np.zeros(self.values.shape, np.float32)
            # The softmax of two logits is the sigmoid of their difference.
            probability[index] = torch.sigmoid(torch.from_numpy(np.ascontiguousarray(margin))).numpy()
            keep(probability)
        self.findings.append(replace(finding, margins=finding.margins[:0]))

    def write_probabilities(self, path: Path, findings: Iterable[Found]) -> None:
        """``draw`` with the probabilities going to the NIfTI file ``path``: (I, J, K), or (I, J, K, labels)."""
        shape = self.values.shape if self.count == 1 else (*self.values.shape, self.count)
        with (
            path.open("xb") as file,
            nifti_stream(file, shape, np.dtype(np.float32), self.scan.affine, self.scan.header) as write,
        ):
            self.draw(findings, write)

    def rows(self, name: str, names: Mapping[str, str], notes: Mapping[int, str]) -> list[dict[str, Any]]:
        """The rows of ``volumes.csv`` for the query ``name``: ``mean_margin`` is that of the label's voxels, "" where
        there are none; ``notes`` are what is said of single labels."""
        axis, largest = self.placement.axes[2], int(max(finding.label for finding in self.findings))
        voxels, slices = np.zeros(largest + 1, np.int64), np.zeros(largest + 1, np.int64)
        sums = np.zeros(largest + 1)
        for z in range(self.placement.slices):
            labels, margins = (np.take(volume, z, axis).ravel() for volume in (self.values, self.margins))
            of_slice = np.bincount(labels, minlength=largest + 1)
            voxels, slices = voxels + of_slice, slices + (of_slice > 0)
            sums += np.bincount(labels, weights=margins, minlength=largest + 1)
        # A voxel's volume in mm^3 is the determinant of the affine's linear part.
        millilitres = abs(float(np.linalg.det(self.scan.affine[:3, :3]))) / 1000
        return [
            {
                "query": name,
                "label": label,
                "slices": int(slices[label]),
                "voxels": int(voxels[label]),
                "volume_ml": round(int(voxels[label]) * millilitres, 4),
                "mean_margin": round(float(sums[label] / voxels[label]), 4) if voxels[label] else "",
                "name": names[str(label)],
                "note": notes.get(label, ""),
                "reliability": rounded_down(finding.reliability, 3),
                "copied": "" if finding.weighing is None else round(finding.copied, 3),
            }
            for label, finding in ((finding.label, finding) for finding in self.findings)
        ]
