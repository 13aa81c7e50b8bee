"""Noise in place of images: measures the trainer without the disk and without decoding."""

from functools import cached_property

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.arguments import require_between
from sslmed_dist.data.dataset import Dataset, Item, Split, Stored, content_hash

MOST = 2**31 - 1  # samples of a split
CHUNK = 2**20  # pixels that are drawn at a time
NOTICE = "synthetic: noise of a keyed generator, no image; no figure of this run says anything of an encoder"


class Synthetic(Dataset):
    """``images`` training samples of noise, and ``held_out`` in each of val and test. There is no ``root``.

    One block of ``distinct`` images is drawn by ``seed`` and used again and again: sample i shows image i modulo
    ``distinct``. So a sample costs no more than the copy of its bytes, and a set of any size the memory of one block:
    ``distinct`` x ``channels`` x ``size`` x ``size`` bytes. Every value from 0 to 255 is as frequent as the others.
    The label of sample i is i modulo ``classes``; nothing in the image tells it. ids: those of train, val, test.
    A batch leaves the CPU as that of a decoded set does; ``plan.resident`` keeps the block on the GPU instead.
    """

    in_memory = True

    def __init__(
        self,
        split: Split = "train",
        images: int = 1_281_167,
        size: int = 256,
        channels: int = 3,
        classes: int = 1000,
        held_out: int = 1000,
        distinct: int = 64,
        seed: int = 0,
    ) -> None:
        """``ValueError``: no such split, or a number out of range. The defaults are ImageNet's."""
        numbers = {"images": images, "held_out": held_out, "size": size, "channels": channels, "classes": classes}
        most = {"images": MOST, "held_out": MOST, "size": 4096, "channels": 16, "classes": 2**20}
        for name, value in numbers.items():
            require_between(f"data.{name}", value, 1, most[name])
        require_between("data.distinct", distinct, 1, 4096)
        spans = {"train": (0, images), "val": (images, images + held_out), "all": (0, images + 2 * held_out)}
        spans["test"] = (images + held_out, images + 2 * held_out)
        if split not in spans:
            raise ValueError(f"synthetic: no split {split!r}; allowed: train, val, test, all")
        self.distinct, self.first = distinct, spans[split][0]
        ids = torch.arange(*spans[split])
        super().__init__(
            name="synthetic noise",
            ids=ids,
            labels=ids % classes,
            classes=tuple(str(number) for number in range(classes)),
            channels=channels,
            notices=[NOTICE],
        )
        self.block = draw_block(distinct, (channels, size, size), seed)

    def fetch(self, positions: Tensor, *, seed: int, epoch: int, draw: Tensor) -> Item:
        shown = self.ids[positions] % self.distinct
        return self.item(self.block.index_select(0, shown.to(self.device)), positions, draw)

    def value_range(self) -> tuple[float, float]:
        return (0.0, 255.0)

    def stored(self, position: int) -> Stored:
        return self.contents[(self.first + position) % self.distinct]

    @cached_property
    def contents(self) -> list[Stored]:
        """What each image of the block is kept in."""
        hashes = [content_hash(image).hex() for image in self.block]
        return [Stored(lambda digest=digest: digest) for digest in hashes]  # type: ignore[misc]

    def to(self, device: str | torch.device) -> "Synthetic":
        moved = super().to(device)
        moved.block = self.block.to(moved.device)
        return moved


def draw_block(count: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """``count`` images of noise, uint8 (count, *shape): byte b of the block is the key of b, so that the same bytes
    come on every machine."""
    block = torch.empty(count, *shape, dtype=torch.uint8)
    flat = block.view(-1)
    for start in range(0, len(flat), CHUNK):
        numbers = torch.arange(start, min(start + CHUNK, len(flat)))
        flat[start : start + CHUNK] = (randomness.keys(seed, "synthetic", numbers) & 255).to(torch.uint8)
    return block
