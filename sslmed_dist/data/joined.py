"""Several splits of one dataset as one, so that an evaluation can speak of positions in a single set."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sslmed_dist.data.dataset import Dataset, Item


class Joined(Dataset):
    """The samples of ``parts`` one after another. They must be splits of one dataset: ids may not repeat."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        """``ValueError`` when the parts differ in classes, channels or label shape."""
        first = parts[0]
        for part in parts:
            if (part.classes, part.channels, part.labels.shape[1:]) != (
                first.classes,
                first.channels,
                first.labels.shape[1:],
            ):
                raise ValueError(f"{part.name} and {first.name} differ in classes or channels: not splits of one set")
        self.parts = list(parts)
        self.starts = torch.tensor([0] + [len(part) for part in parts]).cumsum(0)
        super().__init__(
            name=first.name,
            ids=torch.cat([part.ids for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            classes=first.classes,
            channels=first.channels,
            bits=first.bits,
            groups=torch.cat([part.groups for part in parts]),
            records=[record for part in parts for record in part.records] if all(p.records for p in parts) else (),
        )
        self.device = first.device

    def positions(self, number: int) -> Tensor:
        """Where the samples of part ``number`` are (int64)."""
        return torch.arange(int(self.starts[number]), int(self.starts[number + 1]))

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        owner = torch.searchsorted(self.starts, positions, right=True) - 1
        batch: Item = {}
        for number in torch.unique(owner).tolist():
            rows = owner == number
            inside = positions[rows] - self.starts[number]
            piece = self.parts[number].fetch(inside, seed=seed, epoch=epoch, draw=draw[rows])
            for name, value in piece.items():
                if name not in batch:
                    batch[name] = value.new_empty((len(positions), *value.shape[1:]))
                batch[name][rows.to(value.device)] = value
        return batch

    def value_range(self) -> tuple[float, float]:
        return self.parts[0].value_range()

    def to(self, device: str | torch.device) -> "Joined":
        return Joined([part.to(device) for part in self.parts])
