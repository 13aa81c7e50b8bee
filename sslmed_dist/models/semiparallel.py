"""The semi-parallel stem of the jigsaw networks: nine branches with weights of their own (thesis, Sec. 3.4.1.4).

A convolution of all branches is one grouped convolution. Nine ordinary ones compute the same from the same tensors, so
there is one format of checkpoints. On a CPU the grouped one is the faster at the published widths (1.04 to 1.27 times:
``python -m tests.benchmarks.stem``).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BRANCHES = 9  # of a 3 x 3 puzzle
# Batch norm of the published code, in torch's sense: a new batch counts for 1 % of the running statistics.
NORM_MOMENTUM, NORM_EPS = 0.01, 1e-3


def scaled(filters: int, width: float) -> int:
    """``filters`` of the published network times ``width``, at least 1."""
    return max(1, round(filters * width))


def require_network_width(width: float) -> float:
    """``ValueError`` unless 0 < width <= 2: a wider network has no use here, and a mistake would fill the memory."""
    if not 0 < width <= 2:
        raise ValueError(
            f"method.encoder.width: expected a number above 0 and at most 2 (1.0 = published), got {width}"
        )
    return width


def he_normal(module: nn.Module) -> None:
    """He-normal weights (variance 2 / fan-in) and zero biases for all convolutions and linear layers in ``module``."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the published code's constants."""
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)


class Convolution(nn.Module):
    """Convolution with bias (padded to keep the size at stride 1), batch norm where asked for, ReLU."""

    def __init__(self, before: int, after: int, kernel: int = 3, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, kernel // 2)
        self.norm: nn.Module = batch_norm(after) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, after, H / stride, W / stride), rounded up."""
        return F.relu(self.norm(self.conv(x)))


class BranchConvolution(nn.Module):
    """3 x 3 convolutions of all branches, batch norm where asked for, ReLU: (N, 9 before, h, w) -> (N, 9 after, h, w).

    Channels are those of branch 0, then those of branch 1, and so on. Batch norm works channel by channel and so keeps
    the branches apart by itself.
    """

    def __init__(self, before: int, after: int, norm: bool) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.conv = nn.Conv2d(BRANCHES * before, BRANCHES * after, 3, padding=1, groups=BRANCHES)
        self.norm: nn.Module = batch_norm(BRANCHES * after) if norm else nn.Identity()

    def own(self, k: int) -> tuple[Tensor, Tensor]:
        """Weight (after, before, 3, 3) and bias (after,) of branch ``k``."""
        assert self.conv.bias is not None
        part = slice(k * self.after, (k + 1) * self.after)
        return self.conv.weight[part], self.conv.bias[part]

    def forward(self, x: Tensor, by_branch: bool) -> Tensor:
        """All branches. ``by_branch``: as nine ordinary convolutions, not as one grouped one."""
        if by_branch:
            parts = [F.conv2d(part, *self.own(k), padding=1) for k, part in enumerate(x.chunk(BRANCHES, 1))]
            return F.relu(self.norm(torch.cat(parts, 1)))
        return F.relu(self.norm(self.conv(x)))

    def whole(self, images: Tensor) -> Tensor:
        """Every branch sees the same ``images`` (N, before, H, W): together one ordinary convolution."""
        return F.relu(self.norm(F.conv2d(images, self.conv.weight, self.conv.bias, padding=1)))

    def branch(self, k: int, x: Tensor) -> Tensor:
        """(n, before, h, w) through branch ``k`` alone -> (n, after, h, w). ``ValueError`` for batch norm in training
        mode: its statistics would be those of one branch's samples."""
        x = F.conv2d(x, *self.own(k), padding=1)
        if isinstance(self.norm, nn.Identity):
            return F.relu(x)
        if self.norm.training:
            raise ValueError("one branch alone: needs an encoder without batch norm (sslacl), or a frozen one")
        part = slice(k * self.after, (k + 1) * self.after)
        statistics = (self.norm.running_mean[part], self.norm.running_var[part])  # type: ignore[index]
        scale, shift = self.norm.weight[part], self.norm.bias[part]  # type: ignore[index]
        return F.relu(F.batch_norm(x, *statistics, scale, shift, eps=self.norm.eps))  # type: ignore[arg-type]


class SemiParallel(nn.Module):
    """Nine branches of separate weights; a branch is (3 x 3 convolution twice, max-pool 2) twice.

    ``widths``: filters of a branch's first two and of its last two convolutions; ``width`` W is the second.
    ``norm``: batch norm after every convolution. ``by_branch``: compute nine convolutions a layer, not a grouped one.
    """

    by_branch: bool = False

    def __init__(self, channels: int, widths: tuple[int, int], norm: bool) -> None:
        super().__init__()
        first, second = widths
        sizes = ((channels, first), (first, first), (first, second), (second, second))
        self.layers = nn.ModuleList(BranchConvolution(before, after, norm) for before, after in sizes)
        self.channels, self.width = channels, second

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (N, 9, C, h, w), the k-th of them into branch k -> (N, 9 W, h / 4, w / 4)."""
        return self.finish(patches.flatten(1, 2), 0)

    def whole(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), each into all nine branches -> (N, 9 W, H / 4, W / 4)."""
        first = self.layers[0]
        assert isinstance(first, BranchConvolution)
        return self.finish(first.whole(images), 1)

    def finish(self, x: Tensor, start: int) -> Tensor:
        """The layers from number ``start`` on."""
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, BranchConvolution)
            if number >= start:
                x = layer(x, self.by_branch)
            if number % 2 == 1:
                x = F.max_pool2d(x, 2)
        return x

    def branch(self, k: int, images: Tensor) -> Tensor:
        """Images (n, C, H, W) through branch ``k`` alone -> (n, W, H / 4, W / 4). What DIVFRAM (Alg. 3.3) needs."""
        assert 0 <= k < BRANCHES
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, BranchConvolution)
            images = layer.branch(k, images)
            if number % 2 == 1:
                images = F.max_pool2d(images, 2)
        return images
