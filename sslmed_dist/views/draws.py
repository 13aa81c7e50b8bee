"""Keyed draws for a whole batch, and tables for functions of them.

There is one uniform number per (sample, word), where a word names a parameter, such as "hue". Some parameters need a
function whose last bit may differ between the vectorised and the scalar code of one library, or between devices (exp,
cos, the normal quantile). For these the uniform number is put on a grid of ``LEVELS`` steps and the function is looked
up in a table that was computed once, on the CPU. So the parameters of a sample have the same bits in every batch and on
every device.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sslmed_dist import randomness

LEVELS = 4096

Draws = Mapping[str, Tensor]  # word -> (B,) float64 in [0, 1)


def word_keys(words: Sequence[str]) -> Tensor:
    """The keys of ``words``, int64 (len(words),), as ``randomness.fold`` makes them: one call can draw all words."""
    return torch.tensor([randomness.word(word) for word in words], dtype=torch.int64)


def draw(
    words: Sequence[str], keys: Tensor, *, seed: int, epoch: int, index: Tensor, draw: Tensor, view: int | Tensor
) -> Draws:
    """One uniform number per sample and word, keyed by (seed, "views", epoch, sample, draw, view, word).

    ``index`` (sample ids) and ``draw`` (draw numbers) are int64 (B,); ``keys`` is ``word_keys(words)`` on their device.
    ``view`` is the number of the view, or one for each row, int64 (B,). A word's numbers are float64 (B,) in [0, 1).
    """
    view = view[:, None] if isinstance(view, Tensor) else view
    table = randomness.uniform(seed, "views", epoch, index[:, None], draw[:, None], view, keys)  # (B, words)
    return dict(zip(words, table.unbind(1), strict=True))


def sixteen_bits(keys: Tensor, count: int) -> Tensor:
    """``count`` whole numbers for each of the random ``keys`` (n,), int32 (n, count), uniform in [0, 65536): one 64-bit
    word makes four of them, exact, so that they have the same bits on every device."""
    # Enough words for all numbers of a key (the division rounds up).
    blocks = torch.arange(-(-count // 4), device=keys.device)
    words = randomness.keys(keys[:, None], blocks).contiguous()
    # (n, 4 blocks), the lowest 16 bits of a word first: every machine that torch runs on is little-endian.
    return words.view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)[:, :count]


def levels(low: float, high: float) -> Tensor:
    """Float64 (LEVELS,): the middles of the steps of a grid over [low, high]; their mean is (low + high) / 2."""
    return low + (high - low) * (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS


def look_up(table: Tensor, uniform: Tensor) -> Tensor:
    """Row floor(u * len(table)) of ``table`` for each u in [0, 1): (*uniform.shape, *table.shape[1:])."""
    return table[(uniform * len(table)).to(torch.int64)]
