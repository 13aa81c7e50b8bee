"""Brightness, contrast, saturation, hue and grey, folded into one matrix and one offset per sample."""

import itertools
import math

import torch
from torch import Tensor, nn

from sslmed_dist.arguments import require_between, require_share
from sslmed_dist.printable import plural
from sslmed_dist.views.draws import Draws, levels, look_up

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
YIQ = (LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))
NAMES = ("brightness", "contrast", "saturation", "hue")
CONTRAST = NAMES.index("contrast")

Folded = tuple[Tensor, Tensor, Tensor]  # matrix (B, k, k), gain (B, k), weights (B, k): see ``Colour.draw``


class Colour(nn.Module):
    """Brightness, contrast, saturation and hue in one of their 24 orders, drawn per sample, then grey; on images in
    [0, 1].

    Every step is affine in the pixel's colour x. With factor f: brightness is f x; contrast is f x + (1 - f) L, L the
    mean luma of the view before that step; saturation is f x + (1 - f) luma(x); hue is a rotation of the chroma plane
    of YIQ by 2 pi h; grey is luma(x). L is a linear function of the view's channel means at the start. So all steps, in
    any order, fold into one matrix and one offset per sample.

    Compared with torchvision's ``ColorJitter``, factors and orders have the same distributions. But values are clamped
    to [0, 1] once, at the end, not after each step, and hue turns in YIQ (luma stays) and not in HSV (value stays).

    With other than 3 channels there is no colour: brightness and contrast apply to all channels alike (contrast about
    the mean of all of them), and saturation, hue and grey must be 0.
    """

    orders: Tensor
    hues: Tensor
    luma: Tensor

    def __init__(
        self,
        channels: int,
        jitter: tuple[float, float, float, float] | None = (0.4, 0.4, 0.4, 0.1),
        jitter_probability: float = 0.8,
        grey: float = 0.2,
    ) -> None:
        """``jitter``: strengths of brightness, contrast and saturation (factor uniform in [max(0, 1 - s), 1 + s]) and
        of hue (uniform in [-s, s], a whole turn is 1). ``ValueError`` naming the field for a value out of range."""
        super().__init__()
        strengths = tuple(jitter) if jitter is not None else (0.0,) * 4
        if len(strengths) != 4 or min(strengths) < 0:
            raise ValueError(f"jitter: expected four strengths of at least 0 (order: {', '.join(NAMES)}), got {jitter}")
        require_between("jitter (hue, the fourth)", strengths[3], 0.0, 0.5)
        require_share("jitter_probability", jitter_probability)
        require_share("grey", grey)
        if channels != 3 and (strengths[2] or strengths[3]):
            raise ValueError(f"jitter: saturation and hue (third and fourth) must be 0 with {channels} channels")
        if channels != 3 and grey:
            raise ValueError(f"grey: must be 0 with {plural(channels, 'channel')}, got {grey}")
        self.strengths, self.grey = strengths, grey
        self.probability = jitter_probability if any(strengths) else 0.0
        self.active = self.probability > 0 or grey > 0
        self.words = ("jitter", "order", *NAMES, "grey")
        orders = torch.tensor(list(itertools.permutations(range(4))))
        self.register_buffer("orders", orders, persistent=False)
        self.register_buffer("hues", hue_matrices(levels(-strengths[3], strengths[3])), persistent=False)
        # With other than 3 channels the "luma" is the one mean over all channels.
        luma = torch.tensor(LUMA if channels == 3 else (1.0,), dtype=torch.float64)
        self.register_buffer("luma", luma, persistent=False)

    def draw(self, draws: Draws) -> Folded:
        """Matrix (B, k, k), gain (B, k) and weights (B, k), float32: a pixel x of a view with channel means m (k,)
        becomes matrix x + gain (weights . m). k is 3, or 1 when one factor serves all channels."""
        eye = torch.eye(len(self.luma), dtype=torch.float64, device=self.luma.device)
        steps, factor = self.steps(draws, eye)
        drawn = draws["jitter"] < self.probability
        order = look_up(self.orders, draws["order"])
        matrix = eye.expand(len(drawn), *eye.shape)
        gain = torch.zeros_like(matrix[:, 0])
        weights = torch.zeros_like(gain)
        # Put each sample's steps, in its order, in front of what is folded so far. Only contrast makes an offset; its
        # mean luma L is that of the folded steps, weights . m. Later steps multiply the offset as they do x.
        for position in order.unbind(1):
            step = steps[position, torch.arange(len(drawn), device=position.device)]  # (B, k, k)
            contrast = (position == CONTRAST)[:, None]
            weights = torch.where(contrast, product(self.luma[None, None], matrix)[:, 0], weights)
            gain = torch.where(contrast, (1 - factor)[:, None], product(step, gain[..., None])[..., 0])
            matrix = product(step, matrix)
        # Samples that drew no jitter stay as they are.
        matrix = torch.where(drawn[:, None, None], matrix, eye)
        gain = torch.where(drawn[:, None], gain, 0.0)
        if self.grey:
            drawn = draws["grey"] < self.grey
            luma = self.luma.expand(3, 3)  # every channel becomes the luma
            matrix = torch.where(drawn[:, None, None], product(luma[None], matrix), matrix)
            gain = torch.where(drawn[:, None], product(luma[None], gain[..., None])[..., 0], gain)
        return matrix.float(), gain.float(), weights.float()

    def steps(self, draws: Draws, eye: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices of the four steps (4, B, k, k), in the order of ``NAMES``, and the contrast factors (B,)."""
        factors = []
        for name, strength in zip(NAMES[:3], self.strengths, strict=False):
            low, high = max(0.0, 1.0 - strength), 1.0 + strength
            factors.append(low + (high - low) * draws[name])
        brightness, contrast, saturation = (factor[:, None, None] for factor in factors)
        if len(eye) == 1:  # no colour: saturation and hue change nothing
            return torch.stack([brightness * eye, contrast * eye, *[eye.expand(len(brightness), 1, 1)] * 2]), factors[1]
        blend = saturation * eye + (1 - saturation) * self.luma
        hue = look_up(self.hues, draws["hue"])
        return torch.stack([brightness * eye, contrast * eye, blend, hue]), factors[1]

    def forward(self, images: Tensor, matrix: Tensor, gain: Tensor, weights: Tensor) -> Tensor:
        """Float32 images (n, C, H, W) in [0, 1] -> the same shape and range, new memory. Parameters: see ``draw``."""
        # Two sums over short rows: one over all pixels may be split between threads, which changes its bits.
        means = images.sum(-1).sum(-1).div_(images.shape[-1] * images.shape[-2])
        k = matrix.shape[-1]
        if k == 1:
            means = dot(torch.ones_like(means), means)[:, None].div_(images.shape[1])
        offset = gain * dot(weights, means)[:, None]
        if k == 1:
            return (images * matrix[..., None]).add_(offset[..., None, None]).clamp_(0.0, 1.0)
        # The matrix times each pixel, added up column by column.
        pixels = images.flatten(2)  # (n, 3, H W)
        out, part = pixels[:, :1] * matrix[..., :1], torch.empty_like(pixels)
        for column in range(1, k):
            out.add_(torch.mul(pixels[:, column : column + 1], matrix[..., column : column + 1], out=part))
        return out.add_(offset[..., None]).clamp_(0.0, 1.0).view(images.shape)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product (..., i, k) x (..., k, j) -> (..., i, j) by separate multiplications and additions: a batched
    matrix product may round differently in another batch."""
    total = a[..., :, :1] * b[..., :1, :]
    for k in range(1, a.shape[-1]):
        total = total + a[..., :, k : k + 1] * b[..., k : k + 1, :]
    return total


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row dot product, (n, k) x (n, k) -> (n,), added up in a fixed order."""
    total = a[:, 0] * b[:, 0]
    for k in range(1, a.shape[1]):
        total = total + a[:, k] * b[:, k]
    return total


def hue_matrices(turns: Tensor) -> Tensor:
    """Matrices on RGB, float64 (L, 3, 3), that turn the chroma plane of YIQ by ``turns`` (L,), 1 being 360 degrees.
    Positive turns go red, yellow, green, as in HSV."""
    yiq = torch.tensor(YIQ, dtype=torch.float64)
    angle = -2.0 * math.pi * turns
    # Y stays; (I, Q) is rotated.
    rotation = torch.zeros(len(turns), 3, 3, dtype=torch.float64)
    rotation[:, 0, 0] = 1.0
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -angle.sin(), angle.sin()
    matrices: Tensor = torch.linalg.inv(yiq) @ rotation @ yiq
    return matrices
