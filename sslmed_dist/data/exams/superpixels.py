"""Superpixels of the slices of a volume, the pseudo-masks of one-shot segmentation without labels.

The method is that of Felzenszwalb and Huttenlocher 2004, "Efficient graph-based image segmentation". It runs on the raw
intensities of each slice, inside the body (Ouyang et al. 2020). At ``scale`` 1 on raw MR intensities ``min_size`` alone
decides on the partition. A superpixel of which the body's outline leaves only a sliver is no pseudo-mask: the part
inside the body must have a quarter of ``min_size`` or more. By default that is 100 pixels of a 256 x 256 slice, one and
a half cells of a feature map of stride 8. A smaller mask vanishes at that stride, and an episode without a mask teaches
nothing.

Maps are cached, one file per volume. The file's name is the hash of the voxels, the parameters, and the versions of
scikit-image and of this file. A warm cache is read without scikit-image and scipy.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.data.npz import read_archive
from sslmed_dist.data.workers import in_processes
from sslmed_dist.printable import note

VERSION = 1  # of this file: to be raised by every change that changes maps
LEAST = 4  # the smallest pseudo-mask is min_size // LEAST pixels
ABOVE = 1e-4  # a body pixel is brighter than the threshold by more than this
Slices = np.ndarray[tuple[int, ...], np.dtype[np.float32]]  # (S, H, W) or (H, W)
Maps = np.ndarray[tuple[int, ...], np.dtype[np.uint16]]
Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True)
class Recipe:
    """The parameters: ``scale``, ``sigma`` (pixels) and ``min_size`` (pixels) of Felzenszwalb's method, and
    ``body_threshold``, the intensity above which a pixel may be of the body. Its 50 is for raw T2-SPIR as CHAOS stores
    it; other data needs its own."""

    scale: float = 1.0
    sigma: float = 1.0
    min_size: int = 400
    body_threshold: float = 50.0

    def __post_init__(self) -> None:
        """``ValueError`` naming the parameter that is out of range."""
        for name, value, low in (("scale", self.scale, 0.0), ("sigma", self.sigma, 0.0)):
            if not value >= low:
                raise ValueError(f"{name}: expected {low:g} or more, got {value}")
        if self.min_size < 1:
            raise ValueError(f"min_size: expected at least 1 pixel, got {self.min_size}")
        if not np.isfinite(self.body_threshold):
            raise ValueError(f"body_threshold: expected an intensity, got {self.body_threshold}")

    def least(self, zoom: float = 1.0) -> int:
        """The least number of pixels of a pseudo-mask, in a slice whose sides were multiplied by ``zoom``."""
        return max(1, int(self.min_size * zoom**2) // LEAST)


def body_mask(image: Slices, threshold: float = 50.0) -> Mask:
    """Bool (H, W), the body in a slice ``image`` (H, W). Of the pixels brighter than ``threshold`` + 1e-4 it is the
    largest connected component (pixels are connected at sides and corners), its holes filled. All false where no pixel
    is that bright."""
    from scipy import ndimage

    bright = np.asarray(image) > threshold + ABOVE
    if not bright.any():
        return bright
    # the background is component 0: it may be the largest, and is none
    components, _ = ndimage.label(bright, structure=np.ones((3, 3)))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    filled: Mask = ndimage.binary_fill_holes(components == sizes.argmax())
    return filled


def superpixels(image: Slices, recipe: Recipe) -> Maps:
    """Uint16 (H, W): superpixels 1 ... n inside the body and 0 elsewhere; all 0 in a slice without a body. Each has
    ``recipe.least()`` pixels or more.

    ``image`` is a slice of raw intensities. ``ValueError`` when there are more than 32,767.
    """
    inside = body_mask(image, recipe.body_threshold)
    if not inside.any():
        return np.zeros(inside.shape, dtype=np.uint16)
    from skimage.segmentation import felzenszwalb

    # float64: whole numbers would be divided by the largest of their type first
    exact = np.asarray(image, dtype=np.float64)
    regions = felzenszwalb(exact, scale=recipe.scale, sigma=recipe.sigma, min_size=recipe.min_size, channel_axis=None)
    # regions count from 0: raised by 1, so that 0 is left for what lies outside the body
    return relabel(np.where(inside, np.asarray(regions) + 1, 0), recipe.least())


def relabel(labels: "np.ndarray[Any, np.dtype[Any]]", least: int) -> Maps:
    """The labels (0 = none) with ``least`` pixels or more, numbered anew as 1 ... n in their order; the others become
    0. uint16 of the shape of ``labels``. ``ValueError`` for more than 32,767 labels."""
    sizes = np.bincount(labels.ravel())
    large_enough = sizes >= least
    large_enough[0] = False
    if large_enough.sum() > np.iinfo(np.int16).max:
        raise ValueError(
            f"min_size: {int(large_enough.sum())} superpixels in a slice, more than can be numbered; raise it"
        )
    # a table from old labels to new ones, looked up at every pixel
    new_labels = np.where(large_enough, np.cumsum(large_enough), 0).astype(np.uint16)
    result: Maps = new_labels[labels]
    return result


def volume_superpixels(slices: Slices, recipe: Recipe) -> Maps:
    """Uint16 (S, H, W): ``superpixels`` of each slice (S, H, W)."""
    return np.stack([superpixels(image, recipe) for image in slices])


def superpixel_maps(
    volumes: Sequence[Slices],
    recipe: Recipe,
    *,
    names: Sequence[str],
    cache: Path | None,
    workers: int = 2,
) -> list[Maps]:
    """The superpixels of every volume (S, H, W) of raw intensities, uint16 (S, H, W).

    ``cache``: folder of the cache files, None for no cache. A damaged file is written anew. Missing maps are computed
    in ``workers`` processes (1: in this one), a volume at a time. Each is stored as soon as it is done, so a run that
    was stopped continues where it was. ``names`` are for messages.
    ``ValueError``: a volume without a body, a folder that cannot be written, scikit-image not installed.
    """
    if workers < 1:
        raise ValueError(f"data.workers: expected at least 1 process, got {workers}")
    keys = [digest(slices, recipe) for slices in volumes]
    # what the cache holds; None where it holds nothing
    maps = [
        None if cache is None else read_maps(cache / f"{key}.npz", v.shape)
        for key, v in zip(keys, volumes, strict=True)
    ]
    missing = [index for index, cached in enumerate(maps) if cached is None]
    if missing and cache is not None:
        make_folder(cache)
        note(f"superpixels of {len(missing)} scans are computed first and kept in {cache}")
    for index, computed in zip(missing, compute([volumes[i] for i in missing], recipe, workers), strict=True):
        maps[index] = computed
        if cache is not None:
            write_maps(cache / f"{keys[index]}.npz", computed)
    complete = [volume_maps for volume_maps in maps if volume_maps is not None]
    for name, volume_maps in zip(names, complete, strict=True):
        if not volume_maps.any():
            raise ValueError(
                f"{name}: no superpixel in it: nothing of {recipe.least()} pixels or more is "
                f"brighter than body_threshold {recipe.body_threshold:g}; set data.body_threshold for this data"
            )
    return complete


def compute(volumes: Sequence[Slices], recipe: Recipe, workers: int) -> Iterator[Maps]:
    """``volume_superpixels`` of each volume in order, in up to ``workers`` processes."""
    return in_processes(partial(volume_superpixels, recipe=recipe), volumes, workers)


def digest(slices: Slices, recipe: Recipe) -> str:
    """Hexadecimal BLAKE2b of everything that maps depend on. ``ValueError`` when scikit-image is not installed."""
    try:
        versions = (VERSION, version("scikit-image"))
    except PackageNotFoundError:
        raise ValueError("superpixels: scikit-image is not installed; pip install 'sslmed-dist[medical]'") from None
    parameters = [float(value) for value in astuple(recipe)]
    hasher = hashlib.blake2b(f"{versions}{parameters}{slices.shape}{slices.dtype.str}".encode(), digest_size=20)
    hasher.update(np.ascontiguousarray(slices).data)
    return hasher.hexdigest()


def read_maps(path: Path, shape: tuple[int, ...]) -> Maps | None:
    """The maps of a cache file; None where there is no file, or a damaged one (torn, or of another shape)."""
    try:
        maps: Maps = read_archive(path, ("maps",))["maps"]
    except ValueError:
        return None
    return maps if maps.shape == shape and maps.dtype == np.uint16 else None


def make_folder(cache: Path) -> None:
    """Make the cache folder; called before anything is computed. ``ValueError`` naming ``data.cache`` if the folder is
    read-only."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise read_only(cache)


def read_only(cache: Path) -> ValueError:
    """The message of a folder that cannot be written."""
    return ValueError(f'data.cache: cannot write to {cache}; name a folder that can be written, or "" to keep no maps')


def write_maps(path: Path, maps: Maps) -> None:
    """Write a cache file whole or not at all. ``ValueError`` naming ``data.cache`` if the folder is read-only."""
    stream = io.BytesIO()
    np.savez_compressed(stream, maps=maps)
    try:
        write_atomically(path, stream.getvalue())
    except ValueError as error:
        raise read_only(path.parent) from error
