"""Whether frozen features tell which site a sample comes from.

A linear probe is trained to name the site. What the pretraining added to that shows beside a random encoder of the same
shape; that sites differ in their images shows in raw pixels; that they differ in their mix of classes, in a probe that
sees nothing but the labels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from sslmed_dist.data.dataset import Dataset, unlabelled
from sslmed_dist.downstream.features import SPLITS, Features, SplitFeatures, extract
from sslmed_dist.downstream.linear import LinearProbe
from sslmed_dist.downstream.predictions import Predictions

TITLE = "site_probe"
LABELS = "labels"  # the arm that sees the labels alone
GROUP_ROOM = 1 << 40  # more patients than a site has: the numbers of two sites' patients stay apart


class Labels(nn.Module):
    """Stands for an encoder: the features of a sample are its labels."""

    def of(self, dataset: Dataset, positions: Tensor) -> Tensor:
        """One-hot classes float32 (N, C), or labels (N, L) with 0.5 where one is missing."""
        labels = dataset.labels.cpu()[positions.cpu()]
        if labels.ndim == 2:
            return labels.float().nan_to_num(0.5)
        return functional.one_hot(labels, len(dataset.classes)).float()


def knows_labels(dataset: Dataset) -> bool:
    """Whether every sample is labelled, so that ``Labels`` can stand for an encoder."""
    return bool(dataset.classes) and not bool(unlabelled(dataset.labels).any())


def site_features(
    encoder: nn.Module, dataset: Dataset, positions: Mapping[str, Tensor], site: int, **how: object
) -> dict[str, Features]:
    """The features of one site's train, val and test parts (int64 positions in ``dataset``). Their label is the
    number ``site``. ``how``: ``views``, ``device`` and ``seed`` of ``extract``."""
    found = {}
    for name in SPLITS:
        part = positions[name]
        if isinstance(encoder, Labels):
            kept = (dataset.groups.cpu()[part], dataset.ids.cpu()[part])
            x, groups, index = encoder.of(dataset, part), *kept
        else:
            features = extract(encoder, dataset, part, **how)  # type: ignore[arg-type]
            x, groups, index = features.x, features.groups, features.index
        label = torch.full((len(part),), site, dtype=torch.int64)
        found[name] = Features(x, label, site * GROUP_ROOM + groups, index)
    return found


def predict_sites(parts: Mapping[str, Mapping[str, Features]], *, seed: int) -> Predictions:
    """The test predictions of the site by a linear probe on the features of all sites (``site_features`` by site).
    ``ValueError`` for fewer than two sites."""
    if len(parts) < 2:
        raise ValueError(f"site probe: expected features of at least two sites, got {len(parts)}")
    splits = {name: joined([of[name] for of in parts.values()]) for name in SPLITS}
    return LinearProbe().predict(SplitFeatures(**splits, task="single", classes=tuple(parts)), seed=seed)


def joined(parts: list[Features]) -> Features:
    """Features one after another."""
    return Features(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("x", "labels", "groups", "index"))
    )
