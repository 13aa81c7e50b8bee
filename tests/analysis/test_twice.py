"""Batch norms that are quickly differentiated twice give torch's own derivatives; convolutions: test_curvature.py."""

import copy

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist.analysis import twice
from sslmed_dist.analysis.twice import FastTwice

Layer = nn.BatchNorm1d | nn.BatchNorm2d


def made(name: str) -> tuple[Layer, tuple[int, ...]]:
    """A layer in float64 and the shape of its input. One of its weights is 0, as at the end of a residual block."""
    torch.manual_seed(0)
    layers: dict[str, tuple[Layer, tuple[int, ...]]] = {
        "norm of vectors": (nn.BatchNorm1d(3), (6, 3)),
        "norm of maps": (nn.BatchNorm2d(3), (4, 3, 5, 5)),
        "norm of channels-last maps": (nn.BatchNorm2d(3), (4, 3, 5, 5)),
    }
    layer, shape = layers[name]
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    layer.weight.data[0] = 0.0
    return layer.double(), shape


def derivatives(layer: nn.Module, x: Tensor, fast: bool) -> list[Tensor]:
    """The output, the gradient by input and parameters of a scalar that bends, its second derivative along a vector,
    and what the layer keeps."""
    if fast:
        with FastTwice():
            out = layer(x)
        assert type(out.grad_fn).__name__ == "BatchNormBackward"  # not torch's
    else:
        out = layer(x)
    torch.manual_seed(1)
    variables = [x, *layer.parameters()]
    slopes = torch.autograd.grad(((out * torch.randn_like(out)).sin() * out).sum(), variables, create_graph=True)
    bent = torch.autograd.grad(slopes, variables, [torch.randn_like(it) for it in variables])
    return [out.detach(), *(it.detach() for it in slopes), *bent, *layer.buffers()]


@pytest.mark.parametrize("name", ["norm of vectors", "norm of maps", "norm of channels-last maps"])
def test_second_derivatives_are_torchs(name: str) -> None:
    layer, shape = made(name)
    x = torch.randn(shape, dtype=torch.float64)
    if "last" in name:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    expected = derivatives(copy.deepcopy(layer), x, fast=False)
    for own, torchs in zip(derivatives(layer, x, fast=True), expected, strict=True):
        torch.testing.assert_close(own, torchs, rtol=1e-11, atol=1e-12)


def test_the_batch_norm_against_differences() -> None:
    layer, shape = made("norm of vectors")
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return twice.batch_norm(x, weight, bias, (None, None), 0.1, 1e-5)

    assert torch.autograd.gradgradcheck(norm, (x, *layer.parameters()))


def test_what_is_no_batch_norm_of_a_batch_is_torchs() -> None:
    """In evaluation, and without weights, nothing is replaced; a batch of one value is refused as ever."""
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    with FastTwice():
        for layer in (nn.BatchNorm1d(3).double().eval(), nn.BatchNorm1d(3, affine=False).double()):
            assert type(layer(x).grad_fn).__name__ == "NativeBatchNormBackward0"
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            nn.BatchNorm1d(3).double()(x[:1])
