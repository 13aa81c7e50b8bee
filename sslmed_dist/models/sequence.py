"""Heads that read the slices of an examination together: feature maps of every slice in, one logit a label out.

Shapes: B examinations of up to S slices, D channels, maps of h x w, L labels. ``length`` int64 (B,) says how many
slices an examination has; what follows them is padding, and no head lets it change its result.
"""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist.models.heads import require_sizes
from sslmed_dist.models.interfaces import Head
from sslmed_dist.models.semiparallel import BRANCHES, he_normal


def present(length: Tensor, slices: int) -> Tensor:
    """Which of S slices are there, bool (B, S)."""
    return torch.arange(slices, device=length.device) < length[:, None]


def spread(rows: Tensor, there: Tensor, fill: float = 0.0) -> Tensor:
    """The inverse of ``x[there]``: rows (n, ...) of the slices that are ``there`` (B, S) at their places, (B, S, ...),
    and ``fill`` elsewhere."""
    out = rows.new_full((*there.shape, *rows.shape[1:]), fill)
    out[there] = rows
    return out


class SliceHead(Head):
    """Maps (B, S, D, h, w) and ``length`` (B,) -> logits (B, L). ``out_dim`` is L.

    ``reads`` says which maps: the encoder's last ones, or those of the semi-parallel stem after DIVFRAM.
    """

    reads: ClassVar[Literal["maps", "stem"]] = "maps"

    @abstractmethod
    def forward(self, maps: Tensor, length: Tensor) -> Tensor:
        """Maps (B, S, D, h, w), length (B,) -> logits (B, L)."""


class MaxHead(SliceHead):
    """Global average of every slice's maps, maximum over slices, one linear layer (MRNet, Bien et al. 2018; thesis,
    chapter 4)."""

    def __init__(self, *, in_dim: int, out: int) -> None:
        super().__init__()
        self.linear, self.out_dim = nn.Linear(in_dim, out), out

    def forward(self, maps: Tensor, length: Tensor) -> Tensor:
        features = maps.mean(dim=(3, 4))  # (B, S, D)
        there = present(length, features.shape[1])[..., None]
        logits: Tensor = self.linear(features.masked_fill(~there, -torch.inf).amax(dim=1))
        return logits


class MeanHead(SliceHead):
    """Global average of the maps of all slices of an examination, one linear layer."""

    def __init__(self, *, in_dim: int, out: int) -> None:
        super().__init__()
        self.linear, self.out_dim = nn.Linear(in_dim, out), out

    def forward(self, maps: Tensor, length: Tensor) -> Tensor:
        features = maps.mean(dim=(3, 4))  # (B, S, D)
        there = present(length, features.shape[1])[..., None].to(features)
        logits: Tensor = self.linear((features * there).sum(dim=1) / length[:, None].to(features))
        return logits


class ConvLSTMCell(nn.Module):
    """One layer of a convolutional LSTM (Shi et al. 2015, arXiv 1506.04214, without peepholes):

        i, f, o, g = sigmoid, sigmoid, sigmoid, tanh of conv([x_t, h_(t-1)])
        c_t = f c_(t-1) + i g        h_t = o tanh(c_t)

    One 3 x 3 convolution gives all four. The forget gate's bias starts at 1, the others at 0.
    """

    def __init__(self, before: int, hidden: int) -> None:
        super().__init__()
        self.before, self.hidden = before, hidden
        self.conv = nn.Conv2d(before + hidden, 4 * hidden, 3, padding=1)
        nn.init.xavier_uniform_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)
        nn.init.ones_(self.conv.bias[hidden : 2 * hidden])

    def forward(self, x: Tensor, there: Tensor) -> list[Tensor]:
        """Maps x (B, S, before, h, w) -> the states h_1 ... h_S, each (B, hidden, h, w). Where a slice is not
        ``there`` (B, S), the state stays as it was."""
        exams, slices = x.shape[:2]
        of_input, of_state = self.conv.weight[:, : self.before], self.conv.weight[:, self.before :]
        # The input's part of the convolution needs no state: all slices at once.
        inputs = F.conv2d(x.flatten(0, 1), of_input, self.conv.bias, padding=1)
        inputs = inputs.view(exams, slices, *inputs.shape[1:])
        state = inputs.new_zeros(exams, self.hidden, *inputs.shape[3:])
        memory, states = torch.zeros_like(state), []
        for t in range(slices):
            gates = inputs[:, t] + F.conv2d(state, of_state, padding=1)
            entry, forget, output, new = gates.chunk(4, dim=1)
            kept = forget.sigmoid() * memory + entry.sigmoid() * new.tanh()
            here = there[:, t, None, None, None]
            memory = torch.where(here, kept, memory)
            state = torch.where(here, output.sigmoid() * kept.tanh(), state)
            states.append(state)
        return states


