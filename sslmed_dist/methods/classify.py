"""A linear classifier on an encoder, trained on labelled images: fine-tuning, or linear evaluation with augmentation.

A pretrained encoder comes in by ``run.start_from``. The schedule of the thesis (sections 5.5.3.3 and 6.5.2.2) is one of
the optimiser's: 50 epochs of SGD, learning rate 0.1 (two classes: 1.0), a tenth from epochs 30 and 40 on.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from sslmed_dist import distributed, registry
from sslmed_dist.methods.method import Method
from sslmed_dist.models import ENCODERS


class Classify(Method):
    """``linear(encoder(view_0))`` against the labels; ``views`` of one view are enough.

    ``classes`` and ``task`` are what the data has and ``channels`` what its images have (a run fills all three in).
    Task ``single``: cross entropy over the classes, ``class_weights`` one number per class: the mean over the batch
    weighted by each sample's class, sum of weight x loss / sum of weights, the sums over all ranks. With two classes
    the classifier has one output, the logit of class 1, and ``class_weights`` is one number, the weight of class 1;
    task ``multi``: a logit per label, one number for all labels or one per label, the weights of the value 1. These
    losses are binary cross entropies, and their mean is over samples and labels, whatever they weigh.
    ``freeze``: the encoder stays as it is, its batch norm too; only the classifier learns.
    """

    weights: Tensor

    def __init__(
        self,
        encoder: Mapping[str, Any] | str = "resnet",
        classes: int = 2,
        task: Literal["single", "multi"] = "single",
        class_weights: tuple[float, ...] | float | None = None,
        freeze: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        least = 2 if task == "single" else 1
        if classes < least:
            raise ValueError(f"method.classes: expected an integer >= {least} for the task {task}, got {classes}")
        self.classes, self.task, self.freeze = classes, task, freeze
        self.softmax = task == "single" and classes > 2
        self.outputs = 1 if task == "single" and classes == 2 else classes
        self.encoder = registry.build(ENCODERS, encoder, "method.encoder", channels=channels)
        self.encoder.requires_grad_(not freeze)
        self.head = nn.Linear(self.encoder.feature_dim, self.outputs)
        weights = torch.tensor(self.weights_of(class_weights), dtype=torch.float64)
        self.register_buffer("weights", weights, persistent=False)  # a setting, not a state

    def weights_of(self, given: tuple[float, ...] | float | None) -> list[float]:
        """One weight per output. ``ValueError`` for a wrong number of weights, or one that is not above 0."""
        count = self.outputs
        if given is None:
            return [1.0] * count
        if isinstance(given, int | float):
            found = [] if self.softmax else [float(given)] * count
        else:
            found = [float(weight) for weight in given] if len(given) == count else []
        if not found or not all(0 < weight < float("inf") for weight in found):
            number = f"{count} numbers, one per class" if self.softmax else "one number, the positive class's"
            number += f", or {count}, one per label" if self.task == "multi" and count > 1 else ""
            raise ValueError(f"method.class_weights: expected {number}, finite and > 0, got {given!r}")
        return found

    def train(self, mode: bool = True) -> Self:
        """Training mode; a frozen encoder stays in evaluation mode, so that its batch norm keeps its statistics."""
        super().train(mode)
        if self.freeze:
            self.encoder.eval()
        return self

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``logits`` (N, classes), (N, 1) with two classes, (N, L) with L labels."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            features = self.encoder(batch["views_0"])
        return {"logits": self.head(features)}

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of the weighted loss, and the share of its samples (and labels) that are right."""
        logits, labels = embeddings["logits"], batch["labels"]
        weights = self.weights.to(logits)
        if not self.softmax:
            target = (labels[:, None] if labels.ndim == 1 else labels).to(logits)
            loss = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weights)
            return {"loss": loss, "accuracy": ((logits > 0) == (target > 0)).to(logits).mean().detach()}
        own = weights[labels]
        # The mean over ranks of world x own sum / sum of all is the loss of the whole batch, and so are the gradients.
        total = distributed.reduce_sum(own.sum()) / distributed.world_size()
        loss = (own * functional.cross_entropy(logits, labels, reduction="none")).sum() / total
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels).to(logits).mean().detach()}

    def predict(self, images: Tensor) -> Tensor:
        """Log-probabilities of images (N, C, H, W) -> (N, classes), or of each label's value 1 (N, L).

        Logarithms, for a float32 probability close to 1 no longer ranks its sample.
        """
        logits: Tensor = self.head(self.encoder(images))
        if self.softmax:
            return functional.log_softmax(logits, dim=1)
        if self.task == "single":
            logits = torch.cat([-logits, logits], dim=1)
        return functional.logsigmoid(logits)
