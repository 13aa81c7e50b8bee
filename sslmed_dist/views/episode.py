"""Episodes for one-shot segmentation: a slice with a mask as the support, a moved copy of both as the query."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sslmed_dist.arguments import located, require_range
from sslmed_dist.views.displacement import Displacement
from sslmed_dist.views.draws import draw, word_keys
from sslmed_dist.views.geometry import Fill
from sslmed_dist.views.intensity import Intensity

CACHE = 1 << 18  # pixels per thread that go through all operations together on a CPU (measured)
QUERY = 0  # the query's view number in the random keys; supports are 1, 2, ...

Parameters = tuple[Tensor, Tensor, Tensor]  # gamma float64 (B,), affine float32 (B, 2, 3), random keys int64 (B,)


class EpisodeViews(nn.Module):
    """An episode of each slice: query = geometry(gamma(slice)), and its mask moved by the same geometry, 1 where the
    moved mask exceeds 0.5. The support is the slice and its mask unchanged or, with ``transform_support``, a draw of
    its own. A batch that brings its supports (``masks: labelled``) has these in place of the slice.

    Every choice is keyed by (seed, "views", epoch, sample id, draw, view number, word), and on the CPU an episode has
    the same bits in a batch of any size and order (as ``ContrastiveViews``). Images are standardised and have no
    darkest or brightest value, so nothing is clamped. A query mask that moves out of the slice is empty; the episode
    stays in the batch all the same.
    """

    word_keys: Tensor

    def __init__(
        self,
        size: int,
        shots: int = 1,
        rotation: float = 5.0,
        shift: float = 5.0,
        shear: float = 5.0,
        scale: tuple[float, float] = (0.9, 1.2),
        elastic: float = 10.0,
        elastic_sigma: float = 5.0,
        gamma: tuple[float, float] = (0.5, 1.5),
        transform_support: bool = False,
        fill: Fill = "border",
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        pixel_mm: float | None = None,
        *,
        channels: int,
        value_range: tuple[float, float],
    ) -> None:
        """The defaults are those of Ouyang et al. 2020, except that the support is unchanged, as in CoWPro.

        * ``rotation``, ``shift``, ``shear``, ``scale``, ``elastic``, ``elastic_sigma``, ``fill``: see ``Displacement``;
          ``shift`` and the elastic lengths are for a slice of 256 x 256 and scale with ``size``.
        * ``gamma``: u -> u^g, g uniform in this range, where u maps the slice's own least and greatest value to 0 and
          1; mapped back afterwards.
        * ``shots``: supports per episode; more than one are draws of the same slice and need ``transform_support``.
        * ``mean`` and ``std`` are subtracted and divided by last, per channel. ``value_range`` plays no part.
        * ``pixel_mm``: the side of the slices' pixels in millimetres. It changes no view. A run fills it in from its
          data, so that whoever uses the encoder knows at which scale it was trained.

        ``ValueError`` naming the field for a value that is not allowed.
        """
        super().__init__()
        self.size, self.shots, self.transform_support = size, shots, transform_support
        with located("views"):
            if shots < 1:
                raise ValueError(f"shots: expected at least 1, got {shots}")
            if shots > 1 and not transform_support:
                raise ValueError(f"shots: {shots} supports would be equal; set transform_support or shots 1")
            require_range("gamma", gamma, 0.0)
            self.displacement = Displacement(size, rotation, shift, shear, scale, elastic, elastic_sigma, fill)
            self.intensity = Intensity(channels, value_range, mean, std)
        self.low, self.high = float(gamma[0]), float(gamma[1])
        self.words = (*self.displacement.words, "gamma")
        self.register_buffer("word_keys", word_keys(self.words), persistent=False)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor], *, seed: int, epoch: int) -> dict[str, Tensor]:
        """ "images" float32 (B, C, size, size), "mask" (B, size, size) of 0 and 1, "index" and "draw" int64 (B,) ->
        "support" and "query" float32 (B, C, size, size), "support_mask" and "query_mask" float32 0 or 1 (B, size,
        size); with ``shots`` K > 1 "support" (B, K, C, size, size) and "support_mask" (B, K, size, size). "images" and
        "mask" are left out, all other entries are kept. "support_images" and "support_mask", of the form of "images"
        and "mask", are what the supports are made of where the batch has them. ``ValueError`` for images or masks of
        another shape or type."""
        images, mask = batch["images"], batch["mask"]
        own = (images, mask)
        shown = own if "support_images" not in batch else (batch["support_images"], batch["support_mask"])
        for source, source_mask in (own, shown):
            self.check(source, source_mask)
        if self.intensity.mean.device != images.device:
            self.to(images.device)
        index, draws = (batch[name].to(images.device) for name in ("index", "draw"))
        # The query is always drawn; supports only with ``transform_support``.
        drawn = 1 + (self.shots if self.transform_support else 0)
        parameters = [self.draw(seed, epoch, index, draws, view) for view in range(drawn)]
        views = images.new_empty(len(images), 1 + self.shots, *images.shape[1:])  # (B, 1 + K, C, size, size)
        masks = images.new_empty(len(images), 1 + self.shots, self.size, self.size)
        for part in self.chunks(images):
            # View 0 is the query, the others are supports; views beyond the drawn ones stay as they are.
            for view in range(1 + self.shots):
                source, source_mask = own if view == QUERY else shown
                view_images, view_masks = source[part], source_mask[part].to(torch.float32)
                if view < drawn:
                    drawn_parameters = [value[part] for value in parameters[view]]
                    view_images, view_masks = self.move(view_images, view_masks, drawn_parameters)
                self.intensity.normalise(view_images, views[part, view])
                masks[part, view] = view_masks
        used = ("images", "mask", "support_images", "support_mask")
        other_entries = {name: value for name, value in batch.items() if name not in used}
        supports = (views[:, 1:], masks[:, 1:]) if self.shots > 1 else (views[:, 1], masks[:, 1])
        named = zip(
            ("support", "support_mask", "query", "query_mask"),
            (*supports, views[:, QUERY], masks[:, QUERY]),
            strict=True,
        )
        return {**other_entries, **{name: value.contiguous() for name, value in named}}

    def check(self, images: Tensor, mask: Tensor) -> None:
        """``ValueError`` for images or masks of another shape or type."""
        self.intensity.check(images)
        if images.dtype is not torch.float32 or tuple(images.shape[2:]) != (self.size, self.size):
            actual = f"{tuple(images.shape)} {images.dtype}"
            raise ValueError(
                f"images: expected float32 of the views' size {self.size} x {self.size}, got {actual}; set data.size"
            )
        if mask.shape != images[:, 0].shape:
            raise ValueError(f"mask: expected {tuple(images[:, 0].shape)}, got {tuple(mask.shape)}")

    def draw(self, seed: int, epoch: int, index: Tensor, draws: Tensor, view: int) -> Parameters:
        """The parameters of one view for the whole batch."""
        table = draw(self.words, self.word_keys, seed=seed, epoch=epoch, index=index, draw=draws, view=view)
        return (self.low + (self.high - self.low) * table["gamma"], *self.displacement.draw(table))

    def move(self, images: Tensor, masks: Tensor, parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The gamma curve on the images (n, C, H, W), then one geometry for images and masks (n, H, W). Masks are
        thresholded to 0 or 1 again."""
        gamma, affine, keys = parameters
        if (self.low, self.high) != (1.0, 1.0):
            images = gamma_curve(images, gamma)
        # The mask moves as one more channel of its image.
        moved = self.displacement(torch.cat([images, masks[:, None]], 1), affine, keys)
        return moved[:, :-1], (moved[:, -1] > 0.5).to(torch.float32)

    def chunks(self, images: Tensor) -> Iterator[slice]:
        """Parts of a batch: on a CPU as many slices as fit into its cache, elsewhere all. No result depends on it."""
        step = max(1, len(images))
        if images.device.type == "cpu":
            step = max(1, torch.get_num_threads() * CACHE // self.size**2)
        return (slice(start, start + step) for start in range(0, len(images), step))


def gamma_curve(images: Tensor, gamma: Tensor) -> Tensor:
    """((x - low) / (high - low))^g (high - low) + low of images float32 (n, C, H, W), in that shape; low and high are
    the least and greatest value of each sample, g its ``gamma``, float64 (n,). A constant sample stays as it is.

    The power is taken in float64 and rounded to float32. Vectorised and scalar code differ only in the last bits of
    float64, which are rounded away, so a sample is the same in every batch.
    """
    low, high = (value[:, None, None, None].to(torch.float64) for value in torch.aminmax(images.flatten(1), dim=1))
    span = high - low  # (n, 1, 1, 1)
    unit = images.to(torch.float64).sub_(low).div_(torch.where(span > 0, span, 1.0))
    return unit.pow_(gamma[:, None, None, None]).mul_(span).add_(low).to(torch.float32)
