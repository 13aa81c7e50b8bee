"""Calibrate and test the figure of ``downstream.oneshot.reliability``.

    python -m tests.benchmarks.oneshot_reliability RUN RUN --fit RUN RUN --data PATH [--keep FOLDER]

Runs, one for each label set of each fold, and two of an inner split of fold 0's training patients (``data.inner``). The
regression is fitted to pairs whose query the inner runs were not trained on, with every other training patient as the
support, and printed as it stands in the module: on patients that an encoder has seen its head is surer of itself. It is
tested on all ordered pairs of each fold's held-out patients x the organs, with the module's own constants: AUC for
"Dice < 0.5" with a bootstrap over patients, and what the threshold does; of several folds also of all pairs together.
Fold 0 alone has patients that had no part in the fit: with encoders of their own, those of the other folds were fitted
to as queries (10, 13, 15, 19) or as supports. ``--cases FOLDER`` takes what ``oneshot_folds`` has kept there: the
protocol's pairs alone, one support a fold, and nothing is computed. For the fitted pairs the same with constants
that are fitted anew without both patients of a pair.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.downstream.oneshot.reliability import MOST, RETURNS, SPEAKS, THRESHOLD, Signs
from sslmed_dist.training import pretrained
from tests.benchmarks.oneshot_folds import TIDY, TRAINED, code
from tests.benchmarks.oneshot_pairs import Pair, Patients

GOOD = 0.5  # the Dice that a mask should have
RIDGE = 1.0  # weight of the sum of squares of the coefficients
DRAWS = 2000
NAMES = [field.name for field in fields(Signs)]


def table(pairs: Sequence[Pair]) -> Tensor:
    """The signs (N, 5) of pairs with a mask."""
    return torch.tensor([list(asdict(pair.signs).values()) for pair in pairs if pair.signs], dtype=torch.float64)


def standard(signs: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    """The signs (N, 5) as the figure counts them: in deviations in favour of the mask, at most ``MOST``."""
    directions = torch.tensor([SPEAKS[name] for name in NAMES], dtype=torch.float64)
    return (directions * (signs - means) / deviations).clamp_max(MOST)


def fit(signs: Tensor, good: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(means, deviations, coefficients with the constant last) of a logistic regression, by Newton's method. A sign
    that would count against what it speaks for, for want of data, has no say: it is left out and the rest fitted
    anew."""
    means, deviations = signs.mean(0), signs.std(0)
    rows = torch.cat([standard(signs, means, deviations), torch.ones(len(signs), 1, dtype=torch.float64)], 1)
    heard = torch.ones(rows.shape[1], dtype=torch.bool)
    while True:
        weights = torch.zeros(rows.shape[1], dtype=torch.float64)
        weights[heard] = newton(rows[:, heard], good)
        if not (weights[:-1] < 0).any():
            return means, deviations, weights
        heard[:-1] &= weights[:-1] >= 0


def newton(rows: Tensor, good: Tensor) -> Tensor:
    """The coefficients of a logistic regression; the last column is the constant's, which is not held small."""
    penalty = RIDGE * torch.diag(torch.tensor([1.0] * (rows.shape[1] - 1) + [0.0], dtype=torch.float64))
    weights = torch.zeros(rows.shape[1], dtype=torch.float64)
    for _ in range(50):
        chance = (rows @ weights).sigmoid()
        slope = rows.T @ (chance - good.double()) + penalty @ weights
        curve = rows.T @ (rows * (chance * (1 - chance))[:, None]) + penalty
        weights = weights - torch.linalg.solve(curve, slope)
    return weights


def apply(fitted: tuple[Tensor, Tensor, Tensor], signs: Tensor) -> Tensor:
    """The figure of each row."""
    means, deviations, weights = fitted
    chance = (standard(signs, means, deviations) @ weights[:-1] + weights[-1]).sigmoid()
    cycle = signs[:, NAMES.index("cycle")]
    return torch.where(cycle < RETURNS, torch.minimum(chance, cycle), chance)


def auc(figure: Tensor, bad: Tensor, weights: Tensor) -> float:
    """The weighted chance that a bad mask has the lower figure of two; nan without both kinds."""
    low, high = figure[bad][:, None], figure[~bad][None]
    both = weights[bad][:, None] * weights[~bad][None]
    if not both.sum() > 0:
        return float("nan")
    return float((both * ((low < high).double() + 0.5 * (low == high).double())).sum() / both.sum())