class ConvLSTMHead(SliceHead):
    """Two ConvLSTM layers over the slices, the last state's global average, one linear layer (SKID, thesis Sec. 3.4.2).

    On 4,096 channels with 512 hidden ones it has 103.8 M parameters."""

    def __init__(self, hidden: int = 512, layers: int = 2, *, in_dim: int, out: int) -> None:
        """``ValueError`` for a size below 1 or more than 64 layers."""
        super().__init__()
        require_sizes(layers, hidden=hidden)
        widths = [in_dim] + [hidden] * layers
        self.cells = nn.ModuleList(ConvLSTMCell(*pair) for pair in zip(widths[:-1], widths[1:], strict=True))
        self.linear, self.out_dim = nn.Linear(hidden, out), out

    def forward(self, maps: Tensor, length: Tensor) -> Tensor:
        there = present(length, maps.shape[1])
        states: list[Tensor] = []
        for cell in self.cells:
            states = cell(maps, there)
            maps = torch.stack(states, 1)
        logits: Tensor = self.linear(states[-1].mean(dim=(2, 3)))
        return logits


class CNN3DHead(SliceHead):
    """The 3-D CNN in place of the ConvLSTM (thesis, Tables 3.13 and 3.14).

    Its layers are unstated; ours are two 3 x 3 x 3 convolutions with ReLU, each followed by a max-pool of 2 x 2 within
    the slice, then the average over all slices and pixels and one linear layer. Nothing is pooled along the slices, so
    that their number is free."""

    def __init__(self, hidden: int = 256, layers: int = 2, *, in_dim: int, out: int) -> None:
        """``ValueError`` for a size below 1 or more than 64 layers."""
        super().__init__()
        require_sizes(layers, hidden=hidden)
        widths = [in_dim] + [hidden] * layers
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.convs = nn.ModuleList(nn.Conv3d(before, after, 3, padding=1) for before, after in pairs)
        self.linear, self.out_dim = nn.Linear(hidden, out), out

    def forward(self, maps: Tensor, length: Tensor) -> Tensor:
        there = present(length, maps.shape[1]).to(maps)[:, None, :, None, None]  # (B, 1, S, 1, 1)
        x = maps.transpose(1, 2) * there  # (B, D, S, h, w)
        for conv in self.convs:
            # Zeros past the last slice are what the convolution pads with itself, however long the padding is.
            x = F.relu(conv(x)) * there
            x = F.max_pool3d(x, (1, 2, 2), ceil_mode=True)
        logits: Tensor = self.linear(x.mean(dim=(3, 4)).sum(dim=2) / length[:, None].to(x))
        return logits


Variant = Literal["final", "model_1", "model_2"]
# Whether a max-pool 2 comes first; blocks of (3 x 3 convolution, 3 x 3 convolution of stride 2), as multiples of the
# stem's width; how many hidden layers follow (thesis, Sec. 3.4.2.2 and 3.5.4.1, read literally).
VARIANTS: dict[str, tuple[bool, tuple[tuple[int, int], ...], int]] = {
    "final": (False, ((1, 1), (1, 2), (2, 2)), 2),
    "model_1": (True, ((1, 1), (1, 2)), 1),
    "model_2": (True, ((1, 2), (2, 2)), 2),
}


class DivframHead(SliceHead):
    """SSLACL's classifier on the stem's maps of DIVFRAM (thesis, Alg. 3.3): blocks of convolutions on every slice,
    global average, maximum over slices, hidden layers with ReLU, one linear layer.

    With the stem it has 77,047,553 parameters for one label (``final``), 57,121,537 (``model_1``) and 72,327,937
    (``model_2``); the thesis prints 77, 72 and 75 M, which fit other networks than its text describes.
    """

    reads = "stem"

    def __init__(self, variant: Variant = "final", *, in_dim: int, out: int) -> None:
        super().__init__()
        pooled, blocks, hidden = VARIANTS[variant]
        layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if pooled else []
        for before, after in blocks:
            layers += [nn.Conv2d(before * in_dim, after * in_dim, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(after * in_dim, after * in_dim, 3, stride=2, padding=1), nn.ReLU()]
        wide = blocks[-1][1] * in_dim
        self.blocks = nn.Sequential(*layers)
        self.hidden = nn.Sequential(*[layer for _ in range(hidden) for layer in (nn.Linear(wide, wide), nn.ReLU())])
        self.linear, self.out_dim = nn.Linear(wide, out), out
        he_normal(self)

    def forward(self, maps: Tensor, length: Tensor) -> Tensor:
        there = present(length, maps.shape[1])
        features = self.blocks(maps[there]).mean(dim=(2, 3))  # (n, wide)
        logits: Tensor = self.linear(self.hidden(spread(features, there, -torch.inf).amax(dim=1)))
        return logits


def divided(count: int) -> list[int]:
    """How many of ``count`` consecutive slices each of the nine branches gets, in order (thesis, Alg. 3.3 DIVFRAM).

    The k-th gets the slices that are left over the branches that are left, rounded up. With fewer than nine slices the
    last branches get none. Read literally, the algorithm never lowers the number of slices that are left; its text asks
    for equal parts."""
    parts: list[int] = []
    for branches in range(BRANCHES, 0, -1):
        parts.append(-(-(count - sum(parts)) // branches))
    return parts


def branches_of(length: Tensor, slices: int) -> Tensor:
    """Which branch a slice goes through, int64 (B, S); -1 where there is no slice."""
    numbers = torch.arange(BRANCHES)
    rows = [numbers.repeat_interleave(torch.tensor(divided(int(count)))) for count in length]
    padded = [F.pad(row, (0, slices - len(row)), value=-1) for row in rows]
    return torch.stack(padded).to(length.device)
