"""Does the recipe that ``sslmed init`` writes beat a random encoder? Written, trained untouched, measured.

``python -m tests.benchmarks.written_recipes OUT DATA [DATA ...] [--minutes 5] [--seeds 3]`` prints a line for each
data set, seed and protocol: the encoder, the random encoder of the same shape, and their difference with the paired
bootstrap interval, 2.5 to 97.5 %, over images or patients. What is there already is not trained again.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sslmed_dist import config
from sslmed_dist.downstream import metrics
from sslmed_dist.downstream.predictions import measures_of
from sslmed_dist.drivers import local
from sslmed_dist.verbs import evaluate
from sslmed_dist.verbs.init import tool
from sslmed_dist.verbs.measurement import measurement

LOW, HIGH, DRAWS = 2.5, 97.5, 2000


def lines_of(folder: Path) -> list[str]:
    """The first measure of every protocol, of the run in ``folder``."""
    asked = measurement(folder)
    settings, (dataset, parts) = asked.settings, asked.data
    _, predictions = evaluate.all_rows(asked.trained, settings, dataset, parts, "encoder")
    found = []
    for protocol, own in predictions["encoder"].items():
        other, first = predictions["random"][protocol], next(iter(measures_of(own)))
        arrays = (own.scores, other.scores, first.labels, own.groups)
        seed = settings.run.seed
        value, interval = metrics.difference(first.statistic, *arrays, draws=DRAWS, seed=seed, low=LOW, high=HIGH)
        points = [metrics.point(first.statistic, (of.scores, first.labels)) for of in (own, other)]
        assert value is not None and interval.low is not None and interval.high is not None and None not in points
        ours, theirs = (100 * float(point or 0.0) for point in points)
        ends = f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
        said = "beats it" if interval.low > 0 else "does not beat it"
        groups = len(own.groups.unique())
        found.append(
            f"{protocol} {first.name}: {ours:.1f}, random {theirs:.1f}, {100 * value:+.1f} {ends}: {said}, {groups}"
        )
    return found


def main(argv: Sequence[str]) -> None:
    """Write, train and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(argv)
    recipes = {}
    for data in options.data:
        recipe = options.out / f"{tool.plain_name(data)}.yaml"
        recipes[recipe] = recipe if recipe.exists() else tool.init(data, recipe, minutes=options.minutes)[0]
    for seed in range(options.seeds):
        for recipe in recipes.values():
            overrides = [f"run.seed={seed}", f"run.name={recipe.stem}-{seed}", f"run.dir={options.out}"]
            settings = config.load(recipe, overrides)
            began, used = time.perf_counter(), time.process_time()
            local.train(settings, "auto")
            spent = f"{(time.perf_counter() - began) / 60:.1f} min, {(time.process_time() - used) / 60:.1f} CPU min"
            for line in lines_of(settings.folder):
                print(f"{recipe.stem}, seed {seed}, {spent}: {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
