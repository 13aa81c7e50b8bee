"""What a published figure says, as statements that figures of ours can be held against. No torch.

A *claim* is a leaf of ``FORMS``: comparisons of figures, or of figures with numbers. Each comparison is decided by the
95 % interval of its difference over seeds, paired seed by seed, as a cell's seeds share their order of data.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sslmed_dist import registry
from sslmed_dist.printable import plural
from sslmed_dist.verbs.reproduce.seed_interval import interval

# With fewer seeds a difference is not called one.
SEEDS = 3
SHOWN, NOT_SHOWN = "shown", "not shown"
RULE = (
    f"Each claim is decided by the 95 % intervals (Student's t over seeds, paired by seed) of its differences: {SHOWN} "
    f"where all lie above the margin, {NOT_SHOWN} where one lies below it, else it cannot be told. Intervals are not "
    "corrected for their number."
)

Term = tuple[str, str] | float  # (row, metric), or a number
Seeds = Mapping[int, float]


class Figure(Protocol):
    """What of one figure of one cell a claim needs."""

    @property
    def row(self) -> str: ...
    @property
    def column(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def values(self) -> Seeds: ...


@dataclass(frozen=True)
class Comparison:
    """``greater`` is above ``lesser``, or at most ``margin`` below it."""

    lesser: Term
    greater: Term
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    """``text`` says it in a line. It holds where all of its ``comparisons`` do. ``columns``: for which columns it is
    made; None for all."""

    text: str
    comparisons: tuple[Comparison, ...]
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a column's figures show a claim: ``shown``, ``not shown``, or why that cannot be told. ``differences``
    are the comparisons in words."""

    column: str
    claim: str
    answer: str
    differences: tuple[str, ...]


def rising(metric: str, rows: Sequence[str], margin: float = 0.0, columns: Sequence[str] | None = None) -> Claim:
    """From each of the ``rows`` to the next the ``metric`` rises, or falls by at most ``margin``."""
    pairs = zip(rows, rows[1:], strict=False)
    comparisons = [Comparison((low, metric), (high, metric), margin) for low, high in pairs]
    return claim(f"{metric} rises over {', '.join(rows)}", comparisons, margin, columns)


def best(
    metric: str, row: str, others: Sequence[str], margin: float = 0.0, columns: Sequence[str] | None = None
) -> Claim:
    """The ``metric`` of the ``row`` is above that of each of the ``others``, or at most ``margin`` below."""
    comparisons = [Comparison((other, metric), (row, metric), margin) for other in others]
    return claim(f"{metric} of {row} above that of {', '.join(others)}", comparisons, margin, columns)


def between(metric: str, low: float, high: float, rows: Sequence[str], columns: Sequence[str] | None = None) -> Claim:
    """In each of the ``rows`` the ``metric`` lies between ``low`` and ``high``. ``ValueError`` where nothing can."""
    if not low < high:
        raise ValueError(f"low, high: expected low < high, got {low:g} and {high:g}")
    ends = [pair for row in rows for pair in (Comparison(low, (row, metric)), Comparison((row, metric), high))]
    return claim(f"{metric} of {', '.join(rows)} between {low:g} and {high:g}", ends, 0.0, columns)


def metrics_rising(metrics: Sequence[str], rows: Sequence[str], columns: Sequence[str] | None = None) -> Claim:
    """In each of the ``rows`` every one of the ``metrics`` is below the next."""
    pairs = list(zip(metrics, metrics[1:], strict=False))
    comparisons = [Comparison((row, low), (row, high)) for row in rows for low, high in pairs]
    return claim(f"{' below '.join(metrics)} in {', '.join(rows)}", comparisons, 0.0, columns)


def claim(text: str, comparisons: Sequence[Comparison], margin: float, columns: Sequence[str] | None) -> Claim:
    """A claim of these comparisons. ``ValueError`` for none, one of a figure with itself, no columns, or a margin below
    0."""
    if columns is not None and not columns:
        raise ValueError("columns: is empty, so nothing is claimed; leave it out for all columns")
    for it in comparisons:
        if it.lesser == it.greater:
            raise ValueError(
                f"{' '.join(map(str, it.lesser)) if isinstance(it.lesser, tuple) else it.lesser}: compared with itself"
            )
    if not comparisons or margin < 0:
        raise ValueError(f"expected something to compare and a margin >= 0, got {len(comparisons)} and {margin:g}")
    allowed = f", to within {margin:g}" if margin else ""
    return Claim(text + allowed, tuple(comparisons), None if columns is None else tuple(columns))


FORMS: Mapping[str, Callable[..., Claim]] = {
    "rising": rising,
    "best": best,
    "between": between,
    "metrics_rising": metrics_rising,
}


