"""Heads on top of an encoder: the projector that the loss sees and that is thrown away after pretraining."""

from torch import Tensor, nn


class Projection(nn.Module):
    """Multi-layer perceptron (N, in_dim) -> (N, out): ``layers`` linear layers with ReLU between them.

    ``batch_norm`` normalises after every hidden layer, ``last_norm`` also after the last one. Two layers without
    normalisation is SimCLR's small-image projector (Chen et al. 2020); Linear-BN-ReLU-Linear-BN is that of the
    thesis, chapter 6. A layer followed by batch norm has no bias (the norm would remove it).
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
        for name, value in (("hidden", hidden), ("out", out), ("layers", layers)):
            if value < 1:
                raise ValueError(f"method.head.{name}: expected an integer >= 1, got {value}")
        widths = [in_dim] + [hidden] * (layers - 1) + [out]
        modules: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            last = i == layers - 1
            normalised = last_norm if last else batch_norm
            modules.append(nn.Linear(before, after, bias=not normalised))
            if normalised:
                modules.append(nn.BatchNorm1d(after))
            if not last:
                modules.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*modules)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_dim) -> (N, out), not normalised: losses normalise."""
        out: Tensor = self.layers(features)
        return out


class Identity(nn.Module):
    """No head: the loss sees the features themselves."""

    def __init__(self, *, in_dim: int) -> None:
        super().__init__()

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_dim), unchanged."""
        return features
