"""One of several views."""

from torch import Tensor, nn


class OneView(nn.Module):
    """Views of which only number ``number`` (0, 1, ...) is handed on, for who expects a single one.
    ``ValueError`` where there is no such view."""

    def __init__(self, views: nn.Module, number: int) -> None:
        super().__init__()
        self.views, self.number = views, number

    def forward(self, batch: dict[str, Tensor], *, seed: int, epoch: int) -> dict[str, Tensor]:
        """``views_0`` (N, C, H, W): the view that was asked for."""
        all_views: dict[str, Tensor] = self.views(batch, seed=seed, epoch=epoch)
        if f"views_{self.number}" not in all_views:
            raise ValueError("similarities need two training views per image; this run's views give one")
        return {"views_0": all_views[f"views_{self.number}"]}
