"""Jumbled patches of an image, and which arrangement they stand in (thesis, Alg. 3.2)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist.arguments import located, require_between, require_not_negative
from sslmed_dist.views.draws import Draws, draw, word_keys
from sslmed_dist.views.filters import Noise
from sslmed_dist.views.intensity import Intensity
from sslmed_dist.views.standard import StandardViews
from sslmed_dist.views.transforms import Fill, Placed, Transforms, TransformSet, sampling_grid, whole_pixels

CACHE = 1 << 18  # pixels of patches that are worked on at a time on a CPU: what fits into its cache


class Parameters(NamedTuple):
    """What a batch's draws decide, images one after another: transforms and first pixels (B G^2, 2), (x, y), of the
    windows, place by place; deviation and key of the noise (B,)."""

    placed: Placed
    corner: Tensor
    noise: tuple[Tensor, Tensor]


class JumbledViews(nn.Module):
    """``patches`` (B, G^2, C, p, p) of a grid of G x G cells, and ``pretext_label``, the number of their arrangement
    (thesis, Alg. 3.2 JUMPAT).

    An image is brought to ``size`` x ``size`` (as the evaluation's view does it) and cut into cells of ``size`` // G
    pixels. Each cell is turned, shifted and scaled by a transform of its own about its centre. A random window of
    ``patch`` pixels is cut from it, and white noise is added. Place j of the list then shows the patch of cell p[j], p
    the drawn arrangement. A cell is worked on by itself. Past its edge comes what ``fill`` says (unstated in the
    thesis), never the neighbour's pixels, which would give the arrangement away.

    In evaluation mode (``eval()``) nothing but the arrangement is random: patches are the centres of their cells.
    ``pretext_classes``: the number of arrangements.
    """

    arrangements: Tensor
    word_keys: Tensor
    pretext_classes: int = 0

    def __init__(
        self,
        size: int,
        patch: int | None = None,
        transforms: Transforms = "range",
        rotation: float = 15.0,
        shift: float = 0.1,
        scale: float = 1.2,
        noise: float = 0.1,
        fill: Fill = "border",
        *,
        arrangements: Tensor,
        channels: int,
        value_range: tuple[float, float],
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        """``patch``: by default 3/4 of the cell, rounded to a multiple of 4 (64 of 85). ``shift``: the largest shift as
        a share of the patch, taken in whole pixels. ``noise``: standard deviation on the scale [-1, 1], where values
        are clipped (0.1 is the text's variance 0.01); 0 is none. ``arrangements`` int64 (classes, G^2).

        ``ValueError`` naming the field for a value that is not allowed."""
        super().__init__()
        self.grid = round(arrangements.shape[1] ** 0.5)
        self.size, self.cell, self.fill = size, size // self.grid, fill
        if self.cell < 4:
            raise ValueError(
                f"views.size: {size} pixels give {self.grid} cells of {self.cell} a side; allowed: 4 or more"
            )
        self.patch = max(4, 4 * round(3 * self.cell / 16)) if patch is None else patch
        if not 1 <= self.patch <= self.cell:
            raise ValueError(f"views.patch: expected 1 to {self.cell} pixels (the cell), got {self.patch}")
        require_not_negative("views.noise", noise)
        require_between("views.shift", shift, 0.0, 1.0)
        with located("views"):
            self.intensity = Intensity(channels, value_range, mean, std)
            self.transforms = TransformSet(transforms, rotation, whole_pixels(shift, self.patch), scale)
        self.whole = StandardViews(size, channels=channels, value_range=value_range)
        # Intensities are in [0, 1] here: half the deviation.
        self.noise = Noise(noise / 2)
        self.pretext_classes = len(arrangements)
        self.register_buffer("arrangements", arrangements, persistent=False)
        self.places = arrangements.shape[1]
        own = [f"{word}:{place}" for place in range(self.places) for word in (*TransformSet.words, "top", "left")]
        self.words = ("arrangement", *self.noise.words, *own)
        self.register_buffer("word_keys", word_keys(self.words), persistent=False)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor], *, seed: int, epoch: int) -> dict[str, Tensor]:
        """ "images" (B, C, H, W), "index" and "draw" int64 (B,) -> "patches" float32 (B, G^2, C, p, p), normalised, and
        "pretext_label" int64 (B,); "images" is left out, all other entries are kept."""
        images = batch["images"]
        self.intensity.check(images)
        if self.arrangements.device != images.device:
            self.to(images.device)
        index, draws = (batch[name].to(images.device) for name in ("index", "draw"))
        table = draw(self.words, self.word_keys, seed=seed, epoch=epoch, index=index, draw=draws, view=0)
        label = (table["arrangement"] * self.pretext_classes).to(torch.int64)
        order = self.arrangements[label]
        out = torch.empty(len(images), self.places, images.shape[1], self.patch, self.patch, device=images.device)
        parameters = self.parameters_of(table) if self.training else None
        step = max(1, len(images))
        if images.device.type == "cpu":
            step = max(1, CACHE // (out[0].numel() if len(out) else 1))
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            cells = self.cells(images[part], order[part])
            patches = self.centres(cells) if parameters is None else self.augmented(cells, parameters, part)
            self.intensity.normalise(patches.flatten(0, 1), out[part].flatten(0, 1))
        others = {name: value for name, value in batch.items() if name != "images"}
        return {**others, "patches": out, "pretext_label": label}

    def parameters_of(self, table: Draws) -> Parameters:
        """What the draws of a batch decide: a transform and a window for each place, and each image's noise."""
        # (B G^2) draws of each word: a place's words end in its number.
        own = {
            word: torch.stack([table[f"{word}:{place}"] for place in range(self.places)], 1).flatten()
            for word in (*TransformSet.words, "left", "top")
        }
        free = self.cell - self.patch + 1  # possible positions of the window along an axis
        corner = (torch.stack([own["left"], own["top"]], 1) * free).floor()
        return Parameters(self.transforms(own), corner.float(), self.noise.draw(table))

    def cells(self, images: Tensor, order: Tensor) -> Tensor:
        """Images (n, C, H, W) -> float32 in [0, 1] (n, G^2, C, cell, cell): place j holds cell ``order[:, j]``."""
        plain = images.shape[-2:] == (self.size, self.size)
        pixels = images if plain else self.whole({"images": images}, seed=0, epoch=0)["views_0"]
        inside = self.grid * self.cell
        first = (self.size - inside) // 2
        pieces = pixels[:, :, first : first + inside, first : first + inside]
        # (n, row, column, C, cell, cell): copied cell by cell, then picked as whole cells, and made floats last, since
        # bytes are a quarter of what floats are
        pieces = pieces.unfold(2, self.cell, self.cell).unfold(3, self.cell, self.cell).permute(0, 2, 3, 1, 4, 5)
        pieces = pieces.reshape(-1, *pieces.shape[3:])
        numbers = order + self.places * torch.arange(len(images), device=images.device)[:, None]
        chosen = pieces.index_select(0, numbers.flatten()).view(len(images), self.places, *pieces.shape[1:])
        return self.intensity.unit(chosen) if plain else chosen

    def augmented(self, cells: Tensor, parameters: Parameters, part: slice) -> Tensor:
        """A transform, a window and noise for each of the cells (n, G^2, C, cell, cell) of the images ``part`` of the
        batch -> (n, G^2, C, p, p)."""
        rows = slice(part.start * self.places, part.stop * self.places)
        placed = parameters.placed
        placed = Placed(placed.matrix[rows], placed.shift[rows], placed.label[rows])
        grid = sampling_grid(placed, parameters.corner[rows], self.cell, self.patch)
        pieces = cells.flatten(0, 1)
        patches = F.grid_sample(pieces, grid, mode="bilinear", padding_mode=self.fill, align_corners=False)
        if self.noise.active:
            as_images = patches.view(len(cells), -1, self.patch, self.patch)
            self.noise(as_images, *(value[part] for value in parameters.noise))
        return patches.view(*cells.shape[:3], self.patch, self.patch)

    def centres(self, cells: Tensor) -> Tensor:
        """The windows in the middle of their cells, pixels as they are."""
        first = (self.cell - self.patch) // 2
        return cells[..., first : first + self.patch, first : first + self.patch]
