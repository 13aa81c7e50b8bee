"""A canvas for 3-D anatomy: bent coordinates, distances to simple solids, tissues painted one over the other.

Anatomy is a function of position in millimetres, so the same subject can be read along any axes and at any resolution.

A solid is a tensor of signed distances in mm, one per voxel: negative inside, positive outside, 0 on the surface. The
larger of two distances is therefore their intersection, the smaller one their union, and a minus sign turns a solid
inside out. ``distance + 2`` is the solid that is 2 mm smaller all around.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sslmed_dist.data.phantom.scanner import smooth_field
from sslmed_dist.randomness import integers, key, uniform, uniform_between

Point = tuple[float, float, float]
FAR = 99.0  # mm; stands for the distance of every voxel too far from a solid for it to be worked out


class Dice:
    """Keyed random draws of one subject: the same name gives the same number, in whatever order they are asked for."""

    def __init__(self, subject: int) -> None:
        self.subject = subject

    def between(self, low: float, high: float, name: str) -> float:
        """A number in [low, high)."""
        return float(uniform_between(low, high, self.subject, name))

    def chance(self, probability: float, name: str) -> bool:
        """True with this ``probability``."""
        return float(uniform(self.subject, name)) < probability

    def pick(self, low: int, high: int, name: str) -> int:
        """An integer in [low, high], both ends included."""
        return low + int(integers(high - low + 1, self.subject, name))


class Canvas:
    """Coordinates x, y, z in mm and the image painted so far, each (nz, ny, nx) float32.

    lines: the straight coordinates along z (nz,), y (ny,) and x (nx,). reach: half the edge, in mm, of the cube that
    textures fill. signals: tissue -> signal in [0, 1]. bend: standard deviation in mm of the smooth displacement that
    bends the coordinates, and so all anatomy. near: distances are worked out up to this many mm from a solid. edge:
    width in mm of the soft edge of a painted tissue.
    """

    def __init__(
        self,
        dice: Dice,
        lines: tuple[Tensor, Tensor, Tensor],
        *,
        reach: float,
        signals: Mapping[str, float],
        bend: float,
        near: float,
        edge: float,
    ) -> None:
        self.dice, self.lines, self.signals, self.edge = dice, lines, signals, edge
        self.margin = near + 4.0 * bend  # straight coordinates are off by the bending, at most about 4 sd
        # positions in the textures' cube, scaled to [0, 1]
        self.axes = (lines[0] / (2 * reach) + 0.5, lines[1] / (2 * reach) + 0.5, lines[2] / (2 * reach) + 0.5)
        # each straight coordinate, broadcast along the other two axes, plus its displacement: (nz, ny, nx)
        self.z = lines[0].view(-1, 1, 1) + bend * self.texture("bend z", 3)
        self.y = lines[1].view(1, -1, 1) + bend * self.texture("bend y", 3)
        self.x = lines[2].view(1, 1, -1) + bend * self.texture("bend x", 3)
        self.image = torch.zeros_like(self.x)

    def texture(self, name: str, cells: int) -> Tensor:
        """A smooth random field (nz, ny, nx) of the subject, zero mean, unit variance; more ``cells``, finer grain."""
        return smooth_field(torch.tensor([key(self.dice.subject, name)]), self.axes, (cells, cells, cells))[0]

    def paint(self, distance: Tensor, tissue: str, texture: Tensor | float = 0.0, opacity: float = 1.0) -> None:
        """Lay a tissue where ``distance`` (nz, ny, nx) is negative, with a soft edge.

        Its signal is multiplied by 1 + ``texture``; ``opacity`` below 1 lets what lies beneath shine through.
        """
        # share of the tissue in each voxel: 1 inside, 0 outside, a ramp of width ``edge`` across the surface
        share = (distance * (-1.0 / self.edge)).add_(0.5).clamp_(0.0, 1.0)
        if opacity != 1.0:
            share.mul_(opacity)
        self.image.lerp_(self.signals[tissue] * (1.0 + torch.as_tensor(texture)), share)

    def block(self, low: Sequence[float], high: Sequence[float]) -> tuple[slice, slice, slice]:
        """Slices along z, y, x of the voxels in and near the box between the corners ``low`` and ``high`` (x, y, z).

        Only there a solid's distance has to be worked out.
        """
        slices = []
        for line, bottom, top in zip(self.lines, reversed(low), reversed(high), strict=True):
            inside = torch.nonzero((line > bottom - self.margin) & (line < top + self.margin)).flatten()
            slices.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
        return slices[0], slices[1], slices[2]

    def ellipsoid(self, centre: Point, radii: Point) -> Tensor:
        """Approximate signed distance (nz, ny, nx) to an ellipsoid, ``FAR`` away from it; arguments are (x, y, z)."""
        low, high = (tuple(c + sign * r for c, r in zip(centre, radii, strict=True)) for sign in (-1, 1))
        block, distance = self.block(low, high), torch.full_like(self.image, FAR)
        # p is the position in units of the radii, so the surface is |p| = 1
        px, py, pz = (
            (line[block] - middle) / radius
            for line, middle, radius in zip((self.x, self.y, self.z), centre, radii, strict=True)
        )
        inner = torch.sqrt(px * px + py * py + pz * pz)
        # |p| (|p| - 1) over the length of p / radii: the first-order distance, exact for a sphere
        slope = torch.sqrt((px / radii[0]) ** 2 + (py / radii[1]) ** 2 + (pz / radii[2]) ** 2)
        distance[block] = inner * (inner - 1.0) / (slope + 1e-6)
        return distance

    def segment(self, start: Point, end: Point, radius: float, wave: float = 0.0) -> tuple[Tensor, Tensor]:
        """Signed distance to a rod from ``start`` to ``end``, and the position along it in [0, 1]: (nz, ny, nx) each.

        The distance is ``FAR`` away from the rod. ``wave`` is the amplitude in mm of a wave along it.
        """
        low, high = (tuple(f(a, b) for a, b in zip(start, end, strict=True)) for f in (min, max))
        block = self.block([value - radius for value in low], [value + radius for value in high])
        distance, position = torch.full_like(self.image, FAR), torch.zeros_like(self.image)
        direction = [b - a for a, b in zip(start, end, strict=True)]
        offset = [line[block] - a for line, a in zip((self.x, self.y, self.z), start, strict=True)]
        # the nearest point of the axis: project the voxel on it, and stop at its ends
        product = offset[0] * direction[0] + offset[1] * direction[1] + offset[2] * direction[2]
        nearest = (product / sum(a * a for a in direction)).clamp(0.0, 1.0)
        sag = wave * torch.sin(9.0 * nearest)
        squares = (offset[0] - nearest * direction[0]) ** 2 + (offset[1] - nearest * direction[1] - sag) ** 2
        distance[block] = torch.sqrt(squares + (offset[2] - nearest * direction[2] + sag) ** 2) - radius
        position[block] = nearest
        return distance, position

    def column(self, width: Tensor, depth: Tensor, back: float | Tensor) -> Tensor:
        """Approximate signed distance (nz, ny, nx) to an upright column of elliptic section.

        ``width`` and ``depth`` are the half-axes along x and y in mm, which may vary along z; ``back`` is the y of its
        centre. The approximation is that of ``ellipsoid``.
        """
        across, deep = self.x / width, (self.y - back) / depth
        inner = torch.hypot(across, deep)
        return inner * (inner - 1.0) / (torch.hypot(across / width, deep / depth) + 1e-6)


def blend(a: Tensor, b: Tensor, width: float) -> Tensor:
    """Union of two solids whose seam is rounded over ``width`` mm (a polynomial smooth minimum)."""
    share = (0.5 + 0.5 * (b - a) / width).clamp(0.0, 1.0)
    return torch.lerp(b, a, share) - width * share * (1.0 - share)


def ramp(value: Tensor) -> Tensor:
    """Smooth step: 0 below 0, 1 above 1, and a cubic without corners between."""
    value = value.clamp(0.0, 1.0)
    return value * value * (3.0 - 2.0 * value)
