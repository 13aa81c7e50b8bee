"""What ``fit`` knows of a method: a module that maps a batch to a dict with a ``loss``."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

from torch import Tensor, nn

from sslmed_dist.models.interfaces import Encoder


class Method(nn.Module, ABC):
    """Everything trainable of one pretraining method, and its objective.

    ``embed`` may be computed micro-batch by micro-batch; ``objective`` needs the embeddings of the whole batch.
    ``encoder`` is the part that is used after pretraining; it has ``feature_dim``.
    """

    encoder: Encoder
    # How the names of tensors begin that a federation must not share: a queue's embeddings of single images, and copies
    # that every site keeps for itself.
    site_only: ClassVar[tuple[str, ...]] = ()
    # Whether ``objective`` changes no state (queues, centres), so that it can be asked for validation samples too.
    validates: ClassVar[bool] = False
    # Whether ``objective`` leaves out labels that are missing (NaN), so that samples without some of them are used.
    masks_missing_labels: ClassVar[bool] = False
    # Whether the encoder stays in evaluation mode while the rest trains, so that its batch norm keeps its statistics.
    encoder_evaluates: bool = False
    # Whether the encoder gets no gradient.
    freeze: bool = False

    def train(self, mode: bool = True) -> Self:
        """Training mode or evaluation mode; an encoder that ``encoder_evaluates`` is in evaluation mode in both."""
        super().train(mode)
        if self.encoder_evaluates:
            self.encoder.eval()
        return self

    @abstractmethod
    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings of the views of ``batch`` by name, each tensor (n, ...) in the order of the samples."""

    @abstractmethod
    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by name, from the embeddings of the whole batch: ``loss`` is minimised, the others are logged."""

    def measures(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by name that are too costly for every step; computed when a step is logged. None by default."""
        return {}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``objective(embed(batch), batch)``."""
        return self.objective(self.embed(batch), batch)

    def encoder_inputs(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """What the encoder gets of a batch of views, in the order in which ``embed`` gives it: images (n, C, H, W), or
        the patches of puzzles (n, G^2, C, p, p). Whatever it gets after these may be left out."""
        names = [name for name in batch if name.startswith("views_")]
        return [batch[name] for name in sorted(names, key=lambda name: (len(name), name))]  # 10 after 9

    def explained(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What Grad-CAM asks of this method: scalars by name, of which a greater one is what the encoder is for."""
        return {"a lower loss": -self.objective(embeddings, batch)["loss"]}

    def step_begin(self, epoch: float, progress: float) -> None:
        """Called before the forward pass. ``epoch`` is the number of epochs done, with a fraction; ``progress`` is the
        share of the run's steps done, in [0, 1). Both are functions of the step alone, so what is computed from them
        (the schedule of a temperature or a momentum) needs no checkpoint. Nothing by default."""
        return None

    def before_update(self) -> None:
        """Called after the gradients were averaged and before the optimiser's step, to change gradients. Nothing by
        default."""
        return None

    def step_end(self, progress: float) -> None:
        """Called after the optimiser's step, with the share of the run's steps done, to move momentum encoders and
        queues. Nothing by default."""
        return None


def require_width(name: str, width: int, wanted: int, of: str) -> None:
    """``ValueError`` unless ``width``, the output of the head ``name``, is ``wanted``, that of the head ``of``."""
    if width != wanted:
        raise ValueError(f"method.{name}.out: expected {wanted}, the output of method.{of}, got {width}")


def two_views(batch: Mapping[str, Tensor], method: str) -> tuple[Tensor, Tensor]:
    """``views_0`` and ``views_1`` (n, C, H, W). ``ValueError``, naming ``method``, unless these are the only views of
    the batch and have one shape."""
    names = sorted(name for name in batch if name.startswith("views_"))
    if names != ["views_0", "views_1"]:
        raise ValueError(f"views: {method} needs two views (views_0, views_1), got {', '.join(names) or 'none'}")
    first, second = batch["views_0"], batch["views_1"]
    if first.shape != second.shape:
        raise ValueError(f"views_1: expected the shape of views_0, {tuple(first.shape)}, got {tuple(second.shape)}")
    return first, second
