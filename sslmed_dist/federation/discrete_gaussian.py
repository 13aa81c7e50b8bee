"""Whole numbers drawn from the discrete Gaussian, exactly, out of the operating system's generator.

    P(X = x) is proportional to exp(-x^2 / (2 sigma^2)), x any whole number, sigma = 2^power

The algorithms are 1 to 3 of Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), over arrays. Every decision compares
whole numbers, so no rounding of a floating-point number makes one value likelier than it should be, and none is left
out: the low-order bits of ordinary noise have betrayed what it was added to (Mironov 2012, "On significance of the
least significant bits for differential privacy"). Nothing here knows a seed. How long a draw takes depends on the
draw alone.

One thing is cut off: values beyond 64 sigma, which have a probability below e^-1900.
"""

import os

import numpy as np
from numpy.typing import NDArray

MOST_POWER = 24  # of sigma: with it every comparison fits into 63 bits
FAR = 6  # values beyond 2^FAR sigma are cut off
CHUNK = 1 << 17  # numbers that are drawn at a time: few enough for a processor's cache

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
        more = one_chunk(min(CHUNK, 2 * (count - done) + 64), power)[: count - done]
        drawn[done : done + len(more)] = more
        done += len(more)
    return drawn


def one_chunk(tries: int, power: int) -> Numbers:
    """The draws that ``tries`` attempts give, about half as many (Algorithm 3, with t = sigma)."""
    values = laplace(tries, power)
    values = values[np.abs(values) <= 1 << (power + FAR)]
    # Accepted with probability exp(-(|y| - sigma)^2 / (2 sigma^2)).
    accepted: Numbers = values[true_by_exp((np.abs(values) - (1 << power)) ** 2, 2 * power + 1)]
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
    going = np.arange(count)
    while len(going):
        going = going[true_by_exp(np.ones(len(going), np.int64), 0)]
        lengths[going] += 1
    return lengths


def true_by_exp(numerators: Numbers, power: int) -> Truths:
    """For each numerator n >= 0 an event of probability exp(-n / 2^power) (Algorithm 1): that of the part below 1, and
    as many of probability 1/e as n / 2^power has whole parts."""
    whole = numerators >> power
    true = fraction_by_exp(numerators - (whole << power), power)
    going = np.flatnonzero(true & (whole > 0))
    done = 0
    while len(going):
        came = fraction_by_exp(np.ones(len(going), np.int64), 0)
        true[going[~came]] = False
        done += 1
        going = going[came & (whole[going] > done)]
    return true


def fraction_by_exp(numerators: Numbers, power: int) -> Truths:
    """``true_by_exp`` for n / 2^power from 0 to 1: events of probability x / 1, x / 2, x / 3, ... until one does not
    come true; the result is whether that was an odd one."""
    true = np.empty(len(numerators), np.bool_)
    going = np.arange(len(numerators))
    k = 1
    while len(going):
        came = bits(len(going), power) < numerators[going]
        if k > 1:
            came[came] = below(int(came.sum()), k) == 0
        true[going[~came]] = k % 2 == 1
        going = going[came]
        k += 1
    return true


def bits(count: int, width: int) -> Numbers:
    """``count`` uniform whole numbers of ``width`` bits, from the operating system's generator."""
    if width <= 32:
        return np.frombuffer(os.urandom(4 * count), np.uint32).astype(np.int64) >> (32 - width)
    return (np.frombuffer(os.urandom(8 * count), np.uint64) >> np.uint64(64 - width)).astype(np.int64)


def below(count: int, limit: int) -> Numbers:
    """``count`` uniform whole numbers from 0 to ``limit`` - 1. Those of the last, incomplete round of the 32-bit
    numbers are drawn again, so none is likelier than another."""
    drawn = bits(count, 32)
    most = (1 << 32) // limit * limit
    while len(again := np.flatnonzero(drawn >= most)):
        drawn[again] = bits(len(again), 32)
    return drawn % limit
