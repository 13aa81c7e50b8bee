"""What labels can give on the knee phantoms of the federation: an encoder that was trained with them, frozen.

    python -m tests.benchmarks.knee_ceiling configs/federated/knee_supervised.yaml data.root=PATH run.seed=0 \
      run.name=knee-supervised-0

trains the arm ``pooled`` of a federated recipe alone, without the federation, and scores it with the recipe's probes at
each site, over all sites. Prints Markdown. ``sslmed federate`` on the same folder goes on with the other arms.
"""

import sys

from sslmed_dist import config
from sslmed_dist.config import Config
from sslmed_dist.downstream import ALL_SITES, Row, pooled_rows, rows_of, write_rows
from sslmed_dist.downstream.metrics import Score
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.verbs import federate
from sslmed_dist.verbs.evaluate import arm_predictions, on_phantoms

ARM = "pooled"


def rows(settings: Config) -> list[Row]:
    """The figures of the pooled encoder at every site, then over the samples of all; they are also written down."""
    resolved, sites = federate.prepare(config.replace(settings, federated={"compare": [ARM]}))
    federate.train_arms(resolved, sites)
    dataset = federate.evaluation_data(resolved, sites)
    predictions: list[dict[str, Predictions]] = []
    measured: list[Row] = []
    for site in sites:
        parts = federate.parts_of(site, dataset, not resolved.evaluate.data)
        network = federate.encoder_of(ARM, site.name, resolved)
        predictions.append(arm_predictions(resolved, network, dataset, parts, ARM))
        measured += rows_of(predictions[-1], arm=ARM, site=site.name, seed=resolved.run.seed)
    measured += pooled_rows(predictions, arm=ARM, seed=resolved.run.seed)
    write_rows(resolved.folder / "evaluate" / "ceiling.json", measured, phantom_data=on_phantoms(resolved))
    return measured


def line(score: Score) -> str:
    """A row of the table: a percentage with its interval, or why there is none."""
    if score.value is None or score.low is None or score.high is None:
        return f"| {score.evaluator} {score.metric} | {score.note} |"
    value, low, high = (f"{100 * number:.1f}" for number in (score.value, score.low, score.high))
    return f"| {score.evaluator} {score.metric} | {value} [{low}, {high}] |"


if __name__ == "__main__":
    found = rows(config.load(sys.argv[1], sys.argv[2:]))
    print("\n".join(line(row.score) for row in found if row.site == ALL_SITES))
