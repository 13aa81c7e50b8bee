"""Several splits of one dataset as one set, so that an evaluation can name any sample by one position."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sslmed_dist.data.compact import Chained
from sslmed_dist.data.dataset import Dataset, Item, Stored


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
        self.starts = torch.tensor([0] + [len(part) for part in parts]).cumsum(0)  # (parts + 1,) first position of each
        super().__init__(
            name=first.name,
            ids=torch.cat([part.ids for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            classes=first.classes,
            channels=first.channels,
            bits=first.bits,
            groups=torch.cat([part.groups for part in parts]),
            sites=join_sites(parts),
            records=Chained([part.records for part in parts]) if all(p.records for p in parts) else (),
        )
        for part in parts:  # the parts of one set say the same things: each once
            self.dropped |= part.dropped
        self.notices = tuple(dict.fromkeys(notice for part in parts for notice in part.notices))
        self.device, self.in_memory = first.device, all(part.in_memory for part in parts)
        self.kept: dict[tuple[Any, ...], Item] = {}  # batches by what they were fetched for
        self.room = 0  # bytes that may still be kept

    def positions(self, part_index: int) -> Tensor:
        """Positions of the samples of part ``part_index``, int64 (n,)."""
        return torch.arange(int(self.starts[part_index]), int(self.starts[part_index + 1]))

    @contextmanager
    def keeping(self, room: int) -> Iterator[None]:
        """A block in which batches of up to ``room`` bytes in all are kept as they were fetched, for who asks for the
        same ones again, as every arm of an evaluation does. Images that lie in memory anyway are not."""
        self.room = 0 if self.in_memory else room
        try:
            yield
        finally:
            self.room = 0
            self.kept.clear()

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        key = (tuple(positions.tolist()), seed, epoch, tuple(draw.tolist())) if self.room or self.kept else ()
        batch = self.kept.get(key) if key else None
        if batch is None:
            batch = self.read(positions, seed, epoch, draw)
            size = sum(value.numel() * value.element_size() for value in batch.values())
            if not key or size > self.room:
                return batch
            self.room -= size
            self.kept[key] = batch
        return {name: value.clone() for name, value in batch.items()}  # whoever writes into it changes its own

    def read(self, positions: Tensor, seed: int, epoch: int, draw: Tensor) -> Item:
        """``fetch`` from the parts."""
        owner = torch.searchsorted(self.starts, positions, right=True) - 1  # (B,) part that holds each position
        batch: Item = {}
        for part_index in torch.unique(owner).tolist():
            # fetch this part's rows of the batch, then put them back where they stood
            rows = owner == part_index  # (B,) boolean
            part_positions = positions[rows] - self.starts[part_index]
            piece = self.parts[part_index].fetch(part_positions, seed=seed, epoch=epoch, draw=draw[rows])
            for name, value in piece.items():
                if name not in batch:
                    batch[name] = value.new_empty((len(positions), *value.shape[1:]))
                batch[name][rows.to(value.device)] = value
        return batch

    def value_range(self) -> tuple[float, float]:
        return self.parts[0].value_range()

    def stored(self, position: int) -> Stored:
        owner = int(torch.searchsorted(self.starts, position, right=True)) - 1
        return self.parts[owner].stored(position - int(self.starts[owner]))

    def to(self, device: str | torch.device) -> "Joined":
        return Joined([part.to(device) for part in self.parts])


def join_sites(parts: Sequence[Dataset]) -> Tensor | None:
    """The sites of all parts one after another, int64 (N,); None unless every part knows them."""
    sites = [part.sites for part in parts if part.sites is not None]
    return torch.cat(sites) if len(sites) == len(parts) else None
