"""Shape phantoms: one textured shape on a textured background, a stand-in for photographs at 32 or 64 pixels.

The class is the shape. Colour, polarity, place, rotation, size, texture and background are drawn independently of it.
Neighbours in pixel space therefore share a background and not a class. An encoder finds the class when it ignores all
of these.

A shape is a function from coordinates x, y (tensors of equal shape) to signed distances of that shape, negative inside.
Its outline is about one unit from the origin.
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslmed_dist.data.phantom.publish import assign_sites, publish, require_counts
from sslmed_dist.data.phantom.scanner import acquire, axis, fold_each, scanner, smooth_field
from sslmed_dist.randomness import integers, keys, order, uniform_between

Distance = Callable[[Tensor, Tensor], Tensor]


def box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    """Signed distance to an upright rectangle at the origin (exact inside and beside its edges)."""
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def disc(x: Tensor, y: Tensor) -> Tensor:
    """Distance to a disc."""
    return torch.hypot(x, y) - 0.9


def square(x: Tensor, y: Tensor) -> Tensor:
    """Distance to a square."""
    return box(x, y, 0.78, 0.78)


def polygon(x: Tensor, y: Tensor, corners: int, inner: float) -> Tensor:
    """Signed distance to a regular polygon of radius 1 (``inner`` = cos(pi / corners)), or for a smaller ``inner`` to a
    star.

    ``inner`` is the radius of the outline half-way between two corners. The plane is folded into one half sector, where
    the outline is a single straight edge.
    """
    # the angle from the nearest corner, in [-sector / 2, sector / 2]; its sign is dropped by the mirror symmetry
    sector = 2.0 * math.pi / corners
    angle = torch.remainder(torch.atan2(x, y) + sector / 2, sector) - sector / 2
    radius = torch.hypot(x, y)
    across, along = radius * torch.sin(angle).abs(), radius * torch.cos(angle)
    # the edge runs from the corner at (0, 1) to ``corner``; the distance is the cross product with its unit vector
    corner = (inner * math.sin(sector / 2), inner * math.cos(sector / 2))
    edge = (corner[0], corner[1] - 1.0)
    length = math.hypot(*edge)
    return (across * -edge[1] + (along - 1.0) * edge[0]) / length


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """Distance to an equilateral triangle."""
    return polygon(x, y, 3, math.cos(math.pi / 3)) - 0.05


def ring(x: Tensor, y: Tensor) -> Tensor:
    """Distance to a ring."""
    return (torch.hypot(x, y) - 0.7).abs() - 0.22


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Distance to a cross of equal arms."""
    return torch.minimum(box(x, y, 0.95, 0.28), box(x, y, 0.28, 0.95))


def star(x: Tensor, y: Tensor) -> Tensor:
    """Distance to a five-pointed star."""
    return polygon(x, y, 5, 0.42)


def bars(x: Tensor, y: Tensor) -> Tensor:
    """Distance to two parallel bars."""
    return box(x.abs() - 0.55, y, 0.25, 0.9)


def crescent(x: Tensor, y: Tensor) -> Tensor:
    """Distance to a crescent: a disc less a shifted one."""
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.75 - torch.hypot(x - 0.45, y))


SHAPES: dict[str, Distance] = {
    "disc": disc,
    "square": square,
    "triangle": triangle,
    "ring": ring,
    "cross": cross,
    "star": star,
    "bars": bars,
    "crescent": crescent,
}


