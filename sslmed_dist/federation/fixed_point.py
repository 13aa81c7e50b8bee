"""Updates as whole numbers modulo 2^bits, so that masks cancel to the bit: the arithmetic of the secure sum.

A site's update d = w - g with |d| <= clip, times its weight 0 <= a <= 1, becomes q = round(a d scale). Of ``sites``
sites

    |sum of q| <= sites (clip scale + 1/2) <= 2^(bits - 1) - 1,

so the sum modulo 2^bits, read as a number with a sign, is the sum itself: nothing can overflow. ``scale`` is the
largest power of two for which that holds. Each site is rounded by at most 1/2, so the mean over weights that sum to A
is wrong by at most sites / (2 scale A) in any number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from sslmed_dist.federation.shared import Arrays

Vector = NDArray[Any]  # uint32 or uint64


@dataclass(frozen=True)
class Ring:
    """Whole numbers modulo 2^``bits`` (32 or 64) for the updates of ``sites`` sites, none of them beyond ``clip``."""

    bits: int
    clip: float
    sites: int

    @property
    def kind(self) -> np.dtype[Any]:
        """The type of a vector."""
        return np.dtype(np.uint32 if self.bits == 32 else np.uint64)

    @property
    def scale(self) -> float:
        """How many steps a 1 has: a power of two. ``ValueError`` where the range leaves no step."""
        room = (Fraction((1 << (self.bits - 1)) - 1, self.sites) - Fraction(1, 2)) / Fraction(self.clip)
        if room <= 0:
            raise ValueError("the secure sum has no room for so many sites")
        power = room.numerator.bit_length() - room.denominator.bit_length()
        return 2.0 ** (power if Fraction(2) ** power <= room else power - 1)

    def error(self, weights: float) -> float:
        """How far the mean over weights that sum to ``weights`` may be from the true one, in any number."""
        return self.sites / (2.0 * self.scale * weights)

    def encode(self, update: Mapping[str, Tensor], sent: Mapping[str, Tensor], weight: float) -> Vector:
        """The update ``update`` - ``sent`` times ``weight``, the tensors in the order of their names. ``ValueError``
        names the first tensor that is outside the range."""
        vector = np.empty(sum(tensor.numel() for tensor in sent.values()), self.kind)
        start = 0
        for name in sorted(sent):
            moved = (update[name].double() - sent[name].double()).flatten().numpy()
            if not np.abs(moved).max(initial=0.0) <= self.clip:  # false for NaN, too
                raise ValueError(f"the update leaves the range of the secure sum in {name} (federated.secure.clip)")
            whole = np.rint(moved * (weight * self.scale)).astype(np.int64)
            vector[start : start + len(moved)] = whole.view(np.uint64).astype(self.kind)
            start += len(moved)
        return vector

    def mean(self, total: Vector, weights: float, sent: Mapping[str, Tensor]) -> Arrays:
        """The tensors, float64, whose distance from ``sent`` is the mean of the updates in the sum ``total``."""
        moved = total.view(np.int32 if self.bits == 32 else np.int64).astype(np.float64) / (self.scale * weights)
        found, start = {}, 0
        for name in sorted(sent):
            count = sent[name].numel()
            found[name] = sent[name].double() + from_numpy(moved[start : start + count]).reshape(sent[name].shape)
            start += count
        return {name: found[name] for name in sent}
