"""Tiny scans with organ masks, an encoder that tells tissues apart, and a slow reading of the protocol."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import randomness
from sslmed_dist.data.dataset import Dataset, Item

ORGANS = ("liver", "spleen")
SIZE = 16
SPACING = (2.0, 3.0, 5.0)
# Exam -> slices, then (first, last) slice and (row, column) of each organ: the liver 6 x 5 pixels, the spleen 3 x 3.
EXAMS: dict[int, tuple[int, Any, Any]] = {
    5: (9, (2, 6, 4, 3), (3, 5, 9, 11)),
    2: (11, (3, 9, 5, 2), (2, 6, 8, 10)),
    7: (10, (3, 8, 4, 2), (4, 8, 9, 10)),  # all support slices, 4, 6 and 8 of both, show both organs
}
SHAPES = ((6, 5), (3, 3))


class FakeScans(Dataset):
    """Slices (N, 1, 16, 16): a body of 1 on 0, liver 2, spleen 3, plus noise of sd ``noise``; "organs" beside them."""

    def __init__(self, exams: dict[int, tuple[int, Any, Any]] | None = None, noise: float = 0.0) -> None:
        images, organs, groups, slices = [], [], [], []
        for number, (count, *where) in (exams or EXAMS).items():
            mask = torch.zeros(count, SIZE, SIZE, dtype=torch.uint8)
            for value, (place, shape) in enumerate(zip(where, SHAPES, strict=True), start=1):
                if place is not None:
                    first, last, row, column = place
                    mask[first : last + 1, row : row + shape[0], column : column + shape[1]] = value
            body = torch.zeros(count, SIZE, SIZE)
            body[:, 2:14, 1:15] = 1.0
            images.append(torch.where(mask > 0, mask + 1.0, body))
            organs.append(mask)
            groups += [number] * count
            slices += list(range(count))
        self.images, self.organs = torch.cat(images)[:, None], torch.cat(organs)
        pixels = torch.arange(self.images.numel()).view_as(self.images)
        self.images = self.images + noise * randomness.normal(3, pixels).float()
        present = torch.stack([(self.organs == k + 1).flatten(1).any(1) for k in range(2)], 1).float()
        facts = {"spacing_mm": SPACING, "oriented": True}
        super().__init__(
            name="fake",
            ids=torch.tensor(groups) * 4096 + torch.tensor(slices),
            labels=present,
            classes=ORGANS,
            channels=1,
            groups=torch.tensor(groups),
            records=[facts | {"slice": z} for z in slices],
        )

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        return self.item(self.images[positions], positions, draw) | {"organs": self.organs[positions]}

    def value_range(self) -> tuple[float, float]:
        return (0.0, 1.0)

    def to(self, device: str | torch.device) -> "FakeScans":
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def every(self) -> Tensor:
        """Positions of all slices: exams 5, 2 and, the support, 7."""
        return torch.arange(len(self))

    def scan(self, number: int) -> tuple[Tensor, Tensor]:
        """(images (S, 1, H, W), organs (S, H, W)) of an exam."""
        own = self.groups == number
        return self.images[own], self.organs[own]


class Tissues(nn.Module):
    """Maps (N, 4, H, W): one channel per intensity 0, 1, 2, 3, nearly exclusive. Counts the slices it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)  # changes with the mode
        self.seen = 0

    def maps(self, images: Tensor) -> Tensor:
        """Soft one-hot of the intensity."""
        assert not self.training
        self.seen += len(images)
        levels = torch.arange(4.0)[:, None, None]
        maps: Tensor = self.norm(torch.exp(-4.0 * (images - levels).square()))
        return maps
