"""Which slices of an examination a diagnosis looks at: several draws, keyed by what the examination shows."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.data.dataset import content_hash

Kind = Literal["normal", "fifths", "uniform"]
KINDS = ("normal", "fifths", "uniform")
FIRST, ALL = 3, 16  # of 16 slices the published code takes 3 from the first fifth and 3 from the last


@dataclass(frozen=True)
class Sampling:
    """``draws`` times ``slices`` slices of an examination of N slices, in ascending order.

    * ``normal`` (thesis, Eq. 3.3): the number of a slice is floor(x), x normal with mean N / 2 and standard deviation
      N / 4, and at the ends the first or last slice. A slice may come twice.
    * ``fifths`` (the published code's test): of 16 slices 3 from the first fifth, 10 from the middle, 3 from the last
      fifth, other numbers in proportion; uniform, none twice unless a part has too few.
    * ``uniform``: different slices, all of them where there are no more. Then one draw is enough.
    """

    kind: Kind = "normal"
    draws: int = 8
    slices: int = 16

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"sampling: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        for name in ("draws", "slices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")

    def numbers(self, count: int, key: int) -> Tensor:
        """Slice numbers of an examination of ``count`` slices, int64 (draws, slices), or (1, count) where ``uniform``
        takes all of them. They depend on ``count`` and ``key`` alone."""
        if self.kind == "uniform" and count <= self.slices:
            return torch.arange(count)[None]
        return torch.stack([self.drawn(count, key, draw) for draw in range(self.draws)]).sort(dim=1).values

    def drawn(self, count: int, key: int, draw: int) -> Tensor:
        """One draw, in any order, int64 (slices,)."""
        if self.kind == "normal":
            x = count / 2 + count / 4 * randomness.normal(key, "slices", draw, torch.arange(self.slices))
            return x.floor().clamp(0, count - 1).to(torch.int64)
        if self.kind == "uniform":
            return randomness.order(torch.arange(count), key, "slices", draw)[: self.slices]
        fifth = -(-count // 5)
        outer = max(1, round(self.slices * FIRST / ALL)) if self.slices > 2 else 0
        middle = (fifth, count - fifth) if count > 2 * fifth else (0, count)
        parts = (((0, fifth), outer), (middle, self.slices - 2 * outer), ((count - fifth, count), outer))
        return torch.cat([some_of(*ends, wanted, key, draw) for ends, wanted in parts])


def some_of(start: int, end: int, wanted: int, key: int, draw: int) -> Tensor:
    """``wanted`` of the numbers ``start`` ... ``end`` - 1; each comes once before one comes twice."""
    numbers = torch.arange(start, end)
    order = numbers[randomness.order(numbers, key, "slices", draw)]
    return order.repeat(-(-wanted // max(len(order), 1)))[:wanted]


def content_key(slices: Tensor, seed: int) -> int:
    """The key of an examination's draws: the run's seed and a hash of its slices (N, C, H, W). So the same examination
    gets the same draws alone, in any set, and under any name."""
    return randomness.key(seed, "monte carlo", content_hash(slices).hex())
