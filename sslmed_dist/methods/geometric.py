"""Which of 54 transforms was applied to a slice: a pretext task solved by shortcuts (thesis, Sec. 3.3.1)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sslmed_dist.methods.jigsaw import PretextTask


class Geometric(PretextTask):
    """Which of 54 transforms was applied to the slice? One network on the whole slice (Sec. 3.3.1, views
    ``geometric``). With the jigsaw of one stream it shows shortcut learning. ``head`` null is one linear layer."""

    def __init__(
        self,
        encoder: Mapping[str, Any] | str = "vgg",
        head: Mapping[str, Any] | str | None = None,
        pretext_classes: int = 54,
        channels: int = 1,
    ) -> None:
        head = {"name": "projection", "layers": 1} if head is None else head
        super().__init__(encoder, head, pretext_classes, channels)

    def input(self, batch: dict[str, Tensor]) -> Tensor:
        """``views_0`` (n, C, H, W)."""
        if "views_0" not in batch:
            raise ValueError("views: geometric needs whole slices, views_0 (views.name: geometric)")
        return batch["views_0"]
