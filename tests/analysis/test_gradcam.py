"""Grad-CAM against its formula, for any layer, and of a diagnosis."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist import registry
from sslmed_dist.analysis.gradcam import cam, gradcam, of_slices
from sslmed_dist.methods import METHODS
from sslmed_dist.models import ENCODERS


def slow_cam(maps: Tensor, gradients: Tensor) -> list[list[float]]:
    """One image (D, h, w), one pixel at a time."""
    depth, height, width = maps.shape
    weights = [float(gradients[d].mean()) for d in range(depth)]
    plane = [
        [max(0.0, sum(weights[d] * float(maps[d, i, j]) for d in range(depth))) for j in range(width)]
        for i in range(height)
    ]
    top = max(max(row) for row in plane)
    return [[value / top if top else 0.0 for value in row] for row in plane]


def test_it_is_the_formula() -> None:
    source = torch.Generator().manual_seed(0)
    maps, gradients = (torch.randn(3, 4, 2, 3, dtype=torch.float64, generator=source) for _ in range(2))
    gradients[2], maps[2] = 1.0, -1.0  # nothing speaks for this one
    found = cam(maps, gradients)
    for image in range(3):
        expected = torch.tensor(slow_cam(maps[image], gradients[image]), dtype=torch.float64)
        assert torch.allclose(found[image], expected)
    assert not found[2].any()


def test_any_layer_of_a_network_can_be_asked() -> None:
    """A spot in one corner is all that the score sees."""
    encoder = registry.build(ENCODERS, {"name": "resnet", "depth": 9, "width": 4, "stem": "cifar"}, "e", channels=1)
    encoder = encoder.double().eval().requires_grad_(False)
    images = torch.zeros(2, 1, 16, 16, dtype=torch.float64)
    images[:, :, :6, :6] = torch.rand(2, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def score() -> Tensor:
        # The half of the channels, so that the gradient is not the same everywhere.
        return encoder(images)[:, ::2]

    for layer, side in (("layer1", 16), ("layer4", 2), ("relu", None)):
        found = gradcam(encoder, layer, score)
        assert all(bool(((part >= 0) & (part <= 1)).all()) for part in found)
        if side is not None:
            assert len(found) == 1 and found[0].shape == (2, side, side)
    maps = encoder.layer1(encoder.relu(encoder.bn1(encoder.conv1(images)))).requires_grad_()
    rest = encoder.layer4(encoder.layer3(encoder.layer2(maps))).mean(dim=(2, 3))[:, ::2].sum()
    expected = cam(maps.detach(), torch.autograd.grad(rest, maps)[0])
    assert torch.allclose(gradcam(encoder, "layer1", score)[0], expected)
    assert all(parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.parametrize(
    "layer, said", [("layer9", "layer: no 'layer9'; allowed: any submodule"), ("fc", "layer: fc gives no feature maps")]
)
def test_a_bad_layer_is_named(layer: str, said: str) -> None:
    module = nn.Sequential()
    module.add_module("conv", nn.Conv2d(1, 2, 3))
    module.add_module("pool", nn.AdaptiveAvgPool2d(1))
    module.add_module("flat", nn.Flatten())
    module.add_module("fc", nn.Linear(2, 1))
    with pytest.raises(ValueError) as caught:
        gradcam(module, layer, lambda: module(torch.zeros(1, 1, 8, 8)))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("head", [{"name": "convlstm", "hidden": 4}, "max", {"name": "divfram"}])
def test_a_frozen_diagnosis_says_where_each_slice_speaks(head: Any) -> None:
    leaf = {"name": "diagnose", "encoder": {"name": "skid", "width": 0.02}, "head": head, "classes": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = registry.build(METHODS, leaf, "method").double().eval()
    view = torch.randn(1, 3, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = of_slices(method, view)[1]
    maps = method.maps(view, torch.tensor([3])).requires_grad_()
    gradients = torch.autograd.grad(method.head(maps, torch.tensor([3]))[0, 1], maps)[0]
    assert found.shape == (3, *maps.shape[3:]) and torch.allclose(found, cam(maps[0].detach(), gradients[0]))
    assert all(parameter.grad is None for parameter in method.parameters())
