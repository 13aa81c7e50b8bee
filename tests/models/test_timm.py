"""Encoders of timm, VGG, and batch norms that compute more than batch norm: over workers their activation stays."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslmed_dist import distributed, randomness, registry
from sslmed_dist.methods import METHODS
from sslmed_dist.models import ENCODERS, episode_norm
from sslmed_dist.models.normalization import SyncBatchNorm, synchronise
from sslmed_dist.models.vgg import VGG
from tests.gloo import GlooPool
from tests.real_data import real_data

WEIGHTS = "weights/tf_efficientnet_lite0-imagenet.safetensors"
LITE: dict[str, Any] = {"name": "timm", "model": "tf_efficientnet_lite0"}
CPU, ROOT = torch.device("cpu"), Path(__file__).parents[2]


def encoder(**arguments: Any) -> Any:
    return registry.build(ENCODERS, {**LITE, **arguments}, "method.encoder", channels=1)


def walk(weights: str | None) -> dict[str, Tensor]:
    """Two steps in training mode on this rank's half of four grey images, float64: features, parameters, statistics."""
    torch.manual_seed(0)
    network: nn.Module = encoder(weights=weights).double()
    if distributed.active():
        network = synchronise(network, CPU)
    rank, world = distributed.rank(), distributed.world_size()
    images = randomness.normal("lite", torch.arange(4 * 96 * 96)).view(4, 1, 96, 96)
    part = slice(rank * 4 // world, (rank + 1) * 4 // world)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        features = network(images[part])
        features.square().mean().backward()
        (distributed.average_gradients if distributed.active() else distributed.leave_gradients)(network.parameters())
        optimizer.step()
    return {
        **{key: value.detach().clone() for key, value in network.state_dict().items()},
        "features": features.detach(),
    }


@pytest.mark.slow
def test_efficientnet_lite0_trains_alike_on_one_and_two_workers(gloo: GlooPool) -> None:
    """Every batch norm of it is followed by ReLU6 inside of its own class. ImageNet weights where they are at hand."""
    pytest.importorskip("timm")
    file = Path(os.environ.get("SSLMED_TEST_DATA", ROOT.parent / "shared" / "data")) / WEIGHTS
    weights = str(file) if file.is_file() else None
    alone, both = walk(weights), gloo.run(walk, 2, weights)
    features = torch.cat([rank["features"] for rank in both])
    assert (features - alone["features"]).norm() <= 1e-9 * alone["features"].norm()
    for key, value in alone.items():
        if key != "features" and value.is_floating_point():
            assert (both[0][key] - value).norm() <= 1e-9 * value.norm().clamp_min(1.0), key


def test_weights_of_a_file_are_taken_whole() -> None:
    pytest.importorskip("timm")
    safetensors = pytest.importorskip("safetensors.torch")
    file = real_data(WEIGHTS)
    network = encoder(weights=str(file))
    stored = safetensors.load_file(file)
    assert torch.equal(network.model.conv_stem.weight, stored["conv_stem.weight"])
    assert network.taken.startswith("method.encoder.weights: ") and "2 others in the file left aside" in network.taken
    assert network.feature_dim == 1280 and network.eval()(torch.zeros(2, 1, 64, 64)).shape == (2, 1280)
    assert network.maps(torch.zeros(2, 1, 64, 64)).shape == (2, 1280, 2, 2)


def test_a_layer_after_the_pooling_leaves_the_maps_as_wide_as_they_are() -> None:
    """A head over slices is as wide as the maps, whatever the width of the features."""
    pytest.importorskip("timm")
    leaf = {"name": "timm", "model": "mobilenetv3_small_050"}
    method = registry.build(METHODS, {"name": "diagnose", "encoder": leaf, "head": "max"}, "method")
    network, images = method.encoder.eval(), torch.zeros(2, 1, 64, 64)
    assert network.feature_dim == network(images).shape[1] == 1024
    assert network.maps_dim == network.maps(images).shape[1] == 288
    assert method.embed({"views_0": images[:, None]})["logits"].shape == (2, 1)


def test_what_timm_cannot_give_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"^method\.encoder\.model: timm has no 'resnet_fifty'; near: "):
        encoder(model="resnet_fifty")

    def offline(*_: Any, **arguments: Any) -> None:
        assert arguments["pretrained"]
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"^method\.encoder\.weights: tf_efficientnet_lite0: .*: no route to host$"):
        encoder(weights="pretrained")


class Shifted(nn.BatchNorm2d):
    """A batch norm that does something of its own."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) + 1.0
        return out


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_batch_norm_that_does_more_is_refused_by_name(device: str) -> None:
    with pytest.raises(ValueError, match=r"^batch norm over several workers: .*test_timm\.Shifted is a "):
        synchronise(nn.Sequential(nn.Conv2d(1, 2, 3), Shifted(2)), torch.device(device))
    with pytest.raises(ValueError, match=r"^episode batch norm: .*test_timm\.Shifted "):
        episode_norm.convert(nn.Sequential(Shifted(2)))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_activation_inside_a_norm_of_timm_is_kept(device: str) -> None:
    layers = pytest.importorskip("timm.layers")
    norm = layers.BatchNormAct2d(3, act_layer=nn.ReLU6)
    twin = synchronise(norm, torch.device(device))
    assert isinstance(twin, SyncBatchNorm if device == "cpu" else nn.SyncBatchNorm)
    assert twin.weight is norm.weight and twin.state_dict().keys() == norm.state_dict().keys()
    x = 10 * torch.randn(4, 3, 5, 5)
    assert torch.equal(twin.eval()(x), norm.eval()(x)) and float(twin(x).detach().min()) == 0.0
    with pytest.raises(ValueError, match=r"^episode batch norm: timm\..*BatchNormAct2d"):
        episode_norm.convert(nn.Sequential(layers.BatchNormAct2d(3)))


def test_plain_norms_are_replaced_on_both_devices() -> None:
    for device, kind in (("cpu", SyncBatchNorm), ("cuda", nn.SyncBatchNorm)):
        network = synchronise(
            nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2)), torch.device(device)
        )
        assert all(isinstance(layer, kind) for layer in network.children() if isinstance(layer, _BatchNorm))
        assert synchronise(network, torch.device(device)) is network


def test_vgg_at_width_1_is_torchvisions(tmp_path: Path) -> None:
    """The same names and maps; a weights file of torchvision's loads, its classifier left aside."""
    torch.manual_seed(0)
    original = torchvision.models.vgg11(weights=None, num_classes=3)
    original.classifier = nn.Sequential(nn.Linear(2, 2))  # the true one has 120 M weights
    torch.save(original.state_dict(), tmp_path / "vgg11.pth")
    ours = VGG(11, weights=str(tmp_path / "vgg11.pth"), channels=1).eval()
    grey = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = original.eval().features(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(ours.maps(grey), expected)
    assert ours.taken is not None and "2 others in the file left aside" in ours.taken
