"""Views made of several kinds of random crops: DINO's large and small ones, PIRL's image and jumbled patches.

Each kind is a ``ContrastiveViews`` of its own. The second kind draws from a seed derived from the first's, so the crops
of a sample are independent and still a function of (seed, epoch, sample, draw) alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import randomness, registry
from sslmed_dist.views.contrastive import ContrastiveViews

SIDE = 3  # the puzzle has SIDE x SIDE cells

Arguments = Mapping[str, Any]


@contextmanager
def inside(where: str) -> Iterator[None]:
    """In this context a ``ValueError`` about ``views.FIELD`` becomes one about ``views.WHERE.FIELD``."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("views.", f"views.{where}.", 1)) from None


def crops(arguments: Arguments, where: str, fixed: dict[str, Any]) -> ContrastiveViews:
    """``ContrastiveViews`` from the ``arguments`` of a configuration and those it may not set (``fixed``).

    ``ValueError`` names the field of ``views.WHERE`` that is wrong or missing."""
    registry.check_arguments(ContrastiveViews, arguments, f"views.{where}", tuple(fixed))
    with inside(where):
        return ContrastiveViews(**arguments, **fixed)


class MultiCropViews(nn.Module):
    """views_0 and views_1 are large crops of ``size``; views_2, views_3, ... are small ones (Caron et al. 2020, "SwAV";
    Caron et al. 2021, "DINO")."""

    def __init__(
        self,
        size: int,
        large: Mapping[str, Any] | None = None,
        small: Mapping[str, Any] | None = None,
        *,
        channels: int,
        value_range: tuple[float, float],
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        """``large``: arguments of ``ContrastiveViews`` (crop_scale, by default [0.4, 1], jitter, second, ...).
        ``small``: the small crops' ``size``, their number ``views`` (by default 6) and whatever differs from ``large``,
        such as crop_scale, by default [0.05, 0.4]. Null: no small crops.

        ``ValueError`` naming the field of ``large`` or ``small`` for a value that is not allowed."""
        super().__init__()
        self.size = size
        shared: dict[str, Any] = {"channels": channels, "value_range": value_range, "mean": mean, "std": std}
        large = {"crop_scale": (0.4, 1.0), **(large or {})}
        self.large = crops(large, "large", {**shared, "size": size, "views": 2})
        self.small = None
        if small is not None:
            same = {name: value for name, value in large.items() if name != "second"}
            leaf = {"views": 6, **same, "crop_scale": (0.05, 0.4), **small}
            self.small = crops(leaf, "small", shared)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor], *, seed: int, epoch: int) -> dict[str, Tensor]:
        """As ``ContrastiveViews``: "images", "index", "draw" -> views_i float32 (B, C, size, size)."""
        outputs: dict[str, Tensor] = self.large(batch, seed=seed, epoch=epoch)
        if self.small is not None:
            small = self.small(batch, seed=randomness.key(seed, "small crops"), epoch=epoch)
            # The small crops are numbered after the two large ones.
            outputs |= {f"views_{view + 2}": small[f"views_{view}"] for view in range(len(self.small.chains))}
        return outputs


class JigsawViews(nn.Module):
    """views_0 and views_1, two random views of the image, and ``patches``, cut from a third one of 3 x 3 cells.

    From each cell a patch is cut at a random position. The nine patches are put in a random order, drawn anew for every
    sample (Misra and van der Maaten 2020, Sec. 3.2: cells of 85, patches of 64 pixels)."""

    def __init__(
        self,
        size: int,
        cell: int | None = None,
        patch: int | None = None,
        image: Mapping[str, Any] | None = None,
        puzzle: Mapping[str, Any] | None = None,
        *,
        channels: int,
        value_range: tuple[float, float],
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        """``size`` of views_0 and views_1; ``cell`` (by default size // 3) and ``patch`` (3/4 of the cell) in pixels.
        ``image``: arguments of ``ContrastiveViews``. ``puzzle``: whatever differs from them for the view that is cut,
        such as crop_scale, by default [0.6, 1] (0.6 is the paper's least share of the image).

        ``ValueError`` naming the field of ``image`` or ``puzzle`` for a value that is not allowed, and for a patch
        larger than its cell."""
        super().__init__()
        self.size = size
        self.cell = size // SIDE if cell is None else cell
        self.patch = max(1, 3 * self.cell // 4) if patch is None else patch
        if self.cell < 1:
            raise ValueError(f"views.cell: expected an integer >= 1, got {self.cell}")
        if not 1 <= self.patch <= self.cell:
            raise ValueError(f"views.patch: expected 1 to cell ({self.cell}) pixels, got {self.patch}")
        shared: dict[str, Any] = {"channels": channels, "value_range": value_range, "mean": mean, "std": std}
        image = image or {}
        self.image = crops(image, "image", {**shared, "size": size, "views": 2})
        leaf = {**image, "crop_scale": (0.6, 1.0), **(puzzle or {})}
        leaf.pop("second", None)
        self.puzzle = crops(leaf, "puzzle", {**shared, "size": SIDE * self.cell, "views": 1})

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor], *, seed: int, epoch: int) -> dict[str, Tensor]:
        """As ``ContrastiveViews``, and ``patches`` float32 (B, 9 C, patch, patch): first all channels of the first
        patch, then those of the second, and so on."""
        outputs: dict[str, Tensor] = self.image(batch, seed=seed, epoch=epoch)
        jigsaw_seed = randomness.key(seed, "jigsaw")
        puzzle = self.puzzle(batch, seed=jigsaw_seed, epoch=epoch)["views_0"]  # (B, C, 3 cell, 3 cell)
        cells = torch.arange(SIDE * SIDE, device=puzzle.device)
        index, draws = (batch[name].to(puzzle.device)[:, None] for name in ("index", "draw"))
        key = (jigsaw_seed, epoch, index, draws)
        # Where in its cell each patch is cut, (B, 9), and in which order the cells follow: a random permutation of 9.
        free = self.cell - self.patch + 1  # possible positions along an axis
        top, left = (randomness.integers(free, *key, word, cells) for word in ("top", "left"))
        order = randomness.uniform(*key, "order", cells).argsort(dim=1, stable=True)
        return {**outputs, "patches": cut(puzzle, self.cell, self.patch, top, left, order)}


def cut(images: Tensor, cell: int, patch: int, top: Tensor, left: Tensor, order: Tensor) -> Tensor:
    """Images (B, C, 3 cell, 3 cell) -> patches (B, 9 C, patch, patch), 9 of C channels each.

    Patch j is cut from cell ``order[:, j]``; cells are counted row by row. ``top`` and ``left`` (B, 9), by cell, are
    the patch's corner inside its cell."""
    # The pixel rows and columns of each patch: start of its cell, plus corner, plus 0 ... patch - 1.
    pixels = torch.arange(patch, device=images.device)
    rows = ((order // SIDE) * cell + top.gather(1, order))[:, :, None] + pixels  # (B, 9, patch)
    columns = ((order % SIDE) * cell + left.gather(1, order))[:, :, None] + pixels
    samples = torch.arange(len(images), device=images.device)[:, None, None, None]
    pieces = images.permute(0, 2, 3, 1)[samples, rows[:, :, :, None], columns[:, :, None, :]]  # (B, 9, patch, patch, C)
    return pieces.permute(0, 1, 4, 2, 3).flatten(1, 2).contiguous()
