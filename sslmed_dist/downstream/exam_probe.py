"""A frozen encoder on whole examinations: a linear probe on what it says of their slices, and a floor of metadata."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from sslmed_dist import randomness
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.exams.metadata import MetadataColumns
from sslmed_dist.data.joined import Joined
from sslmed_dist.downstream.features import Features, SplitFeatures
from sslmed_dist.downstream.linear import LinearProbe
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.printable import plural

# The arm of the floor below.
METADATA = "metadata"


class Metadata(nn.Module):
    """The floor that a diagnosis must beat: what is known of an examination without looking at it, in place of
    features (``data.exams.metadata``)."""

    def features(self, dataset: Dataset, positions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Float32 (N, F) for each split, in columns learnt on train. ``ValueError`` where ``dataset`` holds no
        examinations. Of a joined set train has to lie in the first part."""
        parts = dataset.parts if isinstance(dataset, Joined) else [dataset]
        starts = dataset.starts.tolist() if isinstance(dataset, Joined) else [0, len(dataset)]
        train = positions["train"].cpu()
        assert int(train.max()) < starts[1]
        columns = MetadataColumns({"exam": parts[0]}, parts[0].ids[train].sort().values)
        features = {}
        for name, rows in positions.items():
            # Where nothing is known, one column of zeros: the probe's offset is left.
            known = torch.zeros(len(rows), max(len(columns.names), 1))
            for part, start, end in zip(parts, starts, starts[1:], strict=False):
                own = (rows.cpu() >= start) & (rows.cpu() < end)
                ids, order = part.ids[rows.cpu()[own] - start].sort()
                if columns.names and len(ids):
                    known[own] = columns({"exam": part}, ids).float()[order.argsort()]
            features[name] = known
        return features


class ExamProbe(LinearProbe):
    """``LinearProbe`` on examinations (``data.clip``), whose features are the mean and the greatest value over the
    slices (``features.of_exams``). A missing label adds nothing to the loss, and is left out of the measures.

    ``label_share``: this share of the training exams has labels, drawn by the run's seed and the exams' ids, at least
    two exams where there are so many; the same ones for every encoder. The learning rate is chosen on all of val.
    """

    floor = METADATA
    masks_missing = True

    def __init__(
        self,
        label_share: float = 1.0,
        learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0),
        epochs: int = 100,
        batch_size: int = 256,
        weight_decay: float = 0.0,
    ) -> None:
        """``ValueError`` for a share outside (0, 1], and as for ``LinearProbe``."""
        if not 0 < label_share <= 1:
            raise ValueError(f"exam_probe.label_share: expected a share above 0 and at most 1, got {label_share}")
        super().__init__(learning_rates, epochs, batch_size, weight_decay=weight_decay)
        self.label_share = label_share

    def predict(self, splits: SplitFeatures, *, seed: int) -> Predictions:
        """Probabilities of every test exam. ``ValueError`` without val."""
        train = labelled_part(splits.train, self.label_share, seed)
        predictions = super().predict(replace(splits, train=train), seed=seed)
        few = "" if self.label_share == 1 else f"labels of {len(train)} of {plural(len(splits.train), 'training exam')}"
        return replace(predictions, note="; ".join(filter(None, (few, predictions.note))))


def labelled_part(train: Features, share: float, seed: int) -> Features:
    """``share`` of the samples, drawn by (seed, id), at least two where there are so many; in their order."""
    count = max(round(share * len(train)), min(2, len(train)))
    order = randomness.order(train.index.cpu(), seed, "labelled")
    chosen = order[:count].sort().values.to(train.x.device)
    return Features(train.x[chosen], train.labels[chosen], train.groups[chosen], train.index[chosen])