def interval(pairs: Sequence[Pair], measure: Callable[[Tensor], float]) -> str:
    """Value and 5-95 % interval: patients are drawn anew, and a pair counts as often as both of its patients do."""
    numbers = sorted({pair.query for pair in pairs} | {pair.support for pair in pairs})
    place = {number: index for index, number in enumerate(numbers)}
    ends = torch.tensor([(place[pair.support], place[pair.query]) for pair in pairs])
    values = []
    for draw in range(DRAWS):
        picked = (randomness.uniform(draw, torch.arange(len(numbers))) * len(numbers)).long()
        counts = torch.bincount(picked, minlength=len(numbers)).double()
        values.append(measure(counts[ends[:, 0]] * counts[ends[:, 1]]))
    drawn = torch.tensor(values)
    drawn = drawn[~drawn.isnan()]
    if not len(drawn):
        return "undefined: no failure, or nothing else"
    low, high = torch.quantile(drawn, torch.tensor([0.05, 0.95], dtype=drawn.dtype)).tolist()
    undefined = f", undefined in {DRAWS - len(drawn)} of {DRAWS} draws" if len(drawn) < DRAWS else ""
    return f"{measure(torch.ones(len(pairs), dtype=torch.float64)):.3f} [{low:.3f}, {high:.3f}]{undefined}"


def show(title: str, pairs: Sequence[Pair], figure: Tensor) -> None:
    """AUC, number of failures and what the threshold does."""
    bad = torch.tensor([pair.dice < GOOD for pair in pairs])
    doubted = figure < THRESHOLD
    print(f"{title}: {len(pairs)} masks of {len({pair.query for pair in pairs})} patients, {int(bad.sum())} failures")
    print("  AUC", interval(pairs, lambda weights: auc(figure, bad, weights)))
    print(
        f"  below {THRESHOLD}: {int(doubted.sum())}; failures among them {int((doubted & bad).sum())}, missed", end=" "
    )
    print(int((~doubted & bad).sum()))
    dice = torch.tensor([pair.dice for pair in pairs])
    oracle = torch.tensor([pair.oracle for pair in pairs])
    print(f"  mean Dice {dice.mean():.3f}, with the true range {oracle.mean():.3f}", end="; ")
    print(f"where trusted {dice[~doubted].mean():.3f}, where not {dice[doubted].mean():.3f}")
    if len(bad.unique()) == 2 and all(pair.signs for pair in pairs):
        one = torch.ones(len(pairs), dtype=torch.float64)
        signs = table(pairs)
        each = {name: auc(signs[:, i], bad, one) for i, name in enumerate(NAMES)}
        print("  AUC of each sign:", ", ".join(f"{name} {max(value, 1 - value):.3f}" for name, value in each.items()))
    for pair, value in sorted(zip(pairs, figure.tolist(), strict=True), key=lambda entry: entry[1]):
        if pair.dice < GOOD and len(pairs) < 100:
            where = f"{pair.organ}, support {pair.support}, query {pair.query}"
            print(f"  failure: {where}: Dice {pair.dice:.2f} (true range {pair.oracle:.2f}), figure {value:.2f}")
    for organ in dict.fromkeys(pair.organ for pair in pairs):
        own = torch.tensor([pair.organ == organ for pair in pairs])
        print(f"  {organ}: Dice {dice[own].mean():.3f}, failures {int((bad & own).sum())} of {int(own.sum())}")


def left_out(pairs: Sequence[Pair]) -> Tensor:
    """The figure of every pair, fitted to the pairs without both of its patients."""
    signs, good = table(pairs), torch.tensor([pair.dice >= GOOD for pair in pairs])
    figures = torch.empty(len(pairs), dtype=torch.float64)
    for ends in {(pair.support, pair.query) for pair in pairs}:
        own = torch.tensor([(pair.support, pair.query) == ends for pair in pairs])
        others = torch.tensor([not {pair.support, pair.query} & set(ends) for pair in pairs])
        figures[own] = apply(fit(signs[others], good[others]), signs[own])
    return figures


