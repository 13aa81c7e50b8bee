"""Random views of whole batches for contrastive learning.

Every random choice is keyed by (seed, "views", epoch, sample id, draw, view number, parameter word). On the CPU a
sample's views have the same bits in a batch of any size and order and with any number of threads. That is because all
operations are single elementwise multiplications and additions, sums over short rows, or ``grid_sample``, which treats
images one by one. Another device agrees to rounding (``grid_sample`` may fuse a multiplication with an addition).
"""

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import registry
from sslmed_dist.arguments import located, require_between
from sslmed_dist.views.colour import Colour
from sslmed_dist.views.draws import Draws, draw, word_keys
from sslmed_dist.views.filters import Blur, Cutout, Noise, Solarise
from sslmed_dist.views.geometry import Fill, Geometry
from sslmed_dist.views.intensity import Intensity

CACHE = 1 << 19  # pixel values per thread that go through all operations together on a CPU (two megabytes, measured)
TOGETHER = 1 << 26  # most pixel values for which all views of a chain go through it at once on a GPU (256 MiB)


@dataclass(frozen=True)
class Chain:
    """The operations that make a view from an image, in this order, and their arguments. The defaults are SimCLR's for
    CIFAR-10 (Chen et al. 2020). ``flip``, ``vertical_flip``, ``grey``, ``blur`` and ``solarise`` are probabilities.

    * ``crop_scale``, ``crop_ratio``, ``flip``, ``vertical_flip``, ``rotation`` (degrees), ``fill``, ``antialias``: see
      ``Geometry``
    * ``jitter`` (brightness, contrast, saturation, hue), ``jitter_probability``, ``grey``: see ``Colour``
    * ``blur``, ``blur_sigma``, ``blur_kernel``: see ``Blur``; ``solarise``, ``solarise_threshold``
    * ``noise`` (standard deviation), ``noise_probability``; then normalisation
    * ``cutout`` (fewest and most holes), ``cutout_fraction`` or ``cutout_side`` (pixels)
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    vertical_flip: float = 0.0
    rotation: float = 0.0
    fill: Fill = "reflection"
    antialias: bool = True
    jitter: tuple[float, float, float, float] | None = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int | None = None
    solarise: float = 0.0
    solarise_threshold: float = 0.5
    noise: float = 0.0
    noise_probability: float = 1.0
    cutout: tuple[int, int] | None = None
    cutout_fraction: float = 0.25
    cutout_side: int | None = None


class View(nn.Module):
    """One chain as a module: geometry, colour, blur, solarise, noise, normalise, cutout. Operations that can never
    change an image are left out."""

    word_keys: Tensor

    def __init__(self, size: int, intensity: Intensity, chain: Chain) -> None:
        """``ValueError`` that begins with the name of a bad field."""
        super().__init__()
        self.geometry = Geometry(
            size,
            chain.crop_scale,
            chain.crop_ratio,
            chain.flip,
            chain.vertical_flip,
            chain.rotation,
            chain.fill,
            chain.antialias,
        )
        filters = [
            Colour(intensity.channels, chain.jitter, chain.jitter_probability, chain.grey),
            Blur(size, chain.blur, chain.blur_sigma, chain.blur_kernel),
            Solarise(chain.solarise, chain.solarise_threshold),
            Noise(chain.noise, chain.noise_probability),
        ]
        cutout = Cutout(size, chain.cutout, chain.cutout_fraction, chain.cutout_side)
        self.intensity = intensity
        self.filters = nn.ModuleList(step for step in filters if step.active)
        self.last = nn.ModuleList([cutout] if cutout.active else [])
        self.words = tuple(word for step in (self.geometry, *self.filters, *self.last) for word in step.words)
        self.register_buffer("word_keys", word_keys(self.words), persistent=False)

    def draw(self, draws: Draws, height: int, width: int) -> list[tuple[Tensor, ...]]:
        """The parameters of every step for the whole batch, each tensor (B, ...), for images ``height`` x ``width``."""
        steps = [step.draw(draws) for step in (*self.filters, *self.last)]
        return [(self.geometry.draw(draws, height, width),), *steps]

    def forward(self, images: Tensor, parameters: list[tuple[Tensor, ...]], out: Tensor) -> None:
        """One chunk: float32 images (n, C, H, W) in [0, 1], and their parameters, to ``out`` (n, C, size, size)."""
        view = self.geometry(images, *parameters[0])
        rest = iter(parameters[1:])  # the parameters of each operation after the geometry, in the order of ``draw``
        for step in self.filters:
            view = step(view, *next(rest))
        self.intensity.normalise(view, out)
        for step in self.last:
            step(out, *next(rest))


class ContrastiveViews(nn.Module):
    """``views`` random views of each image of a batch: views_0, views_1, ..."""

    passes_to = Chain

    def __init__(
        self,
        size: int,
        views: int = 2,
        second: Mapping[str, Any] | None = None,
        *,
        channels: int,
        value_range: tuple[float, float],
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        **chain: Any,
    ) -> None:
        """``chain``: the fields of ``Chain``; ``second`` overrides any of these for views_1 (BYOL's asymmetric blur and
        solarisation). ``value_range`` maps to [0, 1], the scale of thresholds, noise, ``mean`` and ``std``.

        ``ValueError`` naming the field for a value that is not allowed.
        """
        super().__init__()
        require_between("views.views", views, 1, 1000)  # a chain is built for each: a million would fill the memory
        if second is not None and views < 2:
            raise ValueError("views.second: needs at least 2 views")
        self.size = size
        first = Chain(**chain)
        with located("views"):
            self.intensity = Intensity(channels, value_range, mean, std)
            chains = [View(size, self.intensity, first)] * views  # one module serves all views that have its chain
        if second is not None:
            registry.check_arguments(Chain, second, "views.second")
            with located("views.second"):
                chains[1] = View(size, self.intensity, replace(first, **second))
        self.chains = nn.ModuleList(chains)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor], *, seed: int, epoch: int) -> dict[str, Tensor]:
        """ "images" (B, C, H, W) uint8, int16 or float32, "index" and "draw" int64 (B,) -> views_i float32
        (B, C, size, size), normalised, contiguous; "images" is left out, all other entries are kept."""
        images = batch["images"]
        self.intensity.check(images)
        if self.intensity.mean.device != images.device:
            self.to(images.device)
        height, width = images.shape[-2:]
        index, draws = (batch[name].to(images.device) for name in ("index", "draw"))
        count = len(images)
        # First all parameters of all views for the whole batch, then the images chunk by chunk. The views of a chain
        # are drawn together, as rows one view after another: (views x B, ...).
        outputs: dict[int, Tensor] = {}  # of each view, (B, C, size, size)
        jobs: list[tuple[View, list[tuple[Tensor, ...]], Tensor]] = []  # chain, parameters and output of some rows
        for chain, views in self.views_by_chain():
            rows = {"index": index.repeat(len(views)), "draw": draws.repeat(len(views))}
            numbers = torch.tensor(views, device=images.device).repeat_interleave(count)
            table = draw(chain.words, chain.word_keys, seed=seed, epoch=epoch, **rows, view=numbers)
            parameters = chain.draw(table, height, width)
            made = torch.empty(len(numbers), images.shape[1], self.size, self.size, device=images.device)
            outputs |= zip(views, made.view(len(views), count, *made.shape[1:]).unbind(0), strict=True)
            step = max(1, len(numbers) if self.together(images, len(views)) else count)
            for start in range(0, len(numbers), step):
                some = slice(start, start + step)
                jobs.append((chain, [tuple(value[some] for value in given) for given in parameters], made[some]))
        # A chunk goes through all views while it is in the cache.
        for part in self.chunks(images):
            source = self.intensity.unit(images[part])
            for chain, given, made in jobs:
                if len(made) > count:  # all images, once for each view
                    chain(source.repeat(len(made) // count, 1, 1, 1), given, made)
                else:
                    chain(source, [tuple(value[part] for value in step) for step in given], made[part])
        other_entries = {name: value for name, value in batch.items() if name != "images"}
        return {**other_entries, **{f"views_{view}": outputs[view] for view in sorted(outputs)}}

    def views_by_chain(self) -> list[tuple[View, list[int]]]:
        """Every chain with the numbers of its views."""
        found: dict[View, list[int]] = {}
        for view, chain in enumerate(typing.cast("list[View]", list(self.chains))):
            found.setdefault(chain, []).append(view)
        return list(found.items())

    def together(self, images: Tensor, views: int) -> bool:
        """Whether all ``views`` of a chain go through it at once. On a GPU a small batch waits for the starts of its
        kernels, and two views at once need half as many. A CPU takes a chunk of one view, which stays in its cache. No
        result depends on it."""
        return images.device.type != "cpu" and views * len(images) * self.values(images) <= TOGETHER

    def values(self, images: Tensor) -> int:
        """Pixel values of an image or of a view of it, whichever has more."""
        return images.shape[1] * max(images.shape[-2] * images.shape[-1], self.size**2)

    def chunks(self, images: Tensor) -> Iterator[slice]:
        """Parts of a batch: on a CPU as many images as fit into its cache, elsewhere all. No result depends on it."""
        step = max(1, len(images))
        if images.device.type == "cpu":
            step = max(1, torch.get_num_threads() * CACHE // self.values(images))
        return (slice(start, start + step) for start in range(0, len(images), step))
