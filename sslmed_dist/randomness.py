"""Keyed random numbers: every draw is a pure function of (seed, epoch, sample, draw, view, parameter).

Nothing here has a state, so a draw does not depend on the batch it falls in, on the number of workers, on the device
or on how often a run was restarted. A *key* is made of parts: integers, words (``"views"``, ``"hue"``) and int64
tensors. The generator is the SplitMix64 finaliser (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"), applied to one part after another. It is integer arithmetic modulo 2^64 and therefore gives the same bits
everywhere. A word becomes an integer by the hash BLAKE2b.

Tensors among ``parts`` are broadcast against each other. There is one draw for each key, in the shape that comes out.
"""

import hashlib
import math
from functools import lru_cache

import torch
from torch import Tensor

Part = int | str | Tensor


def signed(value: int) -> int:
    """The lowest 64 bits of an integer as torch's signed int64 holds them: 2^63 and above become negative."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


# SplitMix64's increment (2^64 over the golden ratio), and the two factors of its finaliser.
GAMMA = signed(0x9E3779B97F4A7C15)
FIRST, SECOND = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)


@lru_cache(maxsize=4096)
def word(text: str) -> int:
    """The 64-bit key of a word, the same on every machine and in every Python process."""
    # A file name that is no UTF-8 has surrogates in Python; it is a key like any other.
    coded = text.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(coded, digest_size=8).digest(), "little", signed=True)


def shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64: zeros come in from the left, where torch's ``>>`` copies the sign bit."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)  # the mask clears the copies


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64: a bijection in which every input bit influences every output bit."""
    # torch's product of int64 wraps around modulo 2^64, as the algorithm asks. In place, but for ``x`` itself: of the
    # many numbers of a noise, memory is most of the time.
    x = shift(x, 30).bitwise_xor_(x).mul_(FIRST)
    x = shift(x, 27).bitwise_xor_(x).mul_(SECOND)
    return shift(x, 31).bitwise_xor_(x)


def mix_int(x: int) -> int:
    """``mix`` for one Python integer (no tensor is made)."""
    x &= (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return signed(x ^ (x >> 31))


def fold(*parts: Part) -> Tensor | int:
    """Fold integers, words and int64 tensors into 64-bit keys: a Python integer where no part is a tensor, else int64
    in the shape to which the tensors broadcast."""
    state: Tensor | int = GAMMA
    for part in parts:  # the order of the parts counts
        if isinstance(part, Tensor):
            value: Tensor | int = part.to(torch.int64)
        else:
            value = word(part) if isinstance(part, str) else signed(part)
        joined = (state ^ value) + GAMMA
        state = mix(joined) if isinstance(joined, Tensor) else mix_int(joined)
    return state


def key(*parts: int | str) -> int:
    """The seed of a substream, a Python integer in the range of int64; for example ``key(seed, "site:north")``."""
    folded = fold(*parts)
    assert isinstance(folded, int)
    return folded


def keys(*parts: Part) -> Tensor:
    """As ``fold``, but always an int64 tensor, 0-d where no part is a tensor."""
    folded = fold(*parts)
    return folded if isinstance(folded, Tensor) else torch.tensor(folded, dtype=torch.int64)


def uniform(*parts: Part) -> Tensor:
    """Float64 uniform in [0, 1), one for each key. The value is exact and so the same on every device."""
    # The 53 upper bits of the key fit the mantissa of a float64.
    return shift(keys(*parts), 11).to(torch.float64) * 2.0**-53


def uniform_between(low: float, high: float, *parts: Part) -> Tensor:
    """Float64 uniform in [low, high], one for each key; ``high`` itself only where rounding reaches it."""
    return low + (high - low) * uniform(*parts)


def integers(below: int | Tensor, *parts: Part) -> Tensor:
    """Int64 uniform in [0, below), one for each key; ``below`` may be a tensor with a bound for each key."""
    scaled = uniform(*parts) * below
    return scaled.to(torch.int64)


def normal(*parts: Part) -> Tensor:
    """Float64 standard normal, one for each key, by Box and Muller's transform of two keyed uniforms."""
    # 1 - u lies in (0, 1], so its logarithm is finite.
    radius = torch.sqrt(-2.0 * torch.log1p(-uniform(*parts, "radius")))
    return radius * torch.cos(2.0 * math.pi * uniform(*parts, "angle"))


def order(ids: Tensor, *parts: int | str) -> Tensor:
    """The random order of the samples ``ids`` int64 (N,), as int64 (N,) positions in ``ids``: they are sorted by their
    keys. It depends on the set of ids alone. Of a subset it is the order of the whole set with the others left out."""
    return torch.argsort(keys(*parts, ids), stable=True)
