"""Secret sharing against a reference that solves the linear system, and what fewer shares than the threshold say."""

from collections import Counter
from itertools import combinations, product
from unittest.mock import patch

import pytest

from sslmed_dist.federation import shamir
from sslmed_dist.federation.shamir import PRIME, SHARE, at_zero, join, split, values


def solved(points: dict[int, int], prime: int) -> list[int]:
    """The coefficients of the polynomial through ``points``, by Gauss's elimination modulo ``prime``."""
    size = len(points)
    rows = [[pow(x, power, prime) for power in range(size)] + [y] for x, y in points.items()]
    for column in range(size):
        pivot = next(row for row in range(column, size) if rows[row][column] % prime)
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = pow(rows[column][column], prime - 2, prime)  # Fermat
        rows[column] = [value * inverse % prime for value in rows[column]]
        for row in range(size):
            if row != column:
                factor = rows[row][column]
                rows[row] = [(a - factor * b) % prime for a, b in zip(rows[row], rows[column], strict=True)]
    return [row[-1] for row in rows]


@pytest.mark.parametrize(("threshold", "count"), [(1, 1), (2, 3), (3, 3), (3, 5), (5, 8)])
def test_any_threshold_of_shares_gives_the_secret_as_the_reference_does(threshold: int, count: int) -> None:
    secret = bytes(range(7, 39))
    shares = dict(enumerate(split(secret, threshold, count), 1))
    assert all(len(share) == SHARE for share in shares.values())
    for chosen in combinations(shares, threshold):
        some = {place: shares[place] for place in chosen}
        assert join(some, 32) == secret
        numbers = {place: int.from_bytes(share) for place, share in some.items()}
        assert solved(numbers, PRIME)[0] == at_zero(numbers, PRIME) == int.from_bytes(secret)
    assert join(shares, 32) == secret  # more than needed do no harm


def test_every_share_is_a_value_of_one_polynomial_of_the_right_degree() -> None:
    shares = {place: int.from_bytes(share) for place, share in enumerate(split(b"\xff" * 32, 3, 6), 1)}
    coefficients = solved(shares, PRIME)
    assert coefficients[0] == int.from_bytes(b"\xff" * 32)
    assert all(coefficients[1:3]) and not any(coefficients[3:])


def test_fewer_shares_say_nothing_of_the_secret() -> None:
    """Over the integers modulo 5, all polynomials of degree 2: two shares have the same distribution whatever the
    secret is."""
    seen = []
    for secret in range(5):
        found: Counter[tuple[int, ...]] = Counter()
        for drawn in product(range(5), repeat=2):
            with patch.object(shamir.secrets, "randbelow", side_effect=drawn):
                found[tuple(values(secret, 3, 4, 5)[:2])] += 1
        seen.append(found)
    assert all(found == Counter(dict.fromkeys(product(range(5), repeat=2), 1)) for found in seen)


def test_too_few_or_wrong_shares_give_no_secret() -> None:
    shares = dict(enumerate(split(b"s" * 32, 3, 5), 1))
    with pytest.raises(ValueError, match="do not belong together"):
        join({1: shares[1], 2: shares[2]}, 32)  # right with a chance of 2^-265
    with pytest.raises(ValueError, match="do not belong together"):
        join({1: shares[1], 2: shares[2], 3: shares[4]}, 32)


def test_the_prime_is_one() -> None:
    """Lucas and Lehmer's test of a Mersenne number, 2^521 - 1."""
    value = 4
    for _ in range(521 - 2):
        value = (value * value - 2) % PRIME
    assert value == 0
