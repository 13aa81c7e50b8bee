"""ResNets: torchvision's at width 64, and every other depth, width, stem and number of channels."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from sslmed_dist import registry
from sslmed_dist.models import ENCODERS, HEADS
from sslmed_dist.models.resnet import ResNet


def images(channels: int = 3, size: int = 33) -> Tensor:
    """Two images with structure, float64."""
    return torch.linspace(-2, 2, 2 * channels * size * size, dtype=torch.float64).sin().view(2, channels, size, size)


def torchvisions(depth: int) -> nn.Module:
    """The original without its classifier, float64."""
    model: nn.Module = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    model.fc = nn.Identity()
    return model.double()


@pytest.mark.parametrize("depth", [18, 50])
def test_at_width_64_it_is_torchvisions(depth: int) -> None:
    """The same keys, outputs, gradients and running statistics from the same weights."""
    torch.manual_seed(0)
    original, ours = torchvisions(depth), ResNet(depth).double()  # type: ignore[arg-type]
    assert list(ours.state_dict()) == list(original.state_dict())
    assert ours.feature_dim == {18: 512, 50: 2048}[depth]
    ours.load_state_dict(original.state_dict())
    for training in (True, False):
        outputs = [model.train(training)(images()) for model in (ours, original)]
        torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    for output in outputs:
        output.square().sum().backward()
    for mine, other in zip(ours.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-12)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, original.state_dict()[name], rtol=1e-12, atol=1e-12)


def test_initial_weights_are_spread_as_torchvisions() -> None:
    torch.manual_seed(0)
    original, ours = torchvisions(18).state_dict(), ResNet(18).state_dict()
    for name, value in ours.items():
        if "conv" in name:
            assert float(value.std()) == pytest.approx(float(original[name].std()), rel=0.05), name
        elif value.is_floating_point() and "downsample.0" not in name:
            assert torch.equal(value, original[name].float()), name


@pytest.mark.parametrize(
    "depth, width, feature_dim, convolutions", [(9, 4, 32, 12), (18, 4, 32, 20), (34, 2, 16, 36), (50, 4, 128, 53)]
)
def test_depth_and_width(depth: int, width: int, feature_dim: int, convolutions: int) -> None:
    encoder = ResNet(depth, width=width)  # type: ignore[arg-type]
    assert encoder.feature_dim == feature_dim
    assert sum(isinstance(module, nn.Conv2d) for module in encoder.modules()) == convolutions
    assert encoder(images().float()).shape == (2, feature_dim)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_stems(channels: int) -> None:
    """ImageNet's stem halves twice, CIFAR's leaves the resolution; the stages then halve three times."""
    found: dict[str, Any] = {}
    for stem, first in (("imagenet", (7, 2, 3)), ("cifar", (3, 1, 1))):
        encoder = ResNet(9, stem=stem, width=2, channels=channels)  # type: ignore[arg-type]
        conv = encoder.conv1
        assert (conv.kernel_size[0], conv.stride[0], conv.padding[0], conv.bias) == (*first, None)
        maps: list[Tensor] = []
        encoder.layer4.register_forward_hook(lambda _, __, out, maps=maps: maps.append(out))
        assert encoder(images(channels, 64).float()).shape == (2, 16)
        found[stem] = maps[0].shape[-1]
    assert found == {"imagenet": 2, "cifar": 8}


def refused(path: Path) -> str:
    """The line that refuses a weights file."""
    with pytest.raises(ValueError) as caught:
        registry.build(ENCODERS, {"name": "resnet", "depth": 18, "width": 64, "weights": str(path)}, "e", channels=3)
    line = str(caught.value)
    assert line.startswith(f"method.encoder.weights: {path}: ") and "\n" not in line
    return line.removeprefix(f"method.encoder.weights: {path}: ")


def test_a_local_weights_file(tmp_path: Path) -> None:
    """A torchvision file with its classifier, also from before batch norm had counters; nothing else."""
    path = tmp_path / "resnet18.pth"
    assert refused(path) == "no such file"
    original = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(original, path)
    for key, value in ResNet(18, weights=str(path)).state_dict().items():
        assert torch.equal(value, original[key])
    torch.save({key: value for key, value in original.items() if "num_batches_tracked" not in key}, path)
    assert torch.equal(ResNet(18, weights=str(path)).conv1.weight, original["conv1.weight"])
    torch.save({key: value for key, value in original.items() if key != "bn1.weight"}, path)
    assert refused(path) == "does not fit this encoder: 1 missing (bn1.weight)"
    torch.save({**original, "conv1.weight": torch.ones(64, 1, 7, 7)}, path)
    shapes = "conv1.weight (64, 1, 7, 7) in the file and (64, 3, 7, 7) here"
    assert refused(path) == f"does not fit this encoder: 1 of another shape ({shapes})"
    torch.save({**original, "layer1.x": torch.ones(1)}, path)
    assert refused(path) == "does not fit this encoder: 1 unexpected (layer1.x)"


def test_a_file_that_holds_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.ones(1)}}, path)
    assert refused(path) == "does not fit this encoder: 100 missing (bn1.bias, bn1.running_mean, bn1.running_var, ...)"
    torch.save([1, 2], path)
    assert refused(path) == "expected a state dict of tensors, got list without any"
    path.write_bytes(b"no weights at all")
    assert refused(path).startswith("not a state dict that torch can read (")
    torch.save({"a": Path("x")}, path)
    assert refused(path).startswith("not a state dict that torch can read (")


def test_mistakes_in_the_leaf() -> None:
    for leaf, message in (
        ({"depth": 20}, "method.encoder.depth: expected one of 9, 18, 34, 50, 101, 152, got 20"),
        ({"stem": "mnist"}, "method.encoder.stem: expected one of 'imagenet', 'cifar', got 'mnist'"),
        ({"width": 0}, "method.encoder.width: expected an integer >= 1, got 0"),
        ({"channels": 3}, "method.encoder.channels: unknown key; allowed: depth, stem, width, weights, rgb"),
    ):
        with pytest.raises(ValueError) as caught:
            registry.build(ENCODERS, {"name": "resnet", **leaf}, "method.encoder", channels=3)
        assert str(caught.value) == message


def test_heads() -> None:
    """Layers, where the norms are, and biases only where no norm follows."""
    x = torch.linspace(-1, 1, 12).view(2, 6)
    for leaf, kinds, biases in (
        ({"hidden": 5, "out": 3}, "Linear ReLU Linear", [True, True]),
        ({"hidden": 5, "out": 3, "layers": 1}, "Linear", [True]),
        ({"hidden": 5, "out": 3, "batch_norm": True}, "Linear BatchNorm1d ReLU Linear", [False, True]),
        (
            {"hidden": 5, "out": 3, "layers": 3, "batch_norm": True, "last_norm": True},
            "Linear BatchNorm1d ReLU Linear BatchNorm1d ReLU Linear BatchNorm1d",
            [False] * 3,
        ),
    ):
        head = registry.build(HEADS, {"name": "projection", **leaf}, "method.head", in_dim=6)
        assert [type(module).__name__ for module in head.layers] == kinds.split()
        assert [m.bias is not None for m in head.layers if isinstance(m, nn.Linear)] == biases
        assert head(x).shape == (2, 3)
    identity = registry.build(HEADS, "identity", "method.head", in_dim=6)
    assert identity(x) is x and not list(identity.parameters())
    with pytest.raises(ValueError, match="^method.head.layers: expected an integer >= 1, got 0$"):
        registry.build(HEADS, {"name": "projection", "layers": 0}, "method.head", in_dim=6)
    for head in ("projection", "dino"):
        with pytest.raises(ValueError, match="^method.head.layers: expected a number from 1 to 64, got 1000000000$"):
            registry.build(HEADS, {"name": head, "layers": 10**9}, "method.head", in_dim=6)
