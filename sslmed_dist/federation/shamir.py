"""Shamir's secret sharing (Shamir 1979, "How to share a secret") over the integers modulo a prime.

The secret is the value at 0 of a polynomial of degree ``threshold`` - 1 whose other coefficients are drawn by the
operating system's generator. Share x is its value at x = 1, 2, ... Any ``threshold`` shares give the polynomial, by
Lagrange's formula; fewer say nothing: for every secret there are equally many polynomials through them.

Python's integers take time that depends on their values. Whoever can time this process to the microsecond is beyond
what is defended against here.
"""

import secrets
from collections.abc import Mapping

PRIME = (1 << 521) - 1  # a Mersenne prime, above every secret of 64 bytes
SHARE = 66  # bytes of a share


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """The shares 1 to ``count`` of a secret of at most 64 bytes, ``SHARE`` bytes each; any ``threshold`` of them give
    it back."""
    assert len(secret) <= 64 and 1 <= threshold <= count
    points = values(int.from_bytes(secret), threshold, count, PRIME)
    return [point.to_bytes(SHARE) for point in points]


def join(shares: Mapping[int, bytes], length: int) -> bytes:
    """The secret of ``length`` bytes from at least ``threshold`` shares by their numbers. ``ValueError`` where they are
    no shares of one."""
    number = at_zero({place: int.from_bytes(share) for place, share in shares.items()}, PRIME)
    if number >= 1 << (8 * length):
        raise ValueError("the shares do not belong together")
    return number.to_bytes(length)


def values(secret: int, threshold: int, count: int, prime: int) -> list[int]:
    """The values at 1 to ``count`` of a random polynomial of degree ``threshold`` - 1 with the value ``secret`` at 0,
    modulo ``prime`` > ``count``."""
    coefficients = [secret] + [secrets.randbelow(prime) for _ in range(threshold - 1)]
    found = []
    for place in range(1, count + 1):
        value = 0
        for coefficient in reversed(coefficients):  # Horner's scheme
            value = (value * place + coefficient) % prime
        found.append(value)
    return found


def at_zero(points: Mapping[int, int], prime: int) -> int:
    """The value at 0 of the polynomial of lowest degree through ``points``, modulo ``prime``:
    sum of y_i prod_(j != i) x_j / (x_j - x_i)."""
    total = 0
    for place, value in points.items():
        above, below = 1, 1
        for other in points:
            if other != place:
                above, below = above * other % prime, below * (other - place) % prime
        total += value * above * pow(below, -1, prime)
    return total % prime
