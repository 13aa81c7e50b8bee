"""Affine and elastic motion of a slice as one displacement field per sample and one bilinear resampling."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist.arguments import require_between, require_range
from sslmed_dist.views.draws import Draws, levels, look_up, sixteen_bits
from sslmed_dist.views.filters import separable
from sslmed_dist.views.geometry import Fill

NATIVE = 256  # shift, elastic and elastic_sigma are in pixels of a slice of this size


class Displacement(nn.Module):
    """Pixel x of the view shows the point A(x + d(x)) of the slice; coordinates count from the centre.

    * A is affine. What is in the slice is turned by ``rotation`` (uniform in +- degrees, positive anti-clockwise),
      sheared along the rows by ``shear`` (+- degrees), enlarged by a factor uniform in ``scale`` and then moved by
      ``shift`` (+- pixels, each axis).
    * d is elastic (Simard et al. 2003): noise uniform in [-1, 1] per pixel and axis, blurred by a Gaussian of
      ``elastic_sigma`` pixels (cut at three sigma, mirrored at the edge), times ``elastic``.

    The lengths are in pixels of a slice of 256 x 256. On one of n x n, ``shift`` and ``elastic_sigma`` are multiplied
    by n / 256, and ``elastic`` by (n / 256)^2: the noise is per pixel, and a Gaussian of sigma pixels averages it down
    by a factor sigma. So the field is the same fraction of the slice at every size.

    Past the edge of the slice is what ``fill`` says; "zeros" is the mean of a standardised volume, not its background.
    """

    turns: Tensor
    leans: Tensor
    kernel: Tensor

    def __init__(
        self,
        size: int,
        rotation: float = 5.0,
        shift: float = 5.0,
        shear: float = 5.0,
        scale: tuple[float, float] = (0.9, 1.2),
        elastic: float = 10.0,
        elastic_sigma: float = 5.0,
        fill: Fill = "border",
    ) -> None:
        """``size``: side of slice and view. ``ValueError`` naming the field for a value outside its range."""
        super().__init__()
        if size <= 0:
            raise ValueError(f"size: expected a positive number of pixels, got {size}")
        require_between("rotation", rotation, 0.0, 180.0)
        require_between("shift", shift, 0.0, NATIVE)
        require_between("shear", shear, 0.0, 60.0)
        require_range("scale", scale, 0.0)
        require_between("elastic", elastic, 0.0, math.inf)
        if not 0.0 < elastic_sigma <= NATIVE:
            raise ValueError(f"elastic_sigma: expected a number above 0 and up to {NATIVE}, got {elastic_sigma}")
        if fill not in ("reflection", "border", "zeros"):
            raise ValueError(f"fill: expected one of reflection, border, zeros, got {fill!r}")
        self.size, self.rotation, self.shear, self.fill = size, rotation, shear, fill
        self.low, self.high = float(scale[0]), float(scale[1])
        self.shift = 2.0 * shift / NATIVE  # in coordinates of [-1, 1]
        self.elastic = elastic * (size / NATIVE) ** 2 * 2.0 / size  # so is this
        self.still = not (rotation or shift or shear or elastic) and self.low == self.high == 1.0
        # Tables of (cos, sin) of the rotation and of the tangent of the shear, looked up by the draws.
        angles = levels(-math.radians(rotation), math.radians(rotation))
        self.register_buffer("turns", torch.stack([angles.cos(), angles.sin()], 1), persistent=False)
        leans = levels(-math.radians(shear), math.radians(shear)).tan()
        self.register_buffer("leans", leans, persistent=False)
        # Half of the Gaussian kernel, from the centre outwards; the full kernel sums to 1.
        sigma = elastic_sigma * size / NATIVE
        taps = torch.arange(min(math.ceil(3.0 * sigma), size - 1) + 1, dtype=torch.float64)
        half = torch.exp(-0.5 * (taps / sigma) ** 2)
        self.register_buffer("kernel", (half / (2.0 * half.sum() - 1.0)).float(), persistent=False)
        self.words = ("rotation", "shift_x", "shift_y", "shear", "scale", "elastic")

    def draw(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """A as float32 (B, 2, 3) on coordinates in [-1, 1] (x to the right, y down), and the random keys of d, int64
        (B,)."""
        cos, sin = look_up(self.turns, draws["rotation"]).unbind(1)
        lean = look_up(self.leans, draws["shear"])
        zoom = self.low + (self.high - self.low) * draws["scale"]
        right, down = (self.shift * (2.0 * draws[word] - 1.0) for word in ("shift_x", "shift_y"))
        # The grid asks where a pixel of the view comes from, so A is the inverse of the motion: [[a, b], [c, d]] undoes
        # zoom, shear and rotation, and the shift is taken off before it.
        a, b, c, d = cos / zoom, (cos * lean - sin) / zoom, sin / zoom, (sin * lean + cos) / zoom
        rows = [a, b, -(a * right + b * down), c, d, -(c * right + d * down)]
        return torch.stack(rows, 1).view(-1, 2, 3).to(torch.float32), (draws["elastic"] * 2.0**53).to(torch.int64)

    def field(self, keys: Tensor) -> Tensor:
        """d in coordinates of [-1, 1], from the random ``keys`` (n,): float32 (n, 2, size, size), x before y."""
        return separable(noise(keys, self.size), self.kernel.expand(len(keys), -1)).mul_(self.elastic)

    def grid(self, affine: Tensor, keys: Tensor) -> Tensor:
        """The points A(x + d(x)), float32 (n, size, size, 2). Separate multiplications and additions, because a matrix
        product may round differently in another batch."""
        # The middles of the pixels along an axis, in [-1, 1].
        steps = (2.0 * torch.arange(self.size, device=affine.device, dtype=torch.float32) + 1.0) / self.size - 1.0
        x, y = steps[None, None, :], steps[None, :, None]
        if self.elastic:
            across, down = self.field(keys).unbind(1)  # (n, size, size) each
            x, y = across.add_(x), down.add_(y)
        # (x, y) -> (a x + b y + e, c x + d y + f), each coefficient (n, 1, 1).
        a, b, e, c, d, f = affine.view(-1, 6)[..., None, None].unbind(1)
        return torch.stack([torch.mul(x, a) + torch.mul(y, b) + e, torch.mul(x, c) + torch.mul(y, d) + f], -1)

    def forward(self, planes: Tensor, affine: Tensor, keys: Tensor) -> Tensor:
        """``planes`` (n, C, size, size) moved, all C planes of a sample by the same field. When nothing is to be moved,
        the planes themselves."""
        if self.still:
            return planes
        grid = self.grid(affine, keys)
        return F.grid_sample(planes, grid, mode="bilinear", padding_mode=self.fill, align_corners=False)


def noise(keys: Tensor, size: int) -> Tensor:
    """White noise of each of the random ``keys`` (n,), float32 (n, 2, size, size), uniform in [-1, 1].

    The values are the middles of 65,536 steps, all exact, so that they have the same bits on every device."""
    values = sixteen_bits(keys, 2 * size * size).to(torch.float32)
    return values.add_(0.5).mul_(2.0**-15).sub_(1.0).view(len(keys), 2, size, size)
