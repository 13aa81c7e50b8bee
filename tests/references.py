"""Slow, readable versions of what the package computes fast: plain Python loops in float64, nothing shared with it."""

import math
from collections.abc import Iterator

from torch import Tensor

Vector = list[float]


def unit(vector: Vector) -> Vector:
    norm = math.sqrt(sum(value * value for value in vector))
    return [value / norm for value in vector]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def stacked(z0: Tensor, z1: Tensor) -> list[Vector]:
    """The 2 N unit rows in the thesis's order: all first views, then all second views; the partner of n is n + N."""
    return [unit(row) for row in z0.double().tolist() + z1.double().tolist()]


def positives(rows: list[Vector]) -> Iterator[float]:
    """Cosine of each row with its partner."""
    for n, row in enumerate(rows):
        yield dot(row, rows[(n + len(rows) // 2) % len(rows)])


def negatives(rows: list[Vector]) -> Iterator[float]:
    """Cosine of each row with each row that is neither itself nor its partner."""
    for n, row in enumerate(rows):
        for m, other in enumerate(rows):
            if m != n and m != (n + len(rows) // 2) % len(rows):
                yield dot(row, other)


def mean(values: Iterator[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


def nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> float:
    """Chen et al. 2020, Eq. 1."""
    rows = stacked(z0, z1)
    terms = []
    for n, positive in enumerate(positives(rows)):
        others = [math.exp(dot(rows[n], rows[m]) / temperature) for m in range(len(rows)) if m != n]
        terms.append(-math.log(math.exp(positive / temperature) / math.fsum(others)))
    return math.fsum(terms) / len(terms)


def denominators(rows: list[Vector], temperature: float, partner: bool) -> list[float]:
    """Of each row, the sum of e^(c/t) over the other rows, with or without its partner."""
    half = len(rows) // 2
    return [
        math.fsum(
            math.exp(dot(row, other) / temperature)
            for m, other in enumerate(rows)
            if m != n and (partner or m != (n + half) % len(rows))
        )
        for n, row in enumerate(rows)
    ]


def contr(z0: Tensor, z1: Tensor, temperature: float) -> float:
    """Thesis Eq. 4.17 with distances written out."""
    rows = stacked(z0, z1)
    terms = []
    for n, row in enumerate(rows):
        logits = [-squared_distance(row, other) / temperature for other in rows]
        others = math.fsum(math.exp(x) for m, x in enumerate(logits) if m != n)
        terms.append(-math.log(math.exp(logits[(n + len(rows) // 2) % len(rows)]) / others))
    return math.fsum(terms) / len(terms)


def dcl(z0: Tensor, z1: Tensor, temperature: float) -> float:
    """Yeh et al. 2022, Eq. 5."""
    rows = stacked(z0, z1)
    sums = denominators(rows, temperature, partner=False)
    return mean(math.log(d) - c / temperature for d, c in zip(sums, positives(rows), strict=True))


def dclw(z0: Tensor, z1: Tensor, temperature: float, sigma: float = 0.5) -> float:
    """Yeh et al. 2022, Eq. 6 and 7: one anchor view at a time, as the paper writes it."""
    rows = stacked(z0, z1)
    sums, cosines = denominators(rows, temperature, partner=False), list(positives(rows))
    total = 0.0
    for view in range(2):
        mine = range(view * len(rows) // 2, (view + 1) * len(rows) // 2)
        average = mean(math.exp(cosines[k] / sigma) for k in mine)
        weights = {n: 2.0 - math.exp(cosines[n] / sigma) / average for n in mine}
        total += math.fsum(math.log(sums[n]) - weights[n] * cosines[n] / temperature for n in mine)
    return total / len(rows)


def macl(z0: Tensor, z1: Tensor, temperature: float, alpha: float = 0.5) -> float:
    """Huang et al. 2023, Eq. 10 and 13, A0 = 0."""
    rows = stacked(z0, z1)
    cosines = list(positives(rows))
    adapted = temperature * (1.0 + alpha * math.fsum(cosines) / len(cosines))
    terms = []
    for c, everything in zip(cosines, denominators(rows, adapted, partner=True), strict=True):
        others = everything - math.exp(c / adapted)
        terms.append(-math.log(math.exp(c / adapted) / everything) / max(others / everything, 1e-8))
    return math.fsum(terms) / len(terms)


def binary(z0: Tensor, z1: Tensor, temperature: float) -> float:
    """Thesis Eq. 4.14."""
    rows = stacked(z0, z1)
    attraction = math.fsum(math.log(logistic(c / temperature)) for c in positives(rows))
    repulsion = math.fsum(math.log(logistic(-c / temperature)) for c in negatives(rows))
    return -(attraction + repulsion) / len(rows) ** 2


def combo(z0: Tensor, z1: Tensor, temperature: float) -> float:
    """Thesis Eq. 4.18, L_contr at 0.33."""
    return mio_v1(z0, z1, temperature) + contr(z0, z1, 0.33)


def logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def mio_v1(z0: Tensor, z1: Tensor, temperature: float) -> float:
    """Thesis Eq. 5.13; 1 - s(x) is written s(-x), which loses no digits near s = 1."""
    rows = stacked(z0, z1)
    attraction = mean(-math.log(logistic(c / temperature)) for c in positives(rows))
    return attraction + mean(-math.log(logistic(-c / temperature)) for c in negatives(rows))


def mio_v2(z0: Tensor, z1: Tensor, temperature: float) -> float:
    """Thesis Eq. 5.15."""
    rows = stacked(z0, z1)
    repulsion = mean(math.log(1.0 + math.exp(c / temperature)) for c in negatives(rows))
    return repulsion - mean(c / temperature for c in positives(rows))


def mio_v3(z0: Tensor, z1: Tensor, temperature: float) -> float:
    """Thesis Eq. 5.21."""
    rows = stacked(z0, z1)
    return mean(math.exp(c / temperature) for c in negatives(rows)) - mean(c / temperature for c in positives(rows))


def squared_distance(a: Vector, b: Vector) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def uniformity(z: Tensor) -> float:
    """Wang and Isola 2020, Eq. 2, t = 2, over pairs i < j."""
    rows = [unit(row) for row in z.double().tolist()]
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[i + 1 :]]
    return math.log(math.fsum(math.exp(-2.0 * squared_distance(a, b)) for a, b in pairs) / len(pairs))


def alignment(z0: Tensor, z1: Tensor) -> float:
    """Wang and Isola 2020, Eq. 1."""
    rows = zip(z0.double().tolist(), z1.double().tolist(), strict=True)
    return mean(squared_distance(unit(a), unit(b)) for a, b in rows)


def embedding_std(z: Tensor) -> float:
    """Mean over dimensions of the unit rows' standard deviation, times sqrt(D)."""
    columns = list(zip(*(unit(row) for row in z.double().tolist()), strict=True))
    spreads = []
    for column in columns:
        centre = sum(column) / len(column)
        spreads.append(math.sqrt(sum((value - centre) ** 2 for value in column) / len(column)))
    return sum(spreads) / len(spreads) * math.sqrt(len(columns))
