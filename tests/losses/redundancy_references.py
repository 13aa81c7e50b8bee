"""Slow, readable redundancy-reduction and whitening losses: float64 loops and numpy, nothing shared with the package.

Whitening matrices come from numpy's eigendecomposition or from Gaussian elimination, and can be handed in, so that a
test can hold them fixed while it varies the embeddings.
"""

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.float64]
Matrix = list[list[float]]


def rows(z: Tensor) -> Matrix:
    return [[float(value) for value in row] for row in z.double().tolist()]


def column(matrix: Matrix, j: int) -> list[float]:
    return [row[j] for row in matrix]


def transposed(matrix: Matrix) -> Matrix:
    return [column(matrix, j) for j in range(len(matrix[0]))]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def covariance(x: list[float], y: list[float], ddof: int) -> float:
    mx, my = mean(x), mean(y)
    return math.fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / (len(x) - ddof)


def standardised(matrix: Matrix, eps: float) -> Matrix:
    """Every column minus its mean, over the root of its variance (1/n) plus eps."""
    columns = []
    for j in range(len(matrix[0])):
        values = column(matrix, j)
        centre, spread = mean(values), math.sqrt(covariance(values, values, 0) + eps)
        columns.append([(value - centre) / spread for value in values])
    return transposed(columns)


def barlow_twins(z0: Tensor, z1: Tensor, redundancy: float = 5e-3, eps: float = 1e-5) -> float:
    """Zbontar et al. 2021, Eq. 1 and 2, eps added to the variances."""
    x0, x1 = standardised(rows(z0), eps), standardised(rows(z1), eps)
    total = 0.0
    for i in range(len(x0[0])):
        for j in range(len(x0[0])):
            c = mean([a * b for a, b in zip(column(x0, i), column(x1, j), strict=True)])
            total += (1.0 - c) ** 2 if i == j else redundancy * c**2
    return total


def vicreg(
    z0: Tensor,
    z1: Tensor,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance_weight: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-4,
) -> float:
    """Bardes et al. 2022, Eq. 1-6 with the two factors of the authors' code."""
    x0, x1 = rows(z0), rows(z1)
    width = len(x0[0])
    distance = mean([(a - b) ** 2 for r0, r1 in zip(x0, x1, strict=True) for a, b in zip(r0, r1, strict=True)])
    spread = correlation = 0.0
    for x in (x0, x1):
        for i in range(width):
            for j in range(width):
                c = covariance(column(x, i), column(x, j), 1)
                if i == j:
                    spread += max(0.0, gamma - math.sqrt(c + eps)) / width / 2.0
                else:
                    correlation += c**2 / width
    return invariance * distance + variance * spread + covariance_weight * correlation


def cholesky(matrix: Matrix) -> Matrix:
    """Lower triangular L with L L^T = matrix, by the textbook's loops."""
    n = len(matrix)
    factor = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1):
            rest = matrix[i][j] - math.fsum(factor[i][k] * factor[j][k] for k in range(j))
            factor[i][j] = math.sqrt(rest) if i == j else rest / factor[j][j]
    return factor


def forward_substitution(factor: Matrix, right: list[float]) -> list[float]:
    """x with factor x = right."""
    x: list[float] = []
    for i, row in enumerate(factor):
        x.append((right[i] - math.fsum(row[k] * x[k] for k in range(i))) / row[i])
    return x


def wmse(z0: Tensor, z1: Tensor, shrinkage: float = 0.0) -> float:
    """Ermolov et al. 2021, the batch as one slice."""
    whitened = []
    for matrix in (rows(z0), rows(z1)):
        columns = transposed(matrix)
        covariances = [[(1.0 - shrinkage) * covariance(a, b, 1) for b in columns] for a in columns]
        for i in range(len(columns)):
            covariances[i][i] += shrinkage
        factor = cholesky(covariances)
        centre = [mean(values) for values in columns]
        centred = [[value - c for value, c in zip(row, centre, strict=True)] for row in matrix]
        whitened.append([forward_substitution(factor, row) for row in centred])
    distances = []
    for u0, u1 in zip(*whitened, strict=True):
        n0, n1 = (math.sqrt(math.fsum(value**2 for value in u)) for u in (u0, u1))
        distances.append(math.fsum((a / n0 - b / n1) ** 2 for a, b in zip(u0, u1, strict=True)))
    return mean(distances)


