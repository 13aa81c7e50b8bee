"""How good the encoder is while it trains: nearest neighbours on training images, every ``evaluate.every`` epochs.

A guide and no result: the images are held out of the neighbours, but not of the training, and they are few. Nothing
is drawn from a random stream that training uses, so a run with it has the bits of the run without.
"""

import copy
from collections.abc import Mapping

import torch

from sslmed_dist import randomness
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset, unlabelled
from sslmed_dist.data.partition import hold_out
from sslmed_dist.downstream import metrics
from sslmed_dist.downstream.features import extract_splits
from sslmed_dist.downstream.knn import KNN
from sslmed_dist.downstream.predictions import measures_of
from sslmed_dist.methods import Method
from sslmed_dist.training import build

NEIGHBOURS, QUERIES, K = 2000, 500, 20  # images among which neighbours are looked for, images that ask, votes


class Monitor:
    """The images that are looked at, chosen once by the run's seed. ``ValueError`` for a dataset without labels."""

    def __init__(self, settings: Config, dataset: Dataset) -> None:
        if not dataset.classes or bool(unlabelled(dataset.labels).any()):
            raise ValueError(f"evaluate.every: {dataset.name} holds unlabelled samples; nearest neighbours need labels")
        rest, queries = hold_out(
            labels=dataset.labels,
            groups=dataset.groups,
            ids=dataset.ids,
            fraction=0.2,
            seed=randomness.key(settings.run.seed, "monitor"),
        )
        drawn = (self.draw(dataset, part, settings) for part in (rest, queries))
        neighbours, asking = (part[:most] for part, most in zip(drawn, (NEIGHBOURS, QUERIES), strict=True))
        self.settings, self.dataset = settings, dataset
        self.parts: Mapping[str, torch.Tensor] = {"train": neighbours, "val": asking[:0], "test": asking}
        self.device = build.choose_device(settings)
        self.views = build.standard_views(settings, dataset).to(self.device)
        self.evaluator = KNN(k=min(K, len(neighbours)))

    @staticmethod
    def draw(dataset: Dataset, part: torch.Tensor, settings: Config) -> torch.Tensor:
        """The positions of a part in a keyed order."""
        order = randomness.order(dataset.ids[part], settings.run.seed, "monitor")
        return part[order]

    def measure(self, method: Method) -> dict[str, float]:
        """``knn_METRIC``: the first score of the evaluator (accuracy, or the mean area under the curves of labels)."""
        encoder = method.encoder
        if self.settings.plan.precision == "float64":
            encoder = copy.deepcopy(encoder).float()
        seed = self.settings.run.seed
        features = extract_splits(encoder, self.dataset, self.parts, views=self.views, device=self.device, seed=seed)
        predictions = self.evaluator.predict(features, seed=seed)
        first = next(iter(measures_of(predictions)))
        value = metrics.point(first.statistic, (predictions.scores, first.labels))
        return {} if value is None else {f"knn_{first.name}": float(value)}
