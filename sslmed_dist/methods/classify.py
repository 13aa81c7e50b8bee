"""A linear classifier on an encoder, trained on labelled images: fine-tuning, or linear evaluation with augmentation.

A pretrained encoder is loaded with ``run.start_from``. The thesis's schedule (sections 5.5.3.3 and 6.5.2.2) is set with
the optimiser: 50 epochs of SGD, learning rate 0.1 (two classes: 1.0), divided by 10 at epochs 30 and 40.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sslmed_dist import distributed, registry
from sslmed_dist.methods.method import Method
from sslmed_dist.models import ENCODERS


def class_terms(logits: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Of classes that exclude each other: this rank's part of ``loss``, the cross entropy with a weight per class
    (``Classify``), and ``accuracy``, the share of its samples got right.

    ``logits`` (N, classes), ``labels`` int64 (N,), ``weights`` (classes,) in the precision of the logits."""
    sample_weights = weights[labels]  # (N,)
    # Divided by the ranks' mean sum of weights, not by this rank's: then the mean of the losses over ranks is the
    # loss of the whole batch, and the mean of the gradients its gradient.
    total = distributed.reduce_sum(sample_weights.sum()) / distributed.world_size()
    loss = (sample_weights * functional.cross_entropy(logits, labels, reduction="none")).sum() / total
    return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels).to(logits).mean().detach()}


class Classify(Method):
    """``linear(encoder(view_0))`` against the labels; ``views`` of one view are enough.

    ``classes``, ``task`` and ``channels`` describe the data (a run fills all three in). The loss depends on the task:

    * ``single``, more than two classes: cross entropy. ``class_weights`` is one number per class, and the loss is the
      weighted mean over the batch of all ranks: sum of weight x loss / sum of weights.
    * ``single``, two classes: binary cross entropy of one output, the logit of class 1. ``class_weights`` is one
      number, the weight of class 1.
    * ``multi``: binary cross entropy of one logit per label. ``class_weights`` is one number for all labels or one per
      label, the weight of the value 1.

    The binary losses are plain means over samples and labels: not divided by the sum of weights.
    ``freeze``: the encoder does not change, nor does its batch norm; only the classifier learns.
    """

    validates: ClassVar[bool] = True
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
        self.classes, self.task = classes, task
        self.freeze = self.encoder_evaluates = freeze
        self.softmax = task == "single" and classes > 2
        self.outputs = 1 if task == "single" and classes == 2 else classes
        self.encoder = registry.build(ENCODERS, encoder, "method.encoder", channels=channels)
        self.encoder.requires_grad_(not freeze)
        self.head = nn.Linear(self.encoder.feature_dim, self.outputs)
        weights = torch.tensor(self.weights_of(class_weights), dtype=torch.float64)
        self.register_buffer("weights", weights, persistent=False)  # a setting, not a state

    def weights_of(self, class_weights: tuple[float, ...] | float | None) -> list[float]:
        """One weight per output. ``ValueError`` for a wrong number of weights, or one that is not above 0."""
        count = self.outputs
        if class_weights is None:
            return [1.0] * count
        # An empty list stands for a wrong number of weights.
        if isinstance(class_weights, int | float):
            weights = [] if self.softmax else [float(class_weights)] * count
        else:
            weights = [float(weight) for weight in class_weights] if len(class_weights) == count else []
        if not weights or not all(0 < weight < float("inf") for weight in weights):
            expected = f"{count} numbers, one per class" if self.softmax else "one number, the positive class's"
            expected += f", or {count}, one per label" if self.task == "multi" and count > 1 else ""
            raise ValueError(f"method.class_weights: expected {expected}, finite and > 0, got {class_weights!r}")
        return weights

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``logits`` of ``views_0``: (N, classes), (N, 1) with two classes, (N, L) with L labels."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            features = self.encoder(batch["views_0"])
        return {"logits": self.head(features)}

    def explained(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The logits of the classes that are found, or of each label."""
        logits = embeddings["logits"]
        if self.softmax:
            return {"the class that it finds": logits.amax(dim=1).sum()}
        return {f"label {k}": logits[:, k].sum() for k in range(logits.shape[1])}

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of the weighted ``loss``, and ``accuracy``: the share of its samples (labels) got right."""
        logits, labels = embeddings["logits"], batch["labels"]
        weights = self.weights.to(logits)
        if not self.softmax:
            # Binary: one logit per label, (N, L); the only label of two classes is "class 1".
            target = (labels[:, None] if labels.ndim == 1 else labels).to(logits)
            loss = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weights)
            return {"loss": loss, "accuracy": ((logits > 0) == (target > 0)).to(logits).mean().detach()}
        return class_terms(logits, labels, weights)

    def predict(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> log-probabilities of the classes (N, classes), or of each label's value 1 (N, L).

        Logarithms, because float32 probabilities close to 1 round to equal values and no longer rank the samples.
        """
        logits: Tensor = self.head(self.encoder(images))
        if self.softmax:
            return functional.log_softmax(logits, dim=1)
        if self.task == "single":
            logits = torch.cat([-logits, logits], dim=1)
        return functional.logsigmoid(logits)
