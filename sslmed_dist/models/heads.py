"""Heads on top of an encoder: the projector that the loss sees and that is thrown away after pretraining."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist.arguments import require_between
from sslmed_dist.models.interfaces import Head

MOST_LAYERS = 64  # of a head: more would only be found out when the memory is full


def require_sizes(layers: int, **sizes: int) -> None:
    """``ValueError`` unless all ``sizes`` (by field) and ``layers`` are at least 1, and ``layers`` at most 64."""
    for name, value in {**sizes, "layers": layers}.items():
        if value < 1:
            raise ValueError(f"method.head.{name}: expected an integer >= 1, got {value}")
    require_between("method.head.layers", layers, 1, MOST_LAYERS)


class Projection(Head):
    """Multi-layer perceptron (N, in_dim) -> (N, out): ``layers`` linear layers with ReLU between them.

    ``batch_norm`` normalises after every hidden layer, ``last_norm`` also after the last one. Two layers without
    normalisation is SimCLR's small-image projector (Chen et al. 2020); Linear-BN-ReLU-Linear-BN is that of the
    thesis, chapter 6. A layer followed by batch norm has no bias (the norm would remove it). ``out_dim`` is ``out``.
    """

    def __init__(
        self,
        hidden: int = 512,
        out: int = 128,
        layers: int = 2,
        batch_norm: bool = False,
        last_norm: bool = False,
        *,
        in_dim: int,
    ) -> None:
        super().__init__()
        require_sizes(layers, hidden=hidden, out=out)
        widths = [in_dim] + [hidden] * (layers - 1) + [out]  # before and after each linear layer
        modules: list[nn.Module] = []
        # Linear (- BatchNorm) - ReLU for each hidden layer; the last layer without ReLU.
        for i, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            last = i == layers - 1
            normalised = last_norm if last else batch_norm
            modules.append(nn.Linear(before, after, bias=not normalised))
            if normalised:
                modules.append(nn.BatchNorm1d(after))
            if not last:
                modules.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*modules)
        self.out_dim = out

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_dim) -> (N, out), not normalised: losses normalise."""
        out: Tensor = self.layers(features)
        return out


class Identity(Head):
    """No head: the loss sees the features themselves."""

    def __init__(self, *, in_dim: int) -> None:
        super().__init__()
        self.out_dim = in_dim

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_dim), unchanged."""
        return features


class Prototypes(nn.Module):
    """Linear layer without bias whose rows (``weight`` over its norm) are unit vectors. Unless ``normalised``, each row
    is multiplied by a learned ``scale``. With unit input and without scale the outputs are cosines.

    It works in the precision of its weight under autocast too: over a temperature of 0.04, the rounding steps of a
    cosine in half precision would be a tenth of a logit.
    """

    def __init__(self, in_dim: int, out: int, normalised: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, in_dim))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.scale = None if normalised else nn.Parameter(torch.ones(out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_dim) -> (N, out)."""
        with torch.autocast(device_type=x.device.type, enabled=False):
            out = F.linear(x.to(self.weight.dtype), F.normalize(self.weight, dim=1))
            return out if self.scale is None else out * self.scale


class DinoHead(Head):
    """DINO's head (Caron et al. 2021, appendix C): a perceptron with GELU to a bottleneck of unit length, then ``out``
    prototypes. ``out_dim`` is ``out``.

    ``layers`` linear layers end in the bottleneck; ``batch_norm`` normalises after every hidden one. ``normalised``
    prototypes have unit length (the paper: always for small batches), otherwise their lengths are learned.
    """

    def __init__(
        self,
        hidden: int = 2048,
        bottleneck: int = 256,
        out: int = 65536,
        layers: int = 3,
        batch_norm: bool = False,
        normalised: bool = True,
        *,
        in_dim: int,
    ) -> None:
        """``ValueError`` for a size below 1 or more than 64 layers."""
        super().__init__()
        require_sizes(layers, hidden=hidden, bottleneck=bottleneck, out=out)
        widths = [in_dim] + [hidden] * (layers - 1)
        modules: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            norm = [nn.BatchNorm1d(after)] if batch_norm else []
            # As in ``Projection``, a layer followed by batch norm has no bias.
            modules += [nn.Linear(before, after, bias=not batch_norm), *norm, nn.GELU()]
        self.layers = nn.Sequential(*modules, nn.Linear(widths[-1], bottleneck))
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.last = Prototypes(bottleneck, out, normalised)
        self.out_dim = out

    def bottleneck(self, features: Tensor) -> Tensor:
        """Features (N, in_dim) -> (N, bottleneck), unit rows."""
        return F.normalize(self.layers(features), dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, in_dim) -> (N, out), one output per prototype."""
        out: Tensor = self.last(self.bottleneck(features))
        return out