def held_out(runs: Sequence[Path], data: str, keep: Path | None) -> list[Pair]:
    """All ordered pairs of the held-out patients of one fold's runs; with ``keep`` kept there by the checkpoints and by
    the code, so that folds are measured one after another."""
    name = sha256("".join([code(), *(pretrained.load(run).sha256 for run in runs)]).encode()).hexdigest()[:12]
    file = None if keep is None else keep / f"pairs-{name}.json"
    if file is None or not file.exists():
        pairs = list(Patients(runs, data, "test", keep).pairs())
        if file is None:
            return pairs
        file.write_text(json.dumps([asdict(pair) for pair in pairs]))
    stored = json.loads(file.read_text())
    return [Pair(**{**pair, "signs": pair["signs"] and Signs(**pair["signs"])}) for pair in stored]


def protocol_pairs(folder: Path) -> dict[str, tuple[list[Pair], Tensor]]:
    """The tidied pairs of every fold that ``oneshot_folds`` has kept in a folder, and their figures as they were
    given; where it has several of one fold and organ, of other code, say, the newest."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("fold-*.json"), key=lambda file: file.stat().st_mtime):
        kept = json.loads(file.read_text())
        for organ in kept["organs"]:
            cases = [case for case in kept["cases"][f"{TRAINED} | {TIDY}"] if case["organ"] == organ]
            found[int(file.name.split("-")[1]), organ] = cases
    if not found:
        raise ValueError(f"{folder}: holds nothing that oneshot_folds has kept")
    rows = {}
    for fold in sorted({fold for fold, _ in found}):
        cases = [case for (of, _), own in found.items() if of == fold for case in own]
        pairs = [Pair(c["support"], c["query"], c["organ"], c["dice_whole"], c["dice"], None, None) for c in cases]
        rows[f"fold {fold}"] = pairs, torch.tensor([case["reliability"] for case in cases], dtype=torch.float64)
    return rows


def by_fold(runs: Sequence[Path]) -> dict[int, list[Path]]:
    """The runs of each fold. ``ValueError`` for one that is not at its end or has no fold."""
    found: dict[int, list[Path]] = {}
    for run in runs:
        start = pretrained.load(run)
        fold = start.settings.data.get("fold")
        if start.unfinished or fold is None or start.settings.data.get("inner") is not None:
            raise ValueError(f"{run}: expected the finished run of a fold, got fold {fold} {start.unfinished}")
        found.setdefault(fold, []).append(run)
    return dict(sorted(found.items()))


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("runs", nargs="*", type=Path)
    arguments.add_argument("--data")
    arguments.add_argument("--keep", type=Path, help="a folder for feature maps, computed once")
    arguments.add_argument("--fit", nargs="+", type=Path, help="runs of an inner split (data.inner) to fit to")
    arguments.add_argument("--cases", type=Path, help="a folder in which oneshot_folds has kept what runs gave")
    options = arguments.parse_args()
    if not options.data and (options.fit or options.runs):
        arguments.error("--data: is needed with runs")
    if options.fit:
        pairs = [pair for pair in Patients(options.fit, options.data, "both", options.keep).pairs() if pair.signs]
        means, deviations, weights = fit(table(pairs), torch.tensor([pair.dice >= GOOD for pair in pairs]))
        for name, *values in zip(NAMES, means.tolist(), deviations.tolist(), weights.tolist(), strict=False):
            print(f'    "{name}": ({", ".join(f"{value:.3f}" for value in values)}),')
        print(f"CONSTANT = {float(weights[-1]):.3f}")
        show("inner held-out patients, fitted without both", pairs, left_out(pairs))
    rows = protocol_pairs(options.cases) if options.cases else {}
    for fold, runs in by_fold(options.runs).items():
        pairs = held_out(runs, options.data, options.keep)
        figures = [pair.signs.figure if pair.signs else 0.0 for pair in pairs]
        rows[f"fold {fold}"] = pairs, torch.tensor(figures, dtype=torch.float64)
    if len(rows) > 1:
        every = [pair for pairs, _ in rows.values() for pair in pairs]
        rows[f"all of {', '.join(rows)}"] = every, torch.cat([figure for _, figure in rows.values()])
    for name, (pairs, figure) in rows.items():
        show(f"{name}, held-out patients, constants as shipped", pairs, figure)


if __name__ == "__main__":
    main()
