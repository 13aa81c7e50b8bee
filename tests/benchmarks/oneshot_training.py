"""Ways to train a one-shot segmentation encoder, side by side on the held-out patients of inner folds.

    python -m tests.benchmarks.oneshot_training before=RUN,RUN wider=RUN,RUN,RUN,RUN --data PATH [--keep FOLDER]

A way is a name and its runs: for each inner fold one run per label set. Every ordered pair of an inner fold's held-out
patients is scored with the range of slices known (``dice`` of ``sslmed evaluate`` with ``supports: all``), as it comes
and tidied. Beside each mean stand 5-95 % of a bootstrap over query patients, and the mean paired difference to the
first way over the folds that both have. Runs that were trained without ``data.inner`` are refused: ways are chosen on
inner folds, and no mask of a fold's test part has a share in it.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.downstream.oneshot.protocol import overlap, true_range
from sslmed_dist.training import pretrained
from tests.benchmarks.oneshot_pairs import Patients, reader

DRAWS = 2000  # of the bootstrap
MASKS = ("as they come", "tidied")

Key = tuple[int, int, str, int]  # inner fold, query, organ, support
Scores = Mapping[Key, tuple[float, float]]  # Dice in per cent of MASKS


def scores_of(runs: Sequence[Path], data: str, keep: Path | None) -> Scores:
    """Dice of every ordered pair of held-out patients with every organ of the runs. ``ValueError`` for a run that was
    trained without an inner fold."""
    by_inner: dict[int, list[Path]] = defaultdict(list)
    for run in runs:
        inner = pretrained.load(run).settings.data.get("inner")
        if inner is None:
            raise ValueError(f"{run}: was trained without data.inner; ways to train are chosen on inner folds")
        by_inner[inner].append(run)
    found: dict[Key, tuple[float, float]] = {}
    for inner, own in by_inner.items():
        patients = Patients(own, data, "test", keep)
        each = [dice_of(patients, tidy=tidy) for tidy in (False, True)]
        found |= {(inner, *key): (each[0][key], each[1][key]) for key in each[0]}
    return found


def dice_of(patients: Patients, *, tidy: bool) -> dict[tuple[int, str, int], float]:
    """Dice in per cent by (query, organ, support)."""
    patients.segmenter, patients.learnt = reader(tidy), {}
    found = {}
    for query in patients.all:
        for organ in patients.values:
            truth = patients.mask(query, organ)
            span = true_range(truth)
            assert span is not None, "every organ is on every scan of the set"
            for support in patients.all:
                if support is not query:
                    mask = patients.find(support, query, organ).mask(*span)
                    found[query.number, organ, support.number] = 100 * (overlap(mask, truth).dice or 0.0)
    return found


def interval(values: Mapping[Key, float]) -> tuple[float, float]:
    """5 and 95 % of the mean, the query patients drawn anew with what was found on them."""
    of_patient: dict[tuple[int, int], list[float]] = defaultdict(list)
    for (inner, query, _, _), value in values.items():
        of_patient[inner, query].append(value)
    means = torch.tensor([mean(each) for each in of_patient.values()], dtype=torch.float64)
    table: Tensor = randomness.uniform(0, torch.arange(DRAWS * len(means))).view(DRAWS, len(means))
    drawn = means[(table * len(means)).long()].mean(dim=1)
    low, high = drawn.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return low, high


def lines(name: str, scores: Scores, first: Scores) -> list[str]:
    """The rows of one way: organs, mean and interval, and the paired difference to the ``first`` way."""
    rows = []
    inner = ", ".join(map(str, sorted({key[0] for key in scores})))
    for number, masks in enumerate(MASKS):
        values = {key: each[number] for key, each in scores.items()}
        organs = list(dict.fromkeys(key[2] for key in values))
        figures = [f"{organ} {mean([v for k, v in values.items() if k[2] == organ]):.1f}" for organ in organs]
        low, high = interval(values)
        row = (
            f"| {name} | {inner} | {masks} | {', '.join(figures)} | {mean(values.values()):.1f} [{low:.1f}, {high:.1f}]"
        )
        gain = {key: value - first[key][number] for key, value in values.items() if key in first}
        if gain:
            low, high = interval(gain)
            row += f" | {mean(gain.values()):+.1f} [{low:+.1f}, {high:+.1f}] |"
        else:
            row += " | no fold in common |"
        rows.append(row)
    return rows


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("ways", nargs="+", metavar="NAME=RUN,RUN")
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--keep", type=Path, help="a folder for feature maps, computed once")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    print("| way | inner folds | masks | Dice by organ, % | mean, 5-95 % over query patients | to the first way |")
    print("| --- | --- | --- | --- | --- | --- |")
    first: Scores | None = None
    for way in options.ways:
        name, _, runs = way.partition("=")
        if not runs:
            arguments.error(f"expected NAME=RUN,RUN, got {way!r}")
        scores = scores_of([Path(run) for run in runs.split(",")], options.data, options.keep)
        first = scores if first is None else first
        print("\n".join(lines(name, scores, first)), flush=True)


if __name__ == "__main__":
    main()
