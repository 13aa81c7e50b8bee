"""The geometric transforms of the thesis's pretext tasks (Sec. 3.3.1, Alg. 3.2): rotation, shift and scale.

The finite set has 54 members: G = {-r, 0, r} degrees x {-t, 0, t}^2 pixels x {1, s}. Of ``range`` angle and shift are
uniform in the intervals instead; the scale is one of the two in both.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sslmed_dist.arguments import require_between
from sslmed_dist.views.draws import Draws, levels, look_up

Transforms = Literal["range", "grid54"]
Fill = Literal["border", "zeros"]  # past the edge: the edge's own pixels once more, or black
COUNT = 54  # 3 angles x 3 shifts across x 3 shifts down x 2 scales


@dataclass(frozen=True)
class Placed:
    """Transforms of n images. ``matrix`` float32 (n, 2, 2) and ``shift`` float32 (n, 2), (x, y): the pixel at x of the
    transformed image, counted from its centre, is the pixel at ``matrix`` (x - ``shift``) of the image. ``label`` int64
    (n,): the member of G, 0 ... 53; of ``range`` it means nothing."""

    matrix: Tensor
    shift: Tensor
    label: Tensor


class TransformSet(nn.Module):
    """Draws transforms. ``rotation`` in degrees (positive is anti-clockwise), ``shift`` in pixels, ``scale`` the larger
    of the two scales."""

    turns: Tensor
    shifts: Tensor
    scales: Tensor
    words = ("rotation", "shift_x", "shift_y", "scale")

    def __init__(self, transforms: Transforms, rotation: float, shift: float, scale: float) -> None:
        """``ValueError`` that begins with the name of a bad field."""
        super().__init__()
        require_between("rotation", rotation, 0.0, 180.0)
        require_between("scale", scale, 1.0, 10.0)
        if transforms == "grid54":
            angles, moves = (torch.tensor([-value, 0.0, value], dtype=torch.float64) for value in (rotation, shift))
        else:
            angles, moves = levels(-rotation, rotation), levels(-shift, shift)
        turns = torch.stack([torch.cos(angles * (math.pi / 180)), torch.sin(angles * (math.pi / 180))], 1)
        # Tables of functions of the draws (see ``views.draws``).
        self.register_buffer("turns", turns.float(), persistent=False)
        self.register_buffer("shifts", moves.float(), persistent=False)
        self.register_buffer("scales", torch.tensor([1.0, 1.0 / scale]), persistent=False)  # of the inverse map

    def forward(self, draws: Draws) -> Placed:
        """The transforms that the draws of ``words`` choose, one per sample."""
        cos, sin = look_up(self.turns, draws["rotation"]).unbind(-1)
        inverse = look_up(self.scales, draws["scale"])
        matrix = torch.stack([cos * inverse, -sin * inverse, sin * inverse, cos * inverse], -1).view(-1, 2, 2)
        shift = torch.stack([look_up(self.shifts, draws["shift_x"]), look_up(self.shifts, draws["shift_y"])], -1)
        parts = [(draws[word] * (2 if word == "scale" else 3)).to(torch.int64) for word in self.words]
        label = ((parts[0] * 3 + parts[1]) * 3 + parts[2]) * 2 + parts[3]
        return Placed(matrix, shift, label)


def sampling_grid(placed: Placed, corner: Tensor, source: int, size: int) -> Tensor:
    """For ``grid_sample``, float32 (n, size, size, 2): where the window of ``size`` pixels whose first pixel is
    ``corner`` (n, 2), (x, y), of the transformed image lies in the image of ``source`` pixels.

    Separate multiplications and additions: a batched matrix product may round differently in another batch.
    """
    centre = (source - 1) / 2
    start = corner.to(torch.float32) - centre - placed.shift  # (n, 2)
    steps = torch.arange(size, device=corner.device, dtype=torch.float32)
    unit = placed.matrix * (2.0 / source)  # to the coordinates [-1, 1] of grid_sample
    x, y = start[:, :1] + steps, start[:, 1:] + steps  # (n, size) each
    # Points as complex numbers x + iy: adding pairs is contiguous, adding every other number twice is not.
    by_x, by_y = torch.view_as_complex(unit.transpose(1, 2).contiguous()).unbind(1)  # (n,) each
    return torch.view_as_real((by_x[:, None] * x)[:, None, :] + (by_y[:, None] * y)[:, :, None])


def whole_pixels(share: float, side: int) -> int:
    """[``share`` x ``side``], the whole part, as the thesis's brackets: 6 of a patch of 64, 25 of a slice of 256."""
    return math.floor(share * side + 1e-9)
