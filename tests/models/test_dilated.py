"""The dilated encoder: torchvision's DeepLabV3 body, the strided network's maps in between, weights files."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from sslmed_dist import registry
from sslmed_dist.models import ENCODERS
from sslmed_dist.models.dilated import DilatedResNet, dilate
from sslmed_dist.models.resnet import ResNet


def images(channels: int = 3, size: int = 33) -> Tensor:
    """Two images with structure, float64."""
    return torch.linspace(-2, 2, 2 * channels * size * size, dtype=torch.float64).sin().view(2, channels, size, size)


def deeplab(depth: int) -> nn.Module:
    """torchvision's whole model without weights."""
    build = getattr(torchvision.models.segmentation, f"deeplabv3_resnet{depth}")
    model: nn.Module = build(weights=None, weights_backbone=None, aux_loss=True)
    return model


@pytest.mark.parametrize("depth", [50, 101])
def test_the_body_is_torchvisions_deeplab_body(depth: int) -> None:
    """The same keys and, in training and in evaluation, the same maps, an eighth of the image (rounded up)."""
    torch.manual_seed(0)
    original = deeplab(depth).backbone.double()  # type: ignore[operator, union-attr]
    ours = DilatedResNet(depth).double()  # type: ignore[arg-type]
    assert list(ours.backbone.state_dict()) == list(original.state_dict())
    ours.backbone.load_state_dict(original.state_dict())
    for training in (True, False):
        expected = original.train(training)(images())["out"]
        found = ours.backbone.train(training).maps(images())
        assert found.shape == (2, 2048, 5, 5)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert ours.maps(images()).shape == (2, 256, 5, 5) and ours.feature_dim == 256
    assert ours.project.weight.shape == (256, 2048, 1, 1) and ours.project.bias is None


@pytest.mark.parametrize("depth, size", [(9, 64), (18, 64), (34, 72), (50, 65)])
@pytest.mark.parametrize("stride", [8, 4])
def test_every_fourth_place_is_the_strided_networks(depth: int, size: int, stride: int) -> None:
    """Dilation computes the strided maps and those in between; basic blocks, which torchvision refuses, included."""
    torch.manual_seed(0)
    strided = ResNet(depth, width=4).double().eval()  # type: ignore[arg-type]
    dilated = dilate(ResNet(depth, width=4).double().eval(), stride)  # type: ignore[arg-type]
    dilated.load_state_dict(strided.state_dict())
    fine, coarse = dilated.maps(images(size=size)), strided.maps(images(size=size))
    assert fine.shape[-1] == -(-size // stride) and coarse.shape[-1] == -(-size // 32)
    step = 32 // stride
    torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=1e-12, atol=1e-12)


def test_the_features_of_a_resnet_are_the_mean_of_its_maps() -> None:
    encoder = ResNet(9, width=4).double().eval()
    maps = encoder.maps(images(size=64))
    assert maps.shape == (2, encoder.feature_dim, 2, 2)
    assert torch.equal(encoder(images(size=64)), maps.mean(dim=(2, 3)))


def test_sizes_channels_and_features() -> None:
    for stem, stride in (("imagenet", 8), ("cifar", 2)):
        encoder = DilatedResNet(9, stem, 4, 6, channels=1).double().eval()  # type: ignore[arg-type]
        maps = encoder.maps(images(1, 32))
        assert maps.shape == (2, 6, 32 // stride, 32 // stride)
        torch.testing.assert_close(encoder(images(1, 32)), maps.mean(dim=(2, 3)))
        torch.testing.assert_close(encoder.maps(images(1, 32).repeat(1, 3, 1, 1)), maps)
        assert encoder.backbone.conv1.in_channels == 3
    assert DilatedResNet(9, width=4, channels=5).backbone.conv1.in_channels == 5


def refused(path: Path) -> str:
    """The line that refuses a weights file."""
    with pytest.raises(ValueError) as caught:
        DilatedResNet(50, weights=str(path), channels=1)
    line = str(caught.value)
    assert line.startswith(f"method.encoder.weights: {path}: ") and "\n" not in line
    return line.removeprefix(f"method.encoder.weights: {path}: ")


def test_weights_of_a_resnet_and_of_a_deeplab(tmp_path: Path) -> None:
    """Both fit, also a one-channel encoder; a DeepLabV3 file comes with two classifiers, which are left out."""
    torch.manual_seed(0)
    whole = deeplab(50).state_dict()
    body = {key.removeprefix("backbone."): value for key, value in whole.items() if key.startswith("backbone.")}
    assert {key.split(".")[0] for key in whole} == {"backbone", "classifier", "aux_classifier"}
    path = tmp_path / "weights.pth"
    for state in (whole, {**body, "fc.weight": torch.ones(1), "fc.bias": torch.ones(1)}):
        torch.save(state, path)
        found = DilatedResNet(50, weights=str(path), channels=1).backbone.state_dict()
        assert found.keys() == body.keys() and all(torch.equal(found[key], body[key]) for key in body)
    torch.save({key: value for key, value in whole.items() if key != "backbone.bn1.weight"}, path)
    assert refused(path) == "does not fit this encoder (looked under 'backbone.'): 1 missing (bn1.weight)"
    torch.save({**whole, "backbone.layer5.weight": torch.ones(1), "backbone.layer4.x": torch.ones(1)}, path)
    assert refused(path) == "does not fit this encoder (looked under 'backbone.'): 1 unexpected (layer4.x)"
    assert refused(tmp_path / "gone.pth") == "no such file"


def test_mistakes_in_the_leaf() -> None:
    for leaf, message in (
        ({"depth": 152}, "method.encoder.depth: expected one of 9, 18, 34, 50, 101, got 152"),
        ({"out": 0}, "method.encoder.out: expected an integer >= 1, got 0"),
        ({"width": 0}, "method.encoder.width: expected an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError) as caught:
            registry.build(ENCODERS, {"name": "dilated_resnet", **leaf}, "method.encoder", channels=1)
        assert str(caught.value) == message
