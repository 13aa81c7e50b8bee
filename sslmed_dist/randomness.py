"""Keyed random numbers: every draw is a pure function of (seed, epoch, sample, draw, view, parameter).

Nothing here has a state, so a draw does not depend on the batch it falls in, on the number of workers, on the device
or on how often a run was restarted. The generator is the SplitMix64 finaliser (Steele, Lea and Flood 2014, "Fast
splittable pseudorandom number generators") folded over the parts of the key; it is integer arithmetic modulo 2^64 and
therefore gives the same bits everywhere. Keys that are words (``"views"``, ``"hue"``) enter through BLAKE2b.
"""

import hashlib
import math
from functools import lru_cache

import torch
from torch import Tensor

Part = int | str | Tensor


def signed(value: int) -> int:
    """A 64-bit pattern as torch's signed int64 would hold it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


GAMMA = signed(0x9E3779B97F4A7C15)
FIRST, SECOND = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)


@lru_cache(maxsize=4096)
def word(text: str) -> int:
    """The 64-bit key of a word, the same on every machine and in every Python process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's ``>>`` on int64 copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64: a bijection in which every input bit reaches every output bit."""
    x = (x ^ shift(x, 30)) * FIRST
    x = (x ^ shift(x, 27)) * SECOND
    return x ^ shift(x, 31)


def mix_int(x: int) -> int:
    """``mix`` for one Python integer (no tensor is made)."""
    x &= (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return signed(x ^ (x >> 31))


def fold(*parts: Part) -> Tensor | int:
    """Fold integers, words and int64 tensors into one 64-bit key; tensors broadcast, keys come out in their shape."""
    state: Tensor | int = GAMMA
    for part in parts:
        if isinstance(part, Tensor):
            value: Tensor | int = part.to(torch.int64)
        else:
            value = word(part) if isinstance(part, str) else signed(part)
        joined = (state ^ value) + GAMMA
        state = mix(joined) if isinstance(joined, Tensor) else mix_int(joined)
    return state


def key(*parts: int | str) -> int:
    """A substream's seed as a Python int64, e.g. ``key(seed, "site:north")``."""
    folded = fold(*parts)
    assert isinstance(folded, int)
    return folded


def keys(*parts: Part) -> Tensor:
    """As ``fold``, always a tensor."""
    folded = fold(*parts)
    return folded if isinstance(folded, Tensor) else torch.tensor(folded, dtype=torch.int64)


def uniform(*parts: Part) -> Tensor:
    """Float64 in [0, 1), one per key: the 53 upper bits, so the value is the same on every device."""
    return shift(keys(*parts), 11).to(torch.float64) * 2.0**-53


def uniform_between(low: float, high: float, *parts: Part) -> Tensor:
    """Float64 in [low, high]: ``high`` itself only where rounding the sum reaches it."""
    return low + (high - low) * uniform(*parts)


def integers(below: int | Tensor, *parts: Part) -> Tensor:
    """Int64 in [0, below); ``below`` may be a tensor of one bound per key."""
    scaled = uniform(*parts) * below
    return scaled.to(torch.int64)


def normal(*parts: Part) -> Tensor:
    """Float64 standard normal by Box and Muller's transform of two keyed uniforms."""
    radius = torch.sqrt(-2.0 * torch.log1p(-uniform(*parts, "radius")))
    return radius * torch.cos(2.0 * math.pi * uniform(*parts, "angle"))


def order(ids: Tensor, *parts: int | str) -> Tensor:
    """A permutation (positions into ``ids``) that sorts the samples by their key: it depends on the set of ids alone,
    and the order of a subset is the order of the whole set with the others left out."""
    return torch.argsort(keys(*parts, ids), stable=True)
