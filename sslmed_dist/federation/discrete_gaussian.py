"""Whole numbers drawn from the discrete Gaussian, exactly, out of the operating system's generator.

    P(X = x) is proportional to exp(-x^2 / (2 sigma^2)), x any whole number, sigma = 2^power

The algorithms are 2 and 3 of Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), over arrays. All that is random is
whether an event of probability exp(-n / 2^power) comes true: whether a uniform number lies below that. Its first 32
bits decide, in floating point, unless they lie within ``MARGIN`` of the bound, far more than ``exp`` may be wrong by;
then further bits decide, in decimal numbers as long as it takes. So no rounding makes a value likelier than it should
be, and none is left out: the low-order bits of ordinary noise have betrayed what it was added to (Mironov 2012, "On
significance of the least significant bits for differential privacy"). Nothing here knows a seed. How long a draw takes
depends on the draw alone.

One thing is cut off: values beyond 64 sigma, which have a probability below e^-1900.
"""

import os
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

MOST_POWER = 24  # of sigma: with it every numerator fits into 63 bits
FAR = 6  # values beyond 2^FAR sigma are cut off
CHUNK = 1 << 17  # numbers that are drawn at a time: few enough for a processor's cache
MARGIN = (
    2.0**-10
)  # in units of the 32nd bit, 2^-42 of the bound at 1; numerator and ``exp`` are wrong by less than 2^-47

Numbers = NDArray[np.int64]
Truths = NDArray[np.bool_]


def gaussian(count: int, power: int) -> Numbers:
    """``count`` independent draws with sigma = 2^``power``, int64. ``ValueError`` for a power that is not from 0 to
    ``MOST_POWER``."""
    if not 0 <= power <= MOST_POWER:
        raise ValueError(f"power: expected an integer from 0 to {MOST_POWER}, got {power}")
    drawn = np.empty(count, np.int64)
    done = 0
    while done < count:
        more = one_chunk(min(CHUNK, 3 * (count - done) + 64), power)[: count - done]
        drawn[done : done + len(more)] = more
        done += len(more)
    return drawn


def one_chunk(tries: int, power: int) -> Numbers:
    """The draws that ``tries`` attempts give, about half as many (Algorithm 3, with t = sigma)."""
    values = laplace(tries, power)
    sizes = np.abs(values)
    near = sizes <= 1 << (power + FAR)
    values, sizes = values[near], sizes[near]
    # Accepted with probability exp(-(|y| - sigma)^2 / (2 sigma^2)).
    accepted: Numbers = values[true_by_exp((sizes - (1 << power)) ** 2, 2 * power + 1)]
    return accepted


def laplace(tries: int, power: int) -> Numbers:
    """Draws of the discrete Laplace distribution, P(X = x) proportional to exp(-|x| / 2^power) (Algorithm 2)."""
    rest = bits(tries, power)
    rest = rest[true_by_exp(rest, power)]
    sizes = rest + (geometric(len(rest)) << power)
    negative = bits(len(sizes), 1) == 1
    values = np.where(negative, -sizes, sizes)
    kept: Numbers = values[~(negative & (sizes == 0))]  # zero has one sign, or it would come twice as often
    return kept


def geometric(count: int) -> Numbers:
    """How often in a row an event of probability 1/e came true."""
    lengths = np.zeros(count, np.int64)
    going = np.flatnonzero(true_by_exp(np.ones(count, np.int64), 0))
    while len(going):
        lengths[going] += 1
        going = going[true_by_exp(np.ones(len(going), np.int64), 0)]
    return lengths


def true_by_exp(numerators: Numbers, power: int) -> Truths:
    """For each numerator n >= 0 an event of probability exp(-n / 2^power)."""
    drawn = bits(len(numerators), 32)
    bound = np.exp(numerators * -(2.0**-power)) * 2.0**32
    true: Truths = drawn + 1 <= bound - MARGIN
    for place in np.flatnonzero(~true & (drawn < bound + MARGIN)):
        true[place] = below_exp(int(drawn[place]), int(numerators[place]), power)
    return true


def below_exp(first: int, numerator: int, power: int) -> bool:
    """Whether the uniform number from 0 to 1 whose first 32 bits are ``first`` lies below exp(-numerator / 2^power).
    Its further bits are drawn until that is certain."""
    length = 32
    while True:
        first, length = (first << 64) | int.from_bytes(os.urandom(8), "big"), length + 64
        with localcontext() as context:
            context.prec = length  # decimal digits, three times what so many bits need; ``exp`` is rounded correctly
            bound = int((-Decimal(numerator) / Decimal(1 << power)).exp() * (1 << length))
        if abs(first - bound) > 1:
            return first < bound


def bits(count: int, width: int) -> Numbers:
    """``count`` uniform whole numbers of ``width`` bits, at most 32, from the operating system's generator."""
    return np.frombuffer(os.urandom(4 * count), np.uint32).astype(np.int64) >> (32 - width)
