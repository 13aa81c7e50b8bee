"""Whole images, transformed, and by which transform: the baseline that shows shortcut learning (thesis, Sec. 3.3.1)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist.arguments import located, require_between
from sslmed_dist.views.draws import draw, word_keys
from sslmed_dist.views.intensity import Intensity
from sslmed_dist.views.standard import StandardViews
from sslmed_dist.views.transforms import COUNT, Fill, TransformSet, sampling_grid, whole_pixels


class GeometricViews(nn.Module):
    """views_0: the image under one of 54 transforms, and ``pretext_label``, the transform's number (0 ... 53).

    Rotation by -15, 0 or 15 degrees about the centre, shift by -[0.1 side], 0 or [0.1 side] pixels along each axis (of
    the whole slice: 25 of 256), scale 1 or 1.2. The transform is drawn in evaluation mode, too: it is the task. Past
    the edge comes what ``fill`` says, black by default.
    """

    word_keys: Tensor
    pretext_classes = COUNT

    def __init__(
        self,
        size: int,
        rotation: float = 15.0,
        shift: float = 0.1,
        scale: float = 1.2,
        fill: Fill = "zeros",
        *,
        channels: int,
        value_range: tuple[float, float],
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        """``ValueError`` naming the field for a value that is not allowed, and for transforms that are no 54."""
        super().__init__()
        require_between("views.shift", shift, 0.0, 0.5)
        self.size, self.fill = size, fill
        pixels = whole_pixels(shift, size)
        if pixels < 1 or rotation <= 0 or scale <= 1:
            raise ValueError(
                f"views.shift: {pixels} pixels, rotation {rotation:g} and scale {scale:g} give fewer than {COUNT} "
                "transforms; allowed: 1 pixel or more, rotation > 0, scale > 1"
            )
        self.whole = StandardViews(size, channels=channels, value_range=value_range)
        with located("views"):
            self.intensity = Intensity(channels, value_range, mean, std)
            self.transforms = TransformSet("grid54", rotation, pixels, scale)
        self.words = TransformSet.words
        self.register_buffer("word_keys", word_keys(self.words), persistent=False)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor], *, seed: int, epoch: int) -> dict[str, Tensor]:
        """ "images" (B, C, H, W), "index" and "draw" int64 (B,) -> "views_0" float32 (B, C, size, size), normalised,
        and "pretext_label" int64 (B,); "images" is left out, all other entries are kept."""
        images = batch["images"]
        self.intensity.check(images)
        if self.word_keys.device != images.device:
            self.to(images.device)
        index, draws = (batch[name].to(images.device) for name in ("index", "draw"))
        table = draw(self.words, self.word_keys, seed=seed, epoch=epoch, index=index, draw=draws, view=0)
        placed = self.transforms(table)
        whole = self.whole({"images": images}, seed=0, epoch=0)["views_0"]
        grid = sampling_grid(placed, torch.zeros(len(images), 2, device=images.device), self.size, self.size)
        moved = F.grid_sample(whole, grid, mode="bilinear", padding_mode=self.fill, align_corners=False)
        others = {name: value for name, value in batch.items() if name != "images"}
        return {**others, "views_0": self.intensity.normalise(moved, moved), "pretext_label": placed.label}
