"""Blur, solarisation, noise and cutout, each with its own parameters per sample."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist.arguments import require_between, require_range, require_share
from sslmed_dist.views.draws import Draws, levels, look_up, sixteen_bits

CACHE = 1 << 16  # floats that are blurred together on a CPU (a quarter of a megabyte)


class Blur(nn.Module):
    """Gaussian blur of the samples that draw it; sigma uniform in ``blur_sigma``, in pixels of the view.

    Separable, reflected at the border. The radius is ceil(3 sigma) of the sample's own sigma (at most size - 1), so the
    kernel holds at least 99.7 % of the Gaussian, whatever the size of the view. (torchvision's recipes cut it at a
    tenth of the view's side, which at 32 pixels leaves three taps.) With ``blur_kernel`` K, an odd number, all kernels
    have K taps instead, which cuts a wide Gaussian off: at sigma 2 a kernel of 5 acts as one of sigma 1.3.
    """

    kernels: Tensor

    def __init__(
        self,
        size: int,
        blur: float = 0.0,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        blur_kernel: int | None = None,
    ) -> None:
        """``blur``: the probability. ``ValueError`` naming the field for a value out of range."""
        super().__init__()
        require_share("blur", blur)
        require_range("blur_sigma", blur_sigma, 0.0)
        if blur_kernel is not None and (blur_kernel % 2 == 0 or not 1 <= blur_kernel <= 2 * size - 1):
            raise ValueError(f"blur_kernel: expected an odd number from 1 to {2 * size - 1} or null, got {blur_kernel}")
        self.probability, self.active = blur, blur > 0
        self.words = ("blur", "blur_sigma")
        self.radius = min(math.ceil(3.0 * blur_sigma[1]), size - 1) if blur_kernel is None else blur_kernel // 2
        # A table of half kernels, from the centre outwards, one for each level of sigma: (LEVELS, radius + 1).
        offsets = torch.arange(self.radius + 1, dtype=torch.float64)
        sigmas = levels(*blur_sigma)[:, None]
        halves = torch.exp(-0.5 * (offsets / sigmas) ** 2)
        if blur_kernel is None:
            halves *= offsets <= torch.ceil(3.0 * sigmas)
        halves = halves / (2.0 * halves.sum(1, keepdim=True) - 1.0)  # a full kernel has its centre once and sums to 1
        self.register_buffer("kernels", halves.float(), persistent=False)

    def draw(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Which samples are blurred, bool (B,), and half kernels (B, radius + 1) from the centre outwards."""
        return draws["blur"] < self.probability, look_up(self.kernels, draws["blur_sigma"])

    def forward(self, images: Tensor, drawn: Tensor, kernels: Tensor) -> Tensor:
        """Blurs the images (n, C, H, W) that ``drawn`` (n,) marks, in place, with half ``kernels`` (n, radius + 1).
        Finding them waits for the device, once per call."""
        chosen = drawn.nonzero().squeeze(1)
        on_cpu = images.device.type == "cpu"
        # On a CPU as many images at once as fit into the cache, without taps that are 0 for all of them: adding 0
        # changes no bits.
        step = max(1, CACHE // images[0].numel()) if on_cpu and len(images) else max(1, len(chosen))
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            kernel = kernels.index_select(0, part)
            if on_cpu:
                kernel = kernel[:, : int(kernel.count_nonzero(1).max())]
            images.index_copy_(0, part, separable(images.index_select(0, part), kernel))
        return images


def separable(images: Tensor, kernels: Tensor) -> Tensor:
    """Images (n, C, H, W), each convolved along both axes with its own symmetric kernel, given as the half (n,
    radius + 1) from the centre outwards. Reflected at the border; (n, C, H, W).

    Works on padded planes flattened to one row: the plane's rows follow one another, so a neighbour is a fixed offset
    away and both passes are long contiguous additions. The few values that mix two rows fall in the padding and are cut
    off. Only single multiplications and additions: a convolution may choose another algorithm, and other bits, for
    another batch.
    """
    n, channels, height, width = images.shape
    radius = kernels.shape[1] - 1
    padded = F.pad(images, (radius,) * 4, mode="reflect").view(n, channels, -1)
    stride = width + 2 * radius  # from a pixel to the one below it
    weights = kernels[..., None, None].unbind(1)  # by offset from the centre, each (n, 1, 1)
    # First down the columns, which uses up the padding above and below, then along the rows.
    for step, length in ((stride, height * stride), (1, height * stride - 2 * radius)):
        filtered, part = images.new_empty(n, channels, height * stride), images.new_empty(n, channels, length)
        out = filtered[..., :length]
        # Tap by tap: the pixel itself, then the two at each offset, which share a weight.
        torch.mul(padded[..., radius * step :][..., :length], weights[0], out=out)
        for offset in range(1, radius + 1):
            before = padded[..., (radius - offset) * step :][..., :length]
            after = padded[..., (radius + offset) * step :][..., :length]
            out.add_(torch.add(before, after, out=part).mul_(weights[offset]))
        padded = filtered
    return padded.view(n, channels, height, stride)[..., :width]


class Solarise(nn.Module):
    """x -> 1 - x where x >= ``solarise_threshold``, on the samples that draw it; images in [0, 1]."""

    def __init__(self, solarise: float = 0.0, solarise_threshold: float = 0.5) -> None:
        """``solarise``: the probability. ``ValueError`` naming the field for a value out of range."""
        super().__init__()
        require_share("solarise", solarise)
        require_between("solarise_threshold", solarise_threshold, 0.0, 1.0)
        self.probability, self.threshold, self.active = solarise, solarise_threshold, solarise > 0
        self.words = ("solarise",)

    def draw(self, draws: Draws) -> tuple[Tensor]:
        """Which samples are solarised, bool (B,)."""
        return (draws["solarise"] < self.probability,)

    def forward(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Images (n, C, H, W) in [0, 1] -> the same shape, new memory; ``drawn`` bool (n,)."""
        return torch.where(drawn[:, None, None, None] & (images >= self.threshold), 1.0 - images, images)


class Noise(nn.Module):
    """White Gaussian noise of standard deviation ``noise`` (images in [0, 1]), clamped to [0, 1] afterwards.

    16 random bits for each value pick one of 65,536 quantiles of the normal distribution (up to 4.3 standard
    deviations). So the noise of a sample has the same bits on every device.
    """

    quantiles: Tensor
    scaled: Tensor

    def __init__(self, noise: float = 0.0, noise_probability: float = 1.0) -> None:
        """``ValueError`` naming the field for a value out of range."""
        super().__init__()
        if noise < 0:
            raise ValueError(f"noise: expected a standard deviation of at least 0, got {noise}")
        require_share("noise_probability", noise_probability)
        self.deviation, self.probability = noise, noise_probability
        self.active = noise > 0 and noise_probability > 0
        self.words = ("noise", "noise:pixels")
        # The normal quantile of the middle of each of 65,536 steps of [0, 1].
        middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
        self.register_buffer("quantiles", torch.special.ndtri(middles).float(), persistent=False)
        self.register_buffer("scaled", self.quantiles * noise, persistent=False)

    def draw(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Standard deviation of each sample's noise, float32 (B,), and the random key of its pixels, int64 (B,)."""
        deviation = torch.where(draws["noise"] < self.probability, self.deviation, 0.0)
        return deviation.float(), (draws["noise:pixels"] * 2.0**53).to(torch.int64)

    def forward(self, images: Tensor, deviation: Tensor, keys: Tensor) -> Tensor:
        """Adds noise to images (n, C, H, W) in place."""
        numbers = sixteen_bits(keys, images.shape[1:].numel()).flatten()
        if self.probability == 1.0:  # one deviation for all: it is in the table
            normal = self.scaled.index_select(0, numbers).view(images.shape)
        else:
            normal = self.quantiles.index_select(0, numbers).view(images.shape).mul_(deviation[:, None, None, None])
        return images.add_(normal).clamp_(0.0, 1.0)


class Cutout(nn.Module):
    """Square holes, set to 0 after normalisation (the mean of the data, when the mean is normalised away).

    The number of holes is uniform in ``cutout`` (both ends included). Their side is the rounded ``cutout_fraction`` of
    the view's side, or ``cutout_side`` pixels. Their centres are uniform over the pixels, so the edge may cut them
    (DeVries and Taylor 2017).
    """

    def __init__(
        self,
        size: int,
        cutout: tuple[int, int] | None = None,
        cutout_fraction: float = 0.25,
        cutout_side: int | None = None,
    ) -> None:
        """``ValueError`` naming the field for a value out of range."""
        super().__init__()
        if cutout is not None and (len(cutout) != 2 or not 0 <= cutout[0] <= cutout[1]):
            raise ValueError(f"cutout: expected two numbers of holes, 0 <= first <= second, got {list(cutout)}")
        if not 0.0 < cutout_fraction <= 1.0:
            raise ValueError(
                f"cutout_fraction: expected a fraction of the side, above 0 and up to 1, got {cutout_fraction}"
            )
        if cutout_side is not None and cutout_side < 1:
            raise ValueError(f"cutout_side: expected an integer >= 1 or null, got {cutout_side}")
        self.least, self.most = cutout if cutout is not None else (0, 0)
        self.active = self.most > 0
        self.size, self.side = size, cutout_side or max(1, round(cutout_fraction * size))
        corner_words = [f"{name}:{hole}" for name in ("hole_top", "hole_left") for hole in range(self.most)]
        self.words = ("holes", *corner_words)

    def draw(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Number of holes, int64 (B,), and their upper left corners (row, column), int64 (B, most, 2)."""
        count = self.least + (draws["holes"] * (self.most - self.least + 1)).to(torch.int64)
        axes = [
            torch.stack([draws[f"{name}:{hole}"] for hole in range(self.most)], 1) for name in ("hole_top", "hole_left")
        ]
        # A corner lies half a side before the centre.
        return count, (torch.stack(axes, -1) * self.size).to(torch.int64) - self.side // 2

    def forward(self, images: Tensor, count: Tensor, corners: Tensor) -> Tensor:
        """Cuts the first ``count`` (n,) of the holes at ``corners`` (n, most, 2) out of (n, C, H, W) in place."""
        pixels = torch.arange(self.size, device=images.device)
        # Which rows and which columns a hole covers; their product is the square.
        inside = (pixels >= corners[..., None]) & (pixels < corners[..., None] + self.side)  # (n, most, 2, size)
        real = torch.arange(self.most, device=images.device) < count[:, None]  # (n, most): only the first ``count``
        holes = inside[:, :, 0, :, None] & inside[:, :, 1, None, :] & real[:, :, None, None]
        return images.masked_fill_(holes.any(1)[:, None], 0.0)
