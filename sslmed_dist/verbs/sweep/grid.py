"""Which trials a sweep has: the product of the values of each key, or some of it."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sslmed_dist import randomness
from sslmed_dist.printable import plural

OPEN, CLOSE = "([{", ")]}"
MOST_TRIALS = 10_000


@dataclass(frozen=True)
class Trial:
    """One trial: the overrides of the swept keys, in the order of the command line. ``name`` is that of its run: the
    same values have the same name in any sweep, so a larger grid goes on with what is there."""

    choices: tuple[str, ...]

    @property
    def name(self) -> str:
        """``trial-`` and a hash of the choices, in any order."""
        return f"trial-{hashlib.sha256(repr(sorted(self.choices)).encode()).hexdigest()[:10]}"

    def __str__(self) -> str:
        return " ".join(self.choices)


def values_of(text: str) -> list[str]:
    """The values of ``a,b,c``; a comma in brackets or quotes parts nothing."""
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in OPEN) - (letter in CLOSE) if not quote else 0
        if letter == "," and depth == 0 and not quote:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


def canonical(tree: Mapping[str, Any]) -> str:
    """A text that two configuration trees share if their values are the same: 2 is 2.0, and true is not 1."""

    def number(digits: str) -> float | str:
        return float(digits) if float(digits) == int(digits) else digits  # a seed may be longer than a float

    return json.dumps(json.loads(json.dumps(tree), parse_int=number), sort_keys=True)


def parted(words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """(the keys with several values, the other overrides as they are). ``ValueError``: no key has several values, a
    value is empty or comes twice, or more than ``MOST_TRIALS`` trials."""
    swept: dict[str, list[str]] = {}
    fixed, count = [], 1
    for word in words:
        key, _, text = word.partition("=")
        values = values_of(text)
        if len(values) == 1:
            fixed.append(word)
            continue
        if "" in values or len(set(values)) < len(values):
            raise ValueError(f"{key}: expected values that differ, such as {key}=a,b,c, got {text!r}")
        if key in swept:
            raise ValueError(f"{key}: stands on the command line twice; give it once")
        swept[key] = values
        count *= len(values)
    if not swept:
        raise ValueError("sweep: no key has several values; expected KEY=A,B,C, such as optim.lr=0.03,0.06")
    if count > MOST_TRIALS:
        raise ValueError(f"sweep: {plural(count, 'trial')}; allowed: at most {MOST_TRIALS}")
    return swept, fixed


def trials_of(swept: dict[str, list[str]], count: int | None, seed: int) -> list[Trial]:
    """All trials in the order of the grid; with ``count`` so many of them, drawn without replacement by ``seed``, the
    first ones being the same for any ``count``. ``ValueError`` for a ``count`` that the grid does not have."""
    pairs = [[f"{key}={value}" for value in values] for key, values in swept.items()]
    grid = [Trial(choices) for choices in itertools.product(*pairs)]
    if count is None:
        return grid
    if not 1 <= count <= len(grid):
        raise ValueError(f"--trials: expected 1 to {len(grid)}, the size of the grid, got {count}")
    return [grid[position] for position in randomness.order(torch.arange(len(grid)), seed, "sweep").tolist()[:count]]