def coverage(subjects: Tensor, labels: Tensor, size: int) -> Tensor:
    """Share of each pixel that the shape covers, (N, size, size) float32 in [0, 1].

    ``subjects`` and ``labels`` are int64 (N,). In a field of view of [-1, 1] the centre lies within 0.4 of the middle,
    the half-extent is 0.4 to 0.75; the shape is rotated by any angle and mirrored or not.
    """

    def draw(name: str, low: float, high: float) -> Tensor:
        return uniform_between(low, high, subjects, name).to(torch.float32).view(-1, 1, 1)

    position = 2.0 * axis(size) - 1.0
    x, y = position.view(1, 1, -1) - draw("column", -0.4, 0.4), position.view(1, -1, 1) - draw("row", -0.4, 0.4)
    angle, extent = draw("rotation", 0.0, 2.0 * math.pi), draw("extent", 0.4, 0.75)
    mirror = torch.where(draw("mirror", 0.0, 1.0) < 0.5, -1.0, 1.0)
    # the shape's own coordinates: moved, rotated, mirrored, scaled to its unit size; (N, size, size)
    across = mirror * (torch.cos(angle) * x + torch.sin(angle) * y) / extent
    along = (torch.cos(angle) * y - torch.sin(angle) * x) / extent
    distance = torch.empty_like(across)
    for shape_index, shape_distance in enumerate(SHAPES.values()):
        chosen = labels == shape_index
        distance[chosen] = shape_distance(across[chosen], along[chosen])
    # back from shape units to pixels: the edge is one pixel wide
    return (0.5 - distance * extent * (size / 2.0)).clamp(0.0, 1.0)


def texture(subjects: Tensor, size: int) -> Tensor:
    """A grey pattern per subject, (N, size, size) float32 in [0, 1]: stripes, checks, blotches, speckle or a ramp."""

    def draw(name: str, low: float, high: float) -> Tensor:
        return uniform_between(low, high, subjects, name).to(torch.float32).view(-1, 1, 1)

    position = 2.0 * axis(size) - 1.0
    angle, frequency, phase = draw("angle", 0.0, math.pi), draw("frequency", 4.0, 12.0), draw("phase", 0.0, 6.28)
    # coordinates in a rotated frame, (N, size, size)
    along = torch.cos(angle) * position.view(1, 1, -1) + torch.sin(angle) * position.view(1, -1, 1)
    across = torch.cos(angle) * position.view(1, -1, 1) - torch.sin(angle) * position.view(1, 1, -1)
    axes = (torch.tensor([0.5]), axis(size), axis(size))
    stripes = 0.5 + 0.5 * torch.sin(frequency * along + phase)
    checks = 0.5 + 0.5 * torch.tanh(3.0 * torch.sin(frequency * along + phase) * torch.sin(frequency * across))
    blotches = torch.sigmoid(1.5 * smooth_field(fold_each(subjects, "blotches"), axes, (1, 5, 5))[:, 0])
    speckle = torch.sigmoid(1.5 * smooth_field(fold_each(subjects, "speckle"), axes, (1, 14, 14))[:, 0])
    ramp = (0.5 + 0.4 * along).clamp(0.0, 1.0)
    # all five are made for every subject, and one is taken
    patterns = torch.stack([stripes, checks, blotches, speckle, ramp], dim=1)  # (N, 5, size, size)
    return patterns[torch.arange(len(subjects)), integers(patterns.shape[1], subjects, "pattern")]


