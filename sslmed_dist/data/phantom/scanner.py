"""What a site's scanner does to an image, and the smooth random fields that phantoms are textured and bent with.

A phantom is drawn twice: anatomy from the key of its subject, appearance from the scanner of its site. Two sites differ
in contrast, gain, noise, coil shading and resolution, never in what there is to see.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sslmed_dist.randomness import keys, shift, uniform

# Steps between neighbouring sites on the unit circle (fractional parts of irrational numbers): sites 0, 1, 2, ... stay
# well apart for every seed, which independent draws would not promise.
GOLDEN, SILVER, BRONZE = 0.6180339887, 0.4142135624, 0.3027756377


@dataclass(frozen=True)
class Scanner:
    """Image formation of one site; intensities are in [0, 1], lengths in pixels.

    gamma: exponent of the intensity curve. gain: factor on all intensities. noise: standard deviation of the receiver
    noise. shading: largest relative change by the smooth bias field. blur: factor by which the in-plane resolution is
    reduced, 1 is none.
    """

    site: int
    gamma: float
    gain: float
    noise: float
    shading: float
    blur: float


def scanner(site: int, seed: int) -> Scanner:
    """The scanner of a site: gamma in 0.7-1.4, gain 0.75-1, noise 0.01-0.045, shading 0.1-0.4, blur 1-1.5.

    It depends on ``(site, seed)`` alone, so adding sites does not change the ones before. ``ValueError`` for a negative
    ``site``.
    """

    def spread(name: str, step: float, low: float, high: float) -> float:
        position = (float(uniform(seed, "scanner", name)) + site * step) % 1.0
        return low + (high - low) * position

    if site < 0:
        raise ValueError(f"site: expected a number from 0, got {site}")
    return Scanner(
        site=site,
        gamma=0.7 * 2.0 ** spread("gamma", GOLDEN, 0.0, 1.0),
        gain=spread("gain", SILVER, 0.75, 1.0),
        noise=spread("noise", BRONZE, 0.01, 0.045),
        shading=spread("shading", GOLDEN, 0.1, 0.4),
        blur=spread("blur", SILVER, 1.0, 1.5),
    )


def acquire(volume: Tensor, scanner: Scanner, keys: Tensor, *, magnitude: bool = True) -> Tensor:
    """Images as ``scanner`` would record them: resolution, then contrast, then shading, then noise.

    volume: (N, S, H, W) float32 in [0, 1], S slices (``magnitude``) or colour channels. keys: (N,) int64, one per
    volume; the result depends on nothing else. magnitude: Rician noise (the modulus of a complex signal) and shading
    that varies along S, as in MR; otherwise Gaussian noise and one shading for all channels. Returns (N, S, H, W)
    float32 in [0, 1].
    """
    count, slices, height, width = volume.shape
    image = volume
    # resolution: down to a coarser grid and back
    if scanner.blur > 1.0:
        coarse = (max(1, round(height / scanner.blur)), max(1, round(width / scanner.blur)))
        image = F.interpolate(image, size=coarse, mode="bilinear", antialias=True)
        image = F.interpolate(image, size=(height, width), mode="bilinear")
    image = scanner.gain * image.clamp(0.0, 1.0) ** scanner.gamma
    # shading: one smooth field per volume; colour channels share it
    depth = axis(slices) if magnitude else torch.zeros(1)
    field = smooth_field(fold_each(keys, "shading"), (depth, axis(height), axis(width)), (1, 2, 2))  # (N, S or 1, H, W)
    image = image * (1.0 + scanner.shading * field.clamp(-2.0, 2.0) / 2.0)
    # noise: real part, and for magnitude images the imaginary part too
    radius, angle = complex_noise(fold_each(keys, "noise"), slices * height * width)
    real_noise = (scanner.noise * radius * torch.cos(angle)).view(count, slices, height, width)
    if not magnitude:
        return (image + real_noise).clamp(0.0, 1.0)
    imaginary_noise = (scanner.noise * radius * torch.sin(angle)).view(count, slices, height, width)
    return torch.hypot(image + real_noise, imaginary_noise).clamp(0.0, 1.0)


def fold_each(subjects: Tensor, *parts: int | str) -> Tensor:
    """A key for one purpose per subject: (N,) int64 keys folded with words or integers."""
    return keys(subjects, *parts)


def complex_noise(subjects: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Radius and angle of ``count`` standard complex normals per key, (N, count) float32 each (Box and Muller).

    radius * cos(angle) and radius * sin(angle) are independent standard normals. One hash gives both: its upper 24 bits
    the radius, its lower 24 bits the angle.
    """
    hashed = keys(subjects[:, None], torch.arange(count))  # (N, count) int64
    # uniform in (0, 1], without 0, whose logarithm is infinite; then uniform in [0, 2 pi)
    unit = (shift(hashed, 40).to(torch.float32) + 1.0) * 2.0**-24
    angle = (hashed & 0xFFFFFF).to(torch.float32) * (2.0 * math.pi * 2.0**-24)
    return torch.sqrt(-2.0 * torch.log(unit)), angle


def axis(count: int) -> Tensor:
    """Centres of ``count`` equal cells of [0, 1], (count,) float32."""
    return (torch.arange(count, dtype=torch.float32) + 0.5) / count


def spline(positions: Tensor, cells: int) -> Tensor:
    """Cubic B-spline weights, (n, cells + 3) float32, of positions in [0, 1] on ``cells`` equal cells.

    Scaled so that independent standard normal coefficients give values of variance one on average.
    """
    # the weight of a knot depends on its distance in cells: two cubic pieces, zero from 2 cells on
    scaled = positions.clamp(0.0, 1.0) * cells
    knots = torch.arange(cells + 3, dtype=torch.float32) - 1.0
    distance = (scaled[:, None] - knots).abs()
    near, far = 2.0 / 3.0 - distance**2 + distance**3 / 2.0, (2.0 - distance).clamp(min=0.0) ** 3 / 6.0
    return torch.where(distance < 1.0, near, far) / math.sqrt(0.4794)


def smooth_field(subjects: Tensor, axes: tuple[Tensor, Tensor, Tensor], cells: tuple[int, int, int]) -> Tensor:
    """Smooth random fields of about zero mean and unit variance, (N, D, H, W) float32.

    Normal coefficients, made from ``subjects`` (N,) int64 keys, are interpolated by cubic B-splines along three
    dimensions. The field is a function of position, so the same key read along other axes (another plane, another
    resolution) is the same field. axes: positions in [0, 1] along each dimension, (D,), (H,), (W,). cells: how many
    cells the unit cube has along each; more cells, finer texture.
    """
    # a spline over n cells has n + 3 coefficients
    counts = [count + 3 for count in cells]
    radius, angle = complex_noise(subjects, math.prod(counts))
    values = (radius * torch.cos(angle)).view(-1, *counts)
    for position, count in zip(axes, cells, strict=True):
        # The contracted dimension goes last, so three passes bring the axes back to their order.
        values = torch.tensordot(values, spline(position, count), dims=([1], [1]))
    return values
