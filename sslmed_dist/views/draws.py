"""Keyed draws for a whole batch, and tables for functions of them.

One uniform number per (sample, parameter word). Where a parameter needs a function whose last bit may differ between
the vectorised and the scalar code of one library, or between devices (exp, cos, the normal quantile), the uniform is
put on a grid of ``LEVELS`` steps and the function is looked up in a table that was computed once, on the CPU. So the
parameters of a sample have the same bits in every batch and on every device.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sslmed_dist import randomness

LEVELS = 4096

Draws = Mapping[str, Tensor]  # word -> (B,) float64 in [0, 1)


def word_keys(words: Sequence[str]) -> Tensor:
    """Int64 (len(words),): what ``randomness.fold`` makes of each word, so that one call draws all of them."""
    return torch.tensor([randomness.word(word) for word in words], dtype=torch.int64)


def draw(words: Sequence[str], keys: Tensor, *, seed: int, epoch: int, index: Tensor, draw: Tensor, view: int) -> Draws:
    """One uniform per sample and word, keyed by (seed, "views", epoch, sample, draw, view, word).

    ``index`` and ``draw`` are int64 (B,); ``keys`` is ``word_keys(words)`` on their device.
    """
    table = randomness.uniform(seed, "views", epoch, index[:, None], draw[:, None], view, keys)
    return dict(zip(words, table.unbind(1), strict=True))


def levels(low: float, high: float) -> Tensor:
    """Float64 (LEVELS,): the middles of the steps of a grid over [low, high]; their mean is (low + high) / 2."""
    return low + (high - low) * (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS


def look_up(table: Tensor, uniform: Tensor) -> Tensor:
    """Row floor(u * len(table)) of the table for each u in [0, 1)."""
    return table[(uniform * len(table)).to(torch.int64)]
