"""A canvas for 3-D anatomy: bent coordinates, distances to simple solids, tissues painted one over the other.

Anatomy is a function of position in millimetres, so the same subject can be read along any axes and at any resolution.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sslmed_dist.data.phantom.scanner import smooth_field
from sslmed_dist.randomness import integers, key, uniform, uniform_between

Point = tuple[float, float, float]
# The distance that stands for every larger one.
FAR = 99.0


class Dice:
    """Keyed draws of one subject: the same name gives the same number, whoever asks and in whatever order."""

    def __init__(self, subject: int) -> None:
        self.subject = subject

    def between(self, low: float, high: float, name: str) -> float:
        """A number in [low, high)."""
        return float(uniform_between(low, high, self.subject, name))

    def chance(self, probability: float, name: str) -> bool:
        """An event."""
        return float(uniform(self.subject, name)) < probability

    def pick(self, low: int, high: int, name: str) -> int:
        """An integer in [low, high]."""
        return low + int(integers(high - low + 1, self.subject, name))


class Canvas:
    """Coordinates x, y, z in mm and the image painted so far, each (nz, ny, nx) float32.

    lines: the straight coordinates along z, y and x. reach: half the edge, in mm, of the cube that textures live in.
    signals: tissue -> signal in [0, 1]. bend: standard deviation in mm of a smooth displacement of everything. near:
    up to how many mm from a solid its distance is worked out. edge: width in mm of a painted edge.
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
        self.axes = (lines[0] / (2 * reach) + 0.5, lines[1] / (2 * reach) + 0.5, lines[2] / (2 * reach) + 0.5)
        self.z = lines[0].view(-1, 1, 1) + bend * self.texture("bend z", 3)
        self.y = lines[1].view(1, -1, 1) + bend * self.texture("bend y", 3)
        self.x = lines[2].view(1, 1, -1) + bend * self.texture("bend x", 3)
        self.image = torch.zeros_like(self.x)

    def texture(self, name: str, cells: int) -> Tensor:
        """A smooth field of the subject with ``cells`` cells along the cube's edge: zero mean, unit variance."""
        return smooth_field(torch.tensor([key(self.dice.subject, name)]), self.axes, (cells, cells, cells))[0]

    def paint(self, distance: Tensor, tissue: str, texture: Tensor | float = 0.0, opacity: float = 1.0) -> None:
        """Lay a tissue where ``distance`` is negative, with a soft edge; ``texture`` is relative to its signal."""
        share = (distance * (-1.0 / self.edge)).add_(0.5).clamp_(0.0, 1.0)
        if opacity != 1.0:
            share.mul_(opacity)
        self.image.lerp_(self.signals[tissue] * (1.0 + torch.as_tensor(texture)), share)

    def block(self, low: Sequence[float], high: Sequence[float]) -> tuple[slice, slice, slice]:
        """The block of voxels within the margin of a box given by two corners (x, y, z)."""
        slices = []
        for line, bottom, top in zip(self.lines, reversed(low), reversed(high), strict=True):
            inside = torch.nonzero((line > bottom - self.margin) & (line < top + self.margin)).flatten()
            slices.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
        return slices[0], slices[1], slices[2]

    def ellipsoid(self, centre: Point, radii: Point) -> Tensor:
        """Approximate distance to an ellipsoid, ``FAR`` at a distance; points and radii are (x, y, z)."""
        low, high = (tuple(c + sign * r for c, r in zip(centre, radii, strict=True)) for sign in (-1, 1))
        block, distance = self.block(low, high), torch.full_like(self.image, FAR)
        px, py, pz = (
            (line[block] - middle) / radius
            for line, middle, radius in zip((self.x, self.y, self.z), centre, radii, strict=True)
        )
        inner = torch.sqrt(px * px + py * py + pz * pz)
        slope = torch.sqrt((px / radii[0]) ** 2 + (py / radii[1]) ** 2 + (pz / radii[2]) ** 2)
        distance[block] = inner * (inner - 1.0) / (slope + 1e-6)
        return distance

    def segment(self, start: Point, end: Point, radius: float, wave: float = 0.0) -> tuple[Tensor, Tensor]:
        """Distance to a rod (``FAR`` at a distance) and the position along it in [0, 1]; ``wave`` mm of sagging."""
        low, high = (tuple(f(a, b) for a, b in zip(start, end, strict=True)) for f in (min, max))
        block = self.block([v - radius for v in low], [v + radius for v in high])
        distance, position = torch.full_like(self.image, FAR), torch.zeros_like(self.image)
        along = [b - a for a, b in zip(start, end, strict=True)]
        offset = [line[block] - a for line, a in zip((self.x, self.y, self.z), start, strict=True)]
        product = offset[0] * along[0] + offset[1] * along[1] + offset[2] * along[2]
        t = (product / sum(a * a for a in along)).clamp(0.0, 1.0)
        sag = wave * torch.sin(9.0 * t)
        squares = (offset[0] - t * along[0]) ** 2 + (offset[1] - t * along[1] - sag) ** 2
        distance[block] = torch.sqrt(squares + (offset[2] - t * along[2] + sag) ** 2) - radius
        position[block] = t
        return distance, position

    def column(self, width: Tensor, depth: Tensor, back: float | Tensor) -> Tensor:
        """Approximate distance to an upright column of elliptic section with half-axes that vary along z."""
        across, along = self.x / width, (self.y - back) / depth
        inner = torch.hypot(across, along)
        return inner * (inner - 1.0) / (torch.hypot(across / width, along / depth) + 1e-6)


def blend(a: Tensor, b: Tensor, width: float) -> Tensor:
    """Union of two shapes with a fillet of ``width`` mm."""
    h = (0.5 + 0.5 * (b - a) / width).clamp(0.0, 1.0)
    return torch.lerp(b, a, h) - width * h * (1.0 - h)


def ramp(value: Tensor) -> Tensor:
    """Smooth step from 0 to 1 over [0, 1]."""
    value = value.clamp(0.0, 1.0)
    return value * value * (3.0 - 2.0 * value)
