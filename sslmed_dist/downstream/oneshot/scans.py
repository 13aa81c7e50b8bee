"""Complete scans from a dataset of slices: which samples make up a scan, their feature maps and organ masks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream.oneshot.quadrants import body_centre
from sslmed_dist.downstream.oneshot.segmenter import Segmenter
from sslmed_dist.downstream.oneshot.tidy import Centre, Spacing

FACTS = ("slice", "spacing_mm", "oriented")


@dataclass(frozen=True)
class ScanSlices:
    """The samples that are the S slices of one exam, from the lowest slice upwards."""

    number: int  # of the exam
    positions: Tensor  # (S,) int64, in the dataset
    spacing: Spacing  # mm between rows, columns and slices
    oriented: bool  # whether its file says where left is

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Volume:
    """An encoded scan, its tensors on the device."""

    scan: ScanSlices
    maps: Tensor  # (S, D, h, w) feature maps
    organs: Tensor  # (S, H, W) uint8 organ values
    centre: Centre | None  # of the body, where it was asked for

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of its slices."""
        return self.organs.shape[1], self.organs.shape[2]


def scans_of(dataset: Dataset, positions: Tensor) -> list[ScanSlices]:
    """The exams at ``positions`` (int64 (N,)), in order of appearance.

    ``ValueError`` for records without slice number, spacing and orientation, exams whose slices do not lie together, or
    slices that are not consecutive.
    """
    positions = positions.cpu()
    missing = [name for name in FACTS if not dataset.records or name not in dataset.records[0]]
    if missing:
        raise ValueError(
            f"segmentation needs scans with {', '.join(missing)} in their records; use the data `episodes`"
        )
    groups = dataset.groups.cpu()[positions]
    # runs of slices of one exam: its number and how many slices; an exam in two runs is not in order
    numbers, counts = torch.unique_consecutive(groups, return_counts=True)
    if len(torch.unique(numbers)) != len(numbers):
        repeated = next(int(n) for i, n in enumerate(numbers) if n in numbers[:i])
        raise ValueError(f"exam {repeated}: its slices do not lie together; a scan has to be given whole, exam by exam")
    scans = []
    for exam, scan_positions in zip(numbers.tolist(), torch.split(positions, counts.tolist()), strict=True):
        records = [dataset.records[i] for i in scan_positions.tolist()]
        slices = [record["slice"] for record in records]
        for below, above in zip(slices, slices[1:], strict=False):
            if above != below + 1:
                raise ValueError(
                    f"exam {exam}: slice {above} follows {below}; a scan has to be given whole, upwards; is the data "
                    "that of training? use episodes with masks: organs"
                )
        spacing = tuple(float(side) for side in records[0]["spacing_mm"])
        if len(spacing) != 3 or not all(side > 0 for side in spacing):
            raise ValueError(f"exam {exam}: expected a spacing of three numbers above 0 mm, got {spacing}")
        scans.append(
            ScanSlices(exam, scan_positions, (spacing[0], spacing[1], spacing[2]), bool(records[0]["oriented"]))
        )
    return scans


def fetch(dataset: Dataset, scan: ScanSlices, *, seed: int) -> tuple[Tensor, Tensor]:
    """(images (S, C, H, W), organ values (S, H, W)) of a scan. ``ValueError`` for a dataset without organ masks."""
    draws = torch.zeros(len(scan), dtype=torch.int64)
    batch = dataset.fetch(scan.positions, seed=seed, epoch=0, draw=draws)
    if "organs" not in batch:
        raise ValueError("segmentation is scored against organ masks; use the data `episodes` with masks: organs")
    return batch["images"], batch["organs"]


def load(segmenter: Segmenter, dataset: Dataset, scan: ScanSlices, *, seed: int, centred: bool) -> Volume:
    """The scan with its feature maps; ``centred``: also with the centre of its body. ``ValueError`` names the exam."""
    images, organs = fetch(dataset, scan, seed=seed)
    try:
        centre = body_centre(images) if centred else None
        return Volume(scan, segmenter.maps(images), organs.to(segmenter.device), centre)
    except ValueError as error:
        raise ValueError(f"exam {scan.number}: {error}") from None
