"""The tables of federated strategies with their floors and paired differences.

    python -m tests.benchmarks.strategies runs/strategies runs/strategies-byol [--data pneumoniamnist.npz]

The folders are those that ``sslmed reproduce`` made of the tables in ``configs/tables``. Every encoder is measured
again: at each site on the site's own held-out samples, then over those of all sites. Each figure is that of the first
seed with its 95 % bootstrap interval over samples, or patients where they are known; behind it stand mean and standard
deviation over the finished seeds. The difference to the table's first row is paired, over the same samples. Below the
strategies stand the other arms of that row. Prints Markdown.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sslmed_dist import config
from sslmed_dist.downstream import Predictions, metrics, pooled
from sslmed_dist.downstream.metrics import Interval, Statistic
from sslmed_dist.federation.sites import federated_section
from sslmed_dist.verbs import federate
from sslmed_dist.verbs.evaluate import arm_predictions
from sslmed_dist.verbs.reproduce import read_table
from sslmed_dist.verbs.reproduce.table import Table

TABLES = Path(__file__).parents[2] / "configs" / "tables"
MEASURES: dict[str, tuple[str, Statistic]] = {
    "linear AUC x 100": ("linear", metrics.binary_auc),
    "200-NN, %": ("knn", metrics.accuracy),
}
LOW, HIGH = 2.5, 97.5
By = dict[str, Predictions]  # by evaluator, over the samples of all sites


@dataclass(frozen=True)
class Line:
    """One encoder: what it is called, and its predictions by seed."""

    name: str
    seeds: Mapping[int, By]

    @property
    def first(self) -> By:
        """Those of the first seed."""
        return self.seeds[min(self.seeds)]


def measured(folder: Path, data: Path | None) -> dict[str, By]:
    """By arm the predictions over all sites of the finished federation in ``folder``; nothing where it is none."""
    if not federate.results(folder).is_file():
        return {}
    settings = config.load(folder / "config.yaml")
    if data is not None:
        settings = config.replace(settings, data={"root": str(data)})
    settings = config.replace(settings, run={"dir": str(folder.parent), "name": folder.name})
    settings, sites = federate.prepare(settings)
    dataset = federate.evaluation_data(settings, sites)
    parts = {site.name: federate.parts_of(site, dataset, not settings.evaluate.data) for site in sites}
    arms: dict[str, By] = {}
    for arm in ("federated", *federated_section(settings).compare):
        own = [
            arm_predictions(settings, federate.encoder_of(arm, site.name, settings), dataset, parts[site.name], arm)
            for site in sites
        ]
        arms[arm] = pooled(own)
    return arms


def lines_of(table: Table, runs: Path, data: Path | None) -> Iterator[Line | str]:
    """The table's rows, then the other arms of its first row. Of a row without a finished seed only the name."""
    others: dict[str, dict[int, By]] = {}
    for row in table.rows:
        seeds: dict[int, By] = {}
        for folder in sorted((runs / row).glob("*/seed-*")):
            arms = measured(folder, data)
            number = int(folder.name.removeprefix("seed-"))
            if arms:
                seeds[number] = arms.pop("federated")
            for arm, own in arms.items():
                others.setdefault(arm, {})[number] = own
        yield Line(row, seeds) if seeds else row
    for arm, seeds in others.items():
        yield Line(arm, seeds)


def cell(value: float | None, interval: Interval) -> str:
    """``value [low, high]`` times 100."""
    numbers = [float("nan") if number is None else 100 * number for number in (value, interval.low, interval.high)]
    return "{:.1f} [{:.1f}, {:.1f}]".format(*numbers)


def figures(line: Line, against: By) -> Iterator[str]:
    """For each measure: the first seed's figure with mean and standard deviation over the seeds, and the difference."""
    for evaluator, statistic in MEASURES.values():
        own, other = line.first[evaluator], against[evaluator]
        arrays = (own.scores, own.labels)
        interval = metrics.bootstrap(statistic, arrays, own.groups, seed=0, low=LOW, high=HIGH)
        text = cell(metrics.point(statistic, arrays), interval)
        if len(line.seeds) > 1:
            of_seeds = [by[evaluator] for by in line.seeds.values()]
            values = [100 * float(metrics.point(statistic, (p.scores, p.labels)) or "nan") for p in of_seeds]
            text += f"; {statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
        yield text
        if own is other:
            yield ""
            continue
        assert torch.equal(own.index, other.index)
        yield cell(
            *metrics.difference(statistic, own.scores, other.scores, own.labels, own.groups, seed=0, low=LOW, high=HIGH)
        )


def markdown(table: Table, runs: Path, data: Path | None) -> Iterator[str]:
    """The table. ``ValueError`` where its first row is not finished."""
    lines = list(lines_of(table, runs, data))
    first = lines[0]
    if isinstance(first, str):
        raise ValueError(f"{runs}: {first}: not finished; the others are measured beside it")
    yield f"{table.title}; {len(first.first['knn'].labels)} held-out samples\n"
    heads = [head for measure in MEASURES for head in (measure, f"minus {first.name}")]
    yield f"| {table.name} | seeds | {' | '.join(heads)} |"
    yield "| --- " * (len(heads) + 2) + "|"
    for line in lines:
        if isinstance(line, str):
            yield f"| {line} | not run |" + " |" * len(heads)
        else:
            seeds = ", ".join(map(str, sorted(line.seeds)))
            yield f"| {line.name} | {seeds} | {' | '.join(figures(line, first.seeds[min(line.seeds)]))} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, help="default: where the runs read it")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for runs in asked.runs:
        table = read_table.load(TABLES / f"{runs.absolute().name}.yaml")
        print("\n".join(markdown(table, runs, asked.data)) + "\n")


if __name__ == "__main__":
    main()
