"""Arrangements of the patches of a puzzle: the classes of the jigsaw pretext task (thesis, Alg. 3.1 SETARR).

An arrangement is a permutation p of the cells 0 ... G^2 - 1, counted row by row: place j of the jumbled list shows cell
p[j]. The list of classes is a pure function of its arguments, so sites and workers agree on it by the seed alone.
"""

import hashlib
import io
import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.data.npz import read_archive
from sslmed_dist.user_cache import user_cache

VERSION = 1  # of the walk: to be raised by a change that changes what it keeps
CHUNK = 5040  # permutations that are looked at together
MOST_CELLS = 9  # 9! permutations can be enumerated, 16! (of a grid of 4) cannot
LARGEST_GRID, MOST_CLASSES = 8, 100_000
Permutations = np.ndarray[tuple[int, ...], np.dtype[np.int8]]  # (P, cells)


def arrangements(
    rule: Literal["setarr", "uniform"] = "setarr", grid: int = 3, classes: int = 1000, seed: int = 0
) -> Tensor:
    """int64 (classes, grid^2): one arrangement a row; the first one is the identity (thesis, Alg. 3.1 SETARR).

    ``setarr``: all kept permutations differ from each other in more than floor(cells / 2) places (more than 4 of 9);
    the others are drawn from them uniformly, without replacement. Of a grid of 3 exactly 1,887 are kept.
    ``uniform``: drawn from all permutations, without replacement.
    ``ValueError``: a grid that ``setarr`` cannot walk, more classes than there are, fewer than 2.
    """
    if not 2 <= grid <= LARGEST_GRID:
        raise ValueError(f"grid: expected 2 to {LARGEST_GRID} cells a side, got {grid}")
    cells = grid * grid
    if rule == "setarr" and cells > MOST_CELLS:
        raise ValueError(
            f"grid: setarr looks at every permutation, and {cells}! = {math.factorial(cells):.1e} are too many; "
            "allowed: grid 2 or 3, or rule: uniform"
        )
    kept = kept_arrangements(grid) if rule == "setarr" else None
    most = min(MOST_CLASSES, math.factorial(min(cells, 12)) if kept is None else len(kept))
    if not 2 <= classes <= most:
        raise ValueError(f"classes: expected 2 to {most} arrangements (rule {rule}, grid {grid}), got {classes}")
    if kept is not None:
        others = torch.from_numpy(kept[1:].astype(np.int64))  # row 0 of the walk is the identity
        drawn = others[randomness.order(torch.arange(len(others)), seed, "arrangements")[: classes - 1]]
    else:
        drawn = distinct(cells, classes - 1, seed)
    return torch.cat([torch.arange(cells)[None], drawn])


def distinct(cells: int, count: int, seed: int) -> Tensor:
    """int64 (count, cells): different permutations other than the identity, drawn uniformly without enumerating them.
    A permutation that was drawn before is passed over."""
    drawn: dict[tuple[int, ...], None] = {}  # in the order of the draws
    identity = tuple(range(cells))
    for start in itertools.count(0, 4096):
        numbers = torch.arange(start, start + 4096)[:, None]
        keys = randomness.uniform(seed, "arrangements", "uniform", numbers, torch.arange(cells))  # (4096, cells)
        for row in keys.argsort(dim=1, stable=True).tolist():
            if len(drawn) == count:
                return torch.tensor(list(drawn), dtype=torch.int64).view(count, cells)
            if tuple(row) != identity:
                drawn[tuple(row)] = None
    raise AssertionError("the loop has no end")


def kept_arrangements(grid: int) -> Permutations:
    """``setarr`` of a grid, from the user's cache folder where it was computed before. A file there that is damaged
    is computed anew; a folder that cannot be written costs the seconds of the walk in every run."""
    cells = grid * grid
    threshold = cells // 2
    named = hashlib.blake2b(f"setarr {VERSION} {grid} {threshold}".encode(), digest_size=16).hexdigest()
    path = user_cache("arrangements") / f"{named}.npz"
    stored = read_kept(path, cells)
    if stored is not None:
        return stored
    kept = setarr(cells, threshold)
    stream = io.BytesIO()
    np.savez_compressed(stream, kept=kept, digest=np.frombuffer(digest(kept), dtype=np.uint8))
    with suppress(ValueError):  # a cache: what cannot be kept is computed again
        write_atomically(path, stream.getvalue())
    return kept


def digest(kept: Permutations) -> bytes:
    """What a cache file's content is known by."""
    return hashlib.blake2b(np.ascontiguousarray(kept).tobytes(), digest_size=16).digest()


def read_kept(path: Path, cells: int) -> Permutations | None:
    """The permutations of a cache file; None where there is none, or one that does not hold what it says."""
    try:
        archive = read_archive(path, ("kept", "digest"))
    except ValueError:
        return None
    kept: Permutations = archive["kept"]
    whole = kept.dtype == np.int8 and kept.ndim == 2 and kept.shape[1] == cells and len(kept) > 0
    return kept if whole and archive["digest"].tobytes() == digest(kept) else None


def setarr(cells: int, threshold: int) -> Permutations:
    """Alg. 3.1: walk all permutations in lexicographic order and keep those whose Hamming distance to every kept one
    is greater than ``threshold``. int8 (kept, cells).

    Two permutations that differ in at most t places agree in ``cells`` - t places at least. So each kept one marks, for
    every choice of that many places, the values it has there; a candidate with any marked choice is dropped. A chunk
    of candidates is held against the marks of all earlier ones together, and within the chunk against each pick.
    """
    choices = [np.array(c) for c in itertools.combinations(range(cells), cells - threshold)]
    powers = cells ** np.arange(cells - threshold)  # the values at the chosen places, read as one number
    marks = np.zeros((len(choices), cells ** (cells - threshold)), dtype=bool)
    kept: list[Permutations] = []
    for candidates in chunks(all_permutations(cells)):
        for mark, choice in zip(marks, choices, strict=True):
            candidates = candidates[~mark[candidates[:, choice] @ powers]]
        while len(candidates):
            pick = candidates[0]
            kept.append(pick)
            for mark, choice in zip(marks, choices, strict=True):
                mark[pick[choice] @ powers] = True
            candidates = candidates[(candidates != pick).sum(1) > threshold]
    return np.stack(kept)


def chunks(rows: Permutations) -> Iterator[Any]:
    """``CHUNK`` rows at a time."""
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def all_permutations(cells: int) -> Permutations:
    """int8 (cells!, cells), in lexicographic order."""
    rows = np.zeros((1, 0), dtype=np.int8)
    for size in range(1, cells + 1):
        # First value v, then every permutation of the other values: those of size - 1, with values >= v raised by one.
        parts = [np.concatenate([np.full((len(rows), 1), v, np.int8), rows + (rows >= v)], 1) for v in range(size)]
        rows = np.concatenate(parts).astype(np.int8)
    return rows
