"""Pretext tasks with a label that the views make: which arrangement, which transform (thesis, chapter 3).

The views put ``pretext_label`` into the batch and say how many labels there are; the method predicts it by an encoder
and a head under cross entropy.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from sslmed_dist import registry
from sslmed_dist.methods.method import Method
from sslmed_dist.models import ENCODERS, HEADS
from sslmed_dist.models.interfaces import Head
from sslmed_dist.models.semiparallel import BRANCHES, he_normal

LABEL = "pretext_label"


class PretextTask(Method):
    """``head(encoder(input))`` against the label that the views drew, cross entropy.

    ``head`` is a leaf of HEADS with as many outputs as there are labels; its linear layers start He-normal. The
    embeddings carry the labels, because the objective sees the batch before its views.
    """

    validates: ClassVar[bool] = True

    def __init__(
        self, encoder: Mapping[str, Any] | str, head: Mapping[str, Any] | str, classes: int, channels: int
    ) -> None:
        """``ValueError`` for fewer than 2 labels, or a head of another number of outputs."""
        super().__init__()
        if classes < 2:
            raise ValueError(f"method.pretext_classes: expected an integer >= 2, got {classes}")
        self.encoder = registry.build(ENCODERS, encoder, "method.encoder", channels=channels)
        in_dim = self.encoder.feature_dim
        self.head: Head = registry.build(HEADS, head, "method.head", in_dim=in_dim, out=classes)
        if self.head.out_dim != classes:
            name = head if isinstance(head, str) else head["name"]
            raise ValueError(f"method.head: {name} has {self.head.out_dim} outputs, the task {classes} labels")
        he_normal(self.head)

    @abstractmethod
    def input(self, batch: dict[str, Tensor]) -> Tensor:
        """What the encoder sees of a batch of views. ``ValueError`` for views of another task."""

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``logits`` (n, classes) and the labels ``pretext_label`` int64 (n,)."""
        if LABEL not in batch:
            raise ValueError(f"views: make no {LABEL}; allowed with this method: jumbled, geometric")
        return {"logits": self.head(self.encoder(self.input(batch))), LABEL: batch[LABEL]}

    def encoder_inputs(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """The only input."""
        return [self.input(batch)]

    def explained(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The logits of the labels that are found, right or not."""
        return {"the label that it finds": embeddings["logits"].amax(dim=1).sum()}

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``loss``: the mean cross entropy of this rank's samples; ``accuracy``: the share whose label is found."""
        logits, labels = embeddings["logits"], embeddings[LABEL]
        accuracy = (logits.detach().argmax(dim=1) == labels).to(logits).mean()
        return {"loss": functional.cross_entropy(logits, labels), "accuracy": accuracy}


class Jigsaw(PretextTask):
    """Which arrangement do nine jumbled patches stand in? (Sec. 3.4.1, views ``jumbled``.)

    ``streams`` ``semi``: the encoder (``sslacl``, ``skid``) takes the list of patches, patch k into branch k.
    ``single`` (Sec. 3.3.2): any encoder takes the picture in which they stand side by side, three to a row.
    ``head`` null is SKID's: a layer of 1024 with ReLU and one of a node per arrangement, no batch norm. SSLACL's is
    ``{name: projection, hidden: 1024, layers: 3}``. ``pretext_classes`` and ``channels`` are filled in by a run.
    """

    def __init__(
        self,
        encoder: Mapping[str, Any] | str = "skid",
        head: Mapping[str, Any] | str | None = None,
        streams: Literal["semi", "single"] = "semi",
        pretext_classes: int = 1000,
        channels: int = 1,
    ) -> None:
        head = {"name": "projection", "hidden": 1024, "layers": 2} if head is None else head
        super().__init__(encoder, head, pretext_classes, channels)
        self.streams = streams

    def input(self, batch: dict[str, Tensor]) -> Tensor:
        """``patches`` (n, 9, C, p, p), or with one stream their picture (n, C, 3 p, 3 p)."""
        patches = batch.get("patches")
        if patches is None or patches.dim() != 5:
            got = "none" if patches is None else str(tuple(patches.shape))
            raise ValueError(f"patches: jigsaw needs (n, cells, C, p, p) (views.name: jumbled), got {got}")
        if self.streams == "single":
            return side_by_side(patches)
        if patches.shape[1] != BRANCHES:
            raise ValueError(
                f"views.arrangements.grid: {patches.shape[1]} patches for the stem's {BRANCHES} branches; "
                "allowed: grid 3, or method.streams: single"
            )
        return patches


def side_by_side(patches: Tensor) -> Tensor:
    """Patches (n, G^2, C, p, p) in the order of the list -> one image each, G to a row: (n, C, G p, G p)."""
    grid = round(patches.shape[1] ** 0.5)
    rows = patches.reshape(len(patches), grid, grid, *patches.shape[2:]).permute(0, 3, 1, 4, 2, 5)  # (n, C, G, p, G, p)
    return rows.flatten(2, 3).flatten(3, 4)