def colours(subjects: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Foreground colour, background colour and amplitude of the texture, (N, channels, 1, 1) float32 each.

    Foreground and background differ in brightness by 0.35-0.65, with either sign, so that the shape can be seen and its
    polarity says nothing.
    """

    def tint(name: str, width: float) -> Tensor:
        drawn = uniform_between(-width, width, subjects[:, None], name, torch.arange(channels))
        return drawn.to(torch.float32).view(-1, channels, 1, 1)

    def draw(name: str, low: float, high: float) -> Tensor:
        return uniform_between(low, high, subjects, name).to(torch.float32).view(-1, 1, 1, 1)

    step = draw("contrast", 0.35, 0.65) * torch.where(draw("polarity", 0.0, 1.0) < 0.5, -1.0, 1.0)
    middle, hue = draw("brightness", 0.4, 0.6), 0.2 if channels > 1 else 0.0
    return (
        middle + step / 2 + tint("shape", hue),
        middle - step / 2 + tint("ground", hue),
        tint("pattern", 0.3 if channels > 1 else 0.4),
    )


def draw_shapes(subjects: Tensor, labels: Tensor, *, size: int, channels: int) -> Tensor:
    """Shape pictures before acquisition, (N, channels, size, size) float32 in [0, 1].

    subjects: (N,) int64 keys. labels: (N,) int64 positions in ``SHAPES``.
    """
    share = coverage(fold_each(subjects, "coverage"), labels, size)[:, None]  # (N, 1, size, size)
    front, ground, pattern = colours(fold_each(subjects, "colours"), channels)
    # the shape has a faint texture and the background a strong one; then the shape is laid over the background
    front = front + 0.35 * pattern * (2.0 * texture(fold_each(subjects, "front"), size)[:, None] - 1.0)
    ground = ground - pattern * (2.0 * texture(fold_each(subjects, "ground"), size)[:, None] - 1.0)
    return (ground + share * (front - ground)).clamp(0.0, 1.0)


def shape_set(
    first: int, count: int, *, sites: int, size: int, channels: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 (count, channels, size, size), labels and sites int64 (count,) of subjects ``first`` onwards.

    Classes and sites are balanced, and independent of each other.
    """
    ids = torch.arange(first, first + count)
    labels = torch.empty(count, dtype=torch.int64)
    labels[order(ids, seed, "shapes", "labels")] = torch.arange(count) % len(SHAPES)
    site_of_image = assign_sites(ids, sites, seed)
    subjects = keys(seed, "shapes", ids)
    images = torch.empty(count, channels, size, size, dtype=torch.uint8)
    # every site has its scanner; 256 images at a time bound the memory
    for site in range(sites):
        for batch in torch.split(torch.nonzero(site_of_image == site).flatten(), 256):
            clean = draw_shapes(subjects[batch], labels[batch], size=size, channels=channels)
            recorded = acquire(clean, scanner(site, seed), fold_each(subjects[batch], "acquire"), magnitude=False)
            images[batch] = (255.0 * recorded).round().to(torch.uint8)
    return images, labels, site_of_image


def write_shapes(
    root: str | Path,
    *,
    train: int = 2000,
    val: int = 400,
    test: int = 600,
    sites: int = 3,
    size: int = 32,
    channels: int = 3,
    seed: int = 0,
) -> Path:
    """Write ``shapes.npz`` in MedMNIST's keys into the folder ``root`` and return the folder.

    Keys: ``{train,val,test}_images`` uint8 (N, size, size) or (N, size, size, 3), ``*_labels`` uint8 (N, 1) and
    ``*_sites`` int64 (N,). ``ValueError`` for channels other than 1 and 3, a size below 16, negative counts, or a
    folder that holds something else.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels: expected 1 or 3, got {channels}")
    if size < 16:
        raise ValueError(f"size: expected at least 16 pixels, got {size}")
    counts = {"train": train, "val": val, "test": test}
    require_counts(**counts)
    spec = {"kind": "shapes", "version": 1, **counts, "sites": sites, "size": size, "channels": channels, "seed": seed}
    spec["classes"] = list(SHAPES)
    spec["scanners"] = [asdict(scanner(site, seed)) for site in range(sites)]

    def fill(folder: Path) -> None:
        arrays: dict[str, np.ndarray] = {}
        first = 0
        for split, count in counts.items():
            images, labels, image_sites = shape_set(first, count, sites=sites, size=size, channels=channels, seed=seed)
            pixels = images.permute(0, 2, 3, 1) if channels > 1 else images[:, 0]
            arrays[f"{split}_images"] = np.ascontiguousarray(pixels.numpy())
            arrays[f"{split}_labels"] = labels.to(torch.uint8).numpy()[:, None]
            arrays[f"{split}_sites"] = image_sites.numpy()
            first += count
        np.savez(folder / "shapes.npz", **arrays)  # type: ignore[arg-type]

    return publish(root, spec, fill)
