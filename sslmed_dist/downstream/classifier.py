"""The test predictions of a method that classifies by itself. They stand beside those of the evaluators on its frozen
features."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sslmed_dist.data.dataset import Dataset, unlabelled
from sslmed_dist.downstream.coverage import coverage
from sslmed_dist.downstream.features import extract
from sslmed_dist.downstream.predictions import Predictions
from sslmed_dist.printable import plural

# The name of its rows.
CLASSIFIER = "classifier"


@runtime_checkable
class Classifier(Protocol):
    """A method that classifies by itself."""

    def predict(self, images: Tensor) -> Tensor:
        """Log-probabilities of images (N, C, H, W): float (N, classes), for the task ``multi`` (N, labels)."""
        ...


class Outputs(nn.Module):
    """A classifier in the form of an encoder: its features are its log-probabilities."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
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
    trained_on: Tensor,
) -> Predictions:
    """Probabilities of the samples at ``positions`` (int64 (N,)) by ``method``, a ``Classifier``, under the first view.
    They are taken as they are: no hyper-parameter is chosen here. ``trained_on`` are the positions of the training
    samples, whose classes are compared with those of test. ``ValueError`` unless there is one output per class of the
    data."""
    missing = int(unlabelled(dataset.labels.cpu()[positions.cpu()]).sum())
    if missing:
        raise ValueError(f"{dataset.name}: {plural(missing, 'sample')} that are scored lack a label")
    features = extract(Outputs(method).to(device), dataset, positions, views=views, device=device, seed=seed)
    if features.x.shape[1] != len(dataset.classes):
        raise ValueError(
            f"{dataset.name}: has {len(dataset.classes)} classes, the classifier was trained for {features.x.shape[1]}"
        )
    sample_facts = (features.labels, features.groups, features.index, dataset.task, tuple(dataset.classes))
    remarks = coverage(dataset.task, dataset.classes, dataset.labels.cpu()[trained_on.cpu()], features.labels)
    return Predictions(features.x.double().exp(), *sample_facts, coverage=remarks)
