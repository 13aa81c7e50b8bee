"""The test predictions of a method that classifies by itself, beside those of the protocols on its frozen features."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream.features import extract
from sslmed_dist.downstream.predictions import Predictions

# The name of its rows.
CLASSIFIER = "classifier"


@runtime_checkable
class Classifier(Protocol):
    """A method that offers log-probabilities of images (N, C, H, W): float (N, C), for the task ``multi`` (N, L)."""

    def predict(self, images: Tensor) -> Tensor:
        """Log-probabilities."""
        ...


class Outputs(nn.Module):
    """A classifier as an encoder whose features are its log-probabilities."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C)."""
        outputs: Tensor = self.method.predict(images)  # type: ignore[operator]
        return outputs


def classified(
    method: nn.Module,
    dataset: Dataset,
    positions: Tensor,
    *,
    views: nn.Module,
    device: torch.device | str,
    seed: int,
) -> Predictions:
    """Probabilities of the samples at ``positions`` by ``method``, a ``Classifier``, under the first view, as they are:
    no hyper-parameter is chosen here. ``ValueError`` where the outputs are not one per class of the data."""
    found = extract(Outputs(method).to(device), dataset, positions, views=views, device=device, seed=seed)
    if found.x.shape[1] != len(dataset.classes):
        raise ValueError(
            f"{dataset.name}: has {len(dataset.classes)} classes, the classifier was trained for {found.x.shape[1]}"
        )
    facts = (found.labels, found.groups, found.index, dataset.task, tuple(dataset.classes))
    return Predictions(found.x.double().exp(), *facts)
