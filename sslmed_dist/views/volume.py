"""One transform per examination: all its slices are turned, moved and enlarged together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sslmed_dist.arguments import located
from sslmed_dist.views.draws import Draws, draw, levels, look_up, word_keys
from sslmed_dist.views.geometry import Fill, Geometry
from sslmed_dist.views.intensity import Intensity
from sslmed_dist.views.standard import StandardViews

NATIVE = 256  # shifts are in pixels of a slice of this size


@dataclass(frozen=True)
class Motion:
    """What is drawn for an examination: the rotation in degrees and the shifts along both axes in pixels of a slice of
    256 x 256, each uniform in a range of two numbers or among three, and the scale among two."""

    rotation: tuple[float, ...]
    shift: tuple[float, ...]
    scales: tuple[float, float]


MOTIONS = {
    # Thesis, Sec. 3.4.1.3: +-15 degrees, +-[0.1 x 64] pixels, scale 1 or 1.2.
    "pretext": Motion((-15.0, 15.0), (-6.0, 6.0), (1.0, 1.2)),
    # SKID's published code, downstream.
    "published_code": Motion((-20.0, 0.0, 20.0), (-15.0, 0.0, 15.0), (1.0, 1.15)),
}
TURN = ("rotation", "shift_x", "shift_y", "scale")


def choices(values: Sequence[float]) -> Tensor:
    """The table, float64, that a uniform draw is looked up in: a grid over a range of two numbers, else the values."""
    return levels(*values) if len(values) == 2 else torch.tensor(values, dtype=torch.float64)


class VolumeViews(nn.Module):
    """views_0: the slices of an examination, size x size pixels, normalised by (x - mean) / std.

    Slices of another size are brought to ``size`` first, as ``StandardViews`` does. Then ``transforms``:

    * ``pretext``: the examination is turned by up to 15 degrees, enlarged by 1 or 1.2, and moved by up to 6 pixels.
    * ``published_code``: by -20, 0 or 20 degrees, by 1 or 1.15, and by -15, 0 or 15 pixels along each axis.
    * ``crop``: a random resized crop of the area share ``crop_scale``, the thesis's chapter 4. It does not state the
      share; [0.5, 1] is ours.
    * ``none``: nothing is random. This is the view of evaluation, and what the others are in evaluation mode.

    Shifts are shares of the slice: they are pixels of a slice of 256 x 256. Every draw is keyed by (seed, "views",
    epoch, sample id, draw, 0, word), so an examination looks the same in any batch. Past the slice's edge is what
    ``fill`` says; "zeros" is black. Slices beyond an examination's ``length`` are 0.
    """

    word_keys: Tensor
    turns: Tensor
    shifts: Tensor
    scales: Tensor

    def __init__(
        self,
        size: int,
        transforms: Literal["pretext", "published_code", "crop", "none"] = "pretext",
        crop_scale: tuple[float, float] = (0.5, 1.0),
        fill: Fill = "zeros",
        *,
        channels: int,
        value_range: tuple[float, float],
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        """``ValueError`` naming the field for a value that is not allowed."""
        super().__init__()
        if transforms not in (*MOTIONS, "crop", "none"):
            raise ValueError(f"views.transforms: expected one of {', '.join(MOTIONS)}, crop, none, got {transforms!r}")
        self.size, self.transforms = size, transforms
        self.standard = StandardViews(size, channels=channels, value_range=value_range)
        motion = MOTIONS.get(transforms)
        with located("views"):
            self.intensity = Intensity(channels, value_range, mean, std)
            # Any rotation above 0 makes the geometry fill the corners as ``fill`` says.
            scale = (1.0, 1.0) if motion else crop_scale
            ratio = (1.0, 1.0) if motion else (3 / 4, 4 / 3)
            self.geometry = Geometry(size, scale, ratio, flip=0.0, rotation=1.0 if motion else 0.0, fill=fill)
        self.words: tuple[str, ...] = TURN if motion else self.geometry.words
        self.register_buffer("word_keys", word_keys(self.words), persistent=False)
        # Tables of (cos, sin), of shifts in coordinates of [-1, 1], and of scales, looked up by the draws.
        motion = motion or Motion((0.0, 0.0), (0.0, 0.0), (1.0, 1.0))
        angles = choices(motion.rotation) * (math.pi / 180)
        self.register_buffer("turns", torch.stack([angles.cos(), angles.sin()], 1), persistent=False)
        self.register_buffer("shifts", choices(motion.shift) * (2.0 / NATIVE), persistent=False)
        self.register_buffer("scales", torch.tensor(motion.scales, dtype=torch.float64), persistent=False)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor], *, seed: int, epoch: int) -> dict[str, Tensor]:
        """ "images" (B, S, C, H, W) uint8, int16 or float32, "index" and "draw" int64 (B,), perhaps "length" int64 (B,)
        -> views_0 float32 (B, S, C, size, size); "images" is left out, all other entries are kept. ``ValueError`` for
        images of another shape or type."""
        images = batch["images"]
        self.intensity.check(images, dims=5)
        if self.intensity.mean.device != images.device:
            self.to(images.device)
        exams, slices, channels = images.shape[:3]
        flat = self.standard({"images": images.flatten(0, 1)}, seed=seed, epoch=epoch)["views_0"]
        view = flat.view(exams, slices * channels, self.size, self.size)
        if self.transforms != "none" and self.training:
            index, draws = (batch[name].to(images.device) for name in ("index", "draw"))
            table = draw(self.words, self.word_keys, seed=seed, epoch=epoch, index=index, draw=draws, view=0)
            # The slices of an examination as the channels of one image: one grid moves them all.
            view = self.geometry(view, self.affine(table))
        view = view.view(exams, slices, channels, self.size, self.size)
        view = self.intensity.normalise(view, view)
        if "length" in batch:
            there = torch.arange(slices, device=images.device) < batch["length"].to(images.device)[:, None]
            view = view * there[:, :, None, None, None]
        return {**{name: value for name, value in batch.items() if name != "images"}, "views_0": view}

    def affine(self, draws: Draws) -> Tensor:
        """Affine maps, float32 (B, 2, 3), from the view's coordinates (x, y) in [-1, 1] to those of the slice."""
        if self.transforms == "crop":
            return self.geometry.draw(draws, self.size, self.size)
        cos, sin = look_up(self.turns, draws["rotation"]).unbind(1)
        right, down = (look_up(self.shifts, draws[word]) for word in ("shift_x", "shift_y"))
        zoom = look_up(self.scales, draws["scale"])
        # Where a pixel of the view comes from, so the motion's inverse: the shift is taken off, then zoom and rotation.
        a, b, c, d = cos / zoom, -sin / zoom, sin / zoom, cos / zoom
        rows = [a, b, -(a * right + b * down), c, d, -(c * right + d * down)]
        return torch.stack(rows, 1).view(-1, 2, 3).to(torch.float32)