def inverse_root(x: Matrix, shrinkage: float, eps: float) -> Array:
    """A^(-1/2), A = (1 - shrinkage) x^T x / n + (shrinkage + eps) I, of all d x d entries."""
    a = np.array(x)
    matrix = (1.0 - shrinkage) * a.T @ a / len(a) + (shrinkage + eps) * np.eye(a.shape[1])
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors @ np.diag(values**-0.5) @ vectors.T)


def agreement(x0: Matrix, x1: Matrix) -> float:
    """sum_i (1 - mean_k x0_ki x1_ki)^2."""
    total = 0.0
    for i in range(len(x0[0])):
        total += (1.0 - mean([a * b for a, b in zip(column(x0, i), column(x1, i), strict=True)])) ** 2
    return total


Whitening = tuple[Array, Array]


def zero_fcl(
    z0: Tensor, z1: Tensor, shrinkage: float = 0.1, eps: float = 1e-5, fixed: Whitening | None = None
) -> float:
    """Zhang et al. 2022 (Zero-CL), features; ``fixed`` are the two views' whitening matrices when they are given."""
    scores = [standardised(rows(z), eps) for z in (z0, z1)]
    matrices = fixed or tuple(inverse_root(x, shrinkage, eps) for x in scores)
    h0, h1 = ((np.array(x) @ matrix).tolist() for x, matrix in zip(scores, matrices, strict=True))
    return agreement(h0, h1)


def zero_icl(
    z0: Tensor, z1: Tensor, shrinkage: float = 0.1, eps: float = 1e-5, fixed: Whitening | None = None
) -> float:
    """Zhang et al. 2022 (Zero-CL), samples: the same with the matrices lying on their side."""
    return zero_fcl(z0.T, z1.T, shrinkage, eps, fixed)


def arb(z0: Tensor, z1: Tensor, groups: int = 1, eps: float = 1e-5, fixed: Whitening | None = None) -> float:
    """Zhang et al. 2022 (ARB), both directions; ``fixed`` are the bases of the two views when they are given."""
    x0, x1 = (standardised(rows(z), eps) for z in (z0, z1))
    b0, b1 = fixed or (base(x0, groups, eps), base(x1, groups, eps))
    return agreement(x0, b1.tolist()) + agreement(x1, b0.tolist())


def base(x: Matrix, groups: int, eps: float) -> Array:
    """x (x^T x / n + eps I)^(-1/2), group after group of columns."""
    width = len(x[0]) // groups
    parts = [[row[g * width : (g + 1) * width] for row in x] for g in range(groups)]
    return np.concatenate([np.array(part) @ inverse_root(part, 0.0, eps) for part in parts], axis=1)


def logdet(z0: Tensor, z1: Tensor, invariance: float = 25.0, decorrelation: float = 1.0, eps: float = 1e-4) -> float:
    """LogDet divergence from the eigenvalues of the D x D covariance: sum_i (l_i - ln l_i - 1) / D."""
    x0, x1 = rows(z0), rows(z1)
    loss = invariance * mean([(a - b) ** 2 for r, s in zip(x0, x1, strict=True) for a, b in zip(r, s, strict=True)])
    for x in (x0, x1):
        columns = transposed(x)
        matrix = [
            [covariance(a, b, 1) + (eps if i == j else 0.0) for j, b in enumerate(columns)]
            for i, a in enumerate(columns)
        ]
        for value in np.linalg.eigvalsh(np.array(matrix)):
            loss += decorrelation * (float(value) - math.log(value) - 1.0) / len(columns)
    return loss
