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
    noise. shading: largest relative change by the smooth bias field. blur: in-plane resolution loss, 1 is none.
    """

    site: int
    gamma: float
    gain: float
    noise: float
    shading: float
    blur: float


def scanner(site: int, seed: int) -> Scanner:
    """The scanner of a site: gamma in 0.7-1.4, gain 0.75-1, noise 0.01-0.045, shading 0.1-0.4, blur 1-1.5.

    The exam's look follows ``(site, seed)`` alone, so adding sites does not change the ones before.
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
    n, slices, height, width = volume.shape
    image = volume
    if scanner.blur > 1.0:
        coarse = (max(1, round(height / scanner.blur)), max(1, round(width / scanner.blur)))
        image = F.interpolate(image, size=coarse, mode="bilinear", antialias=True)
        image = F.interpolate(image, size=(height, width), mode="bilinear")
    image = scanner.gain * image.clamp(0.0, 1.0) ** scanner.gamma
    depth = axis(slices) if magnitude else torch.zeros(1)
    field = smooth_field(fold_each(keys, "shading"), (depth, axis(height), axis(width)), (1, 2, 2))
    image = image * (1.0 + scanner.shading * field.clamp(-2.0, 2.0) / 2.0)
    radius, angle = complex_noise(fold_each(keys, "noise"), slices * height * width)
    real = (scanner.noise * radius * torch.cos(angle)).view(n, slices, height, width)
    if not magnitude:
        return (image + real).clamp(0.0, 1.0)
    imaginary = (scanner.noise * radius * torch.sin(angle)).view(n, slices, height, width)
    return torch.hypot(image + real, imaginary).clamp(0.0, 1.0)


def fold_each(subjects: Tensor, *parts: int | str) -> Tensor:
    """One substream per subject: (N,) int64 keys folded with words."""
    return keys(subjects, *parts)


def complex_noise(subjects: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Radius and angle of ``count`` standard complex normals per key, (N, count) float32 each.

    One hash gives both: its upper half the radius, its lower half the angle (Box and Muller).
    """
    hashed = keys(subjects[:, None], torch.arange(count))
    upper = (shift(hashed, 40).to(torch.float32) + 1.0) * 2.0**-24
    lower = (hashed & 0xFFFFFF).to(torch.float32) * (2.0 * math.pi * 2.0**-24)
    return torch.sqrt(-2.0 * torch.log(upper)), lower


def axis(count: int) -> Tensor:
    """Centres of ``count`` equal cells of [0, 1], (count,) float32."""
    return (torch.arange(count, dtype=torch.float32) + 0.5) / count


def spline(positions: Tensor, cells: int) -> Tensor:
    """Cubic B-spline weights, (n, cells + 3) float32, of positions in [0, 1] on ``cells`` equal cells.

    Scaled so that independent standard normal coefficients give values of variance one on average.
    """
    scaled = positions.clamp(0.0, 1.0) * cells
    knots = torch.arange(cells + 3, dtype=torch.float32) - 1.0
    d = (scaled[:, None] - knots).abs()
    near, far = 2.0 / 3.0 - d**2 + d**3 / 2.0, (2.0 - d).clamp(min=0.0) ** 3 / 6.0
    return torch.where(d < 1.0, near, far) / math.sqrt(0.4794)


def smooth_field(subjects: Tensor, axes: tuple[Tensor, Tensor, Tensor], cells: tuple[int, int, int]) -> Tensor:
    """Smooth random fields of about zero mean and unit variance, (N, D, H, W) float32.

    A tensor product of cubic B-splines over keyed normal coefficients: a function of position, so that the same key
    read along other axes (another plane, another resolution) is the same field. axes: positions in [0, 1] along each
    dimension. cells: how many cells the unit cube has along each; more cells, finer texture.
    """
    counts = [count + 3 for count in cells]
    radius, angle = complex_noise(subjects, math.prod(counts))
    values = (radius * torch.cos(angle)).view(-1, *counts)
    for position, count in zip(axes, cells, strict=True):
        # The contracted dimension goes last, so three passes bring the axes back to their order.
        values = torch.tensordot(values, spline(position, count), dims=([1], [1]))
    return values