def read(path: Path, leaves: Any, metrics: Mapping[str, Sequence[str]], rows: Sequence[str]) -> tuple[Claim, ...]:
    """The claims that the file ``path`` makes. ``metrics`` are the names of each column's. ``ValueError`` names the
    claim, and what of it the table does not have."""
    if not isinstance(leaves, list) or not leaves:
        raise ValueError(f"{path}: claims: expected a list of claims, got {leaves!r}")
    found = []
    for number, leaf in enumerate(leaves):
        where = f"{path}: claims.{number}"
        registry.check(FORMS, leaf, where)
        try:
            made: Claim = registry.build(FORMS, leaf, where)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        for column in made.columns if made.columns is not None else metrics:
            require(where, "column", column, metrics)
            for row, metric in terms(made):
                require(where, "row", row, rows)
                require(where, "metric", metric, metrics[column])
        found.append(made)
    return tuple(found)


def terms(claim: Claim) -> list[tuple[str, str]]:
    """The figures, row and metric, that a claim compares, in order."""
    both = (term for it in claim.comparisons for term in (it.lesser, it.greater))
    return [term for term in both if isinstance(term, tuple)]


def require(where: str, kind: str, name: str, allowed: Any) -> None:
    """``ValueError`` unless the table has a ``kind`` of this ``name``."""
    if name not in allowed:
        raise ValueError(f"{where}: {kind} {name!r}: unknown; allowed: {', '.join(allowed)}")


def verdicts(claims: Sequence[Claim], figures: Sequence[Figure]) -> list[Verdict]:
    """What the ``figures`` say of each claim, column by column, for columns in which anything was measured."""
    measured = {(it.row, it.column, it.metric): it.values for it in figures}
    columns = dict.fromkeys(it.column for it in figures if it.values)
    return [
        decided(claim, column, measured)
        for column in columns
        for claim in claims
        if claim.columns is None or column in claim.columns
    ]


def decided(claim: Claim, column: str, measured: Mapping[tuple[str, str, str], Seeds]) -> Verdict:
    """The verdict on one claim from the figures of one column."""
    values = [differences(it, column, measured) for it in claim.comparisons]
    ends = [interval(it) if len(it) >= SEEDS else None for it in values]
    answers = [answer(pair, it.margin) for pair, it in zip(ends, claim.comparisons, strict=True)]
    triples = zip(claim.comparisons, values, ends, strict=True)
    words = tuple(f"{label(it)}: {said(each, pair)}" for it, each, pair in triples if each)
    missing = dict.fromkeys(row for row, metric in terms(claim) if not measured.get((row, column, metric)))
    seeds = min(map(len, values))
    if NOT_SHOWN in answers:
        found = NOT_SHOWN
    elif missing:
        found = f"cannot be told: not run: {', '.join(missing)}"
    elif all(it == SHOWN for it in answers):
        found = SHOWN
    else:
        found = f"cannot be told at {plural(seeds, 'seed')}"
    return Verdict(column, claim.text, found, words)


def differences(it: Comparison, column: str, measured: Mapping[tuple[str, str, str], Seeds]) -> list[float]:
    """Greater minus lesser, one value for each seed that has both."""
    low, high = (
        measured.get((term[0], column, term[1]), {}) if isinstance(term, tuple) else term
        for term in (it.lesser, it.greater)
    )
    seeds = set.intersection(*(set(side) for side in (low, high) if isinstance(side, Mapping)))
    return [of_seed(high, seed) - of_seed(low, seed) for seed in sorted(seeds)]


def of_seed(side: Seeds | float, seed: int) -> float:
    """One side of a comparison at one seed."""
    return side[seed] if isinstance(side, Mapping) else side


def answer(ends: tuple[float, float] | None, margin: float) -> str | None:
    """Shown, not shown, or None where the interval leaves it open or there is none."""
    if ends is None:
        return None
    low, high = ends
    return SHOWN if low > -margin else NOT_SHOWN if high < -margin else None


def said(values: Sequence[float], ends: tuple[float, float] | None) -> str:
    """The mean difference and its interval, or how few seeds there are."""
    shown = f"({len(values)} seed(s))" if ends is None else f"({ends[0]:+.3g} to {ends[1]:+.3g})"
    return f"{statistics.fmean(values):+.3g} {shown}"


def label(it: Comparison) -> str:
    """What is compared: rows of one metric, metrics of one row, or a figure with a number."""
    sides = (it.greater, it.lesser)
    within = all(isinstance(side, tuple) and side[0] == sides[0][0] for side in sides)  # type: ignore[index]
    words = [f"{side:g}" if not isinstance(side, tuple) else " ".join(side) if within else side[0] for side in sides]
    return " - ".join(words)
