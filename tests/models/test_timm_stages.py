"""Maps of timm's networks at a stated stride: shapes, what is frozen, workers, files of weights, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sslmed_dist import distributed, randomness, registry
from sslmed_dist.models import ENCODERS
from sslmed_dist.models.normalization import synchronise
from tests.gloo import GlooPool
from tests.real_data import real_data

pytest.importorskip("timm")
LITE = "weights/tf_efficientnet_lite0-imagenet.safetensors"
# a network of each kind, its stages, how many are frozen, and the first of its tensors that is not
KINDS: list[tuple[str, list[int], int, str]] = [
    ("test_efficientnet", [2, 3], 3, "model.blocks.3"),
    ("test_resnet", [1, 3], 2, "model.layer2"),
    ("test_convnext", [1], 1, "model.stages.1"),
    ("test_vit", [0, 4], 2, "model.blocks.2"),
]


def build(model: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    leaf = {"name": "timm", "model": model, "stride": 8, "width": 6, **arguments}
    return registry.build(ENCODERS, leaf, "method.encoder", channels=1)


def noise(count: int, size: int) -> Tensor:
    return randomness.normal("stages", torch.arange(count * size * size)).view(count, 1, size, size).float()


@pytest.mark.parametrize(("model", "stages", "frozen", "first"), KINDS)
def test_maps_have_the_stated_stride_and_frozen_stages_stay(
    model: str, stages: list[int], frozen: int, first: str
) -> None:
    network = build(model, stages=stages, frozen_stages=frozen).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = noise(2, 80)
    maps = network.maps(images)
    assert maps.shape == (2, 6, 10, 10) and network.maps_dim == network.feature_dim == 6
    # by hand: timm's own maps of these stages, brought to 10 x 10 and put side by side
    each = network.model.forward_intermediates(images.expand(-1, 3, -1, -1), stages, intermediates_only=True)
    joined = torch.cat([functional.interpolate(part, (10, 10), mode="bilinear") for part in each], 1)
    assert torch.allclose(maps, functional.conv2d(joined, network.project.weight), atol=1e-5)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    network.maps(images).square().mean().backward()
    optimizer.step()
    trained = [(name, p) for name, p in network.named_parameters() if p.grad is not None]
    names = [name for name, _ in network.named_parameters()]
    start = next(i for i, name in enumerate(names) if name.startswith(first))
    assert [name for name, _ in trained] == names[start:] and start > 0
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters() if name in names[:start])
    assert not torch.equal(before[names[start]], trained[0][1]) and not torch.equal(before[names[-1]], trained[-1][1])


def test_frozen_statistics_stay_and_the_others_move() -> None:
    network = build("test_efficientnet", stages=[2, 3], frozen_stages=2).train()
    before = {name: value.clone() for name, value in network.named_buffers() if name.endswith("running_mean")}
    network.maps(noise(2, 64))
    moved = {name for name, value in network.named_buffers() if name in before and not torch.equal(before[name], value)}
    frozen = {name for name in before if name.startswith(("model.bn1", "model.blocks.0", "model.blocks.1"))}
    assert moved == before.keys() - frozen and frozen and moved


def test_dilation_keeps_the_grid_and_the_values_on_the_old_one() -> None:
    """Every second row and column of dilated maps is what the network itself gives there, away from the edge."""
    plain, dilated = (build("test_resnet", stages=[3], dilated=d, stride=s).eval() for d, s in ((False, 16), (True, 8)))
    dilated.load_state_dict(plain.state_dict())
    images = noise(1, 160)
    assert plain.maps(images).shape[2:] == (10, 10) and dilated.maps(images).shape[2:] == (20, 20)
    inner = slice(4, 6)
    assert torch.allclose(
        dilated.maps(images)[..., ::2, ::2][..., inner, inner], plain.maps(images)[..., inner, inner], atol=1e-5
    )


def test_a_file_of_the_whole_network_fits_and_one_of_the_cut_encoder_too(tmp_path: Path) -> None:
    file = real_data(LITE)
    leaf: dict[str, Any] = {"model": "tf_efficientnet_lite0", "stages": [2, 3], "frozen_stages": 3}
    network = build(**leaf, weights=str(file))
    assert (
        "2 others in the file left aside" in network.taken
        and "model.blocks.5.0.conv_pw.weight" not in network.state_dict()
    )
    with torch.no_grad():
        network.project.weight.fill_(0.25)
    torch.save(network.state_dict(), tmp_path / "own.pt")
    again = build(**leaf, weights=str(tmp_path / "own.pt"))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())


def walk(frozen: int) -> dict[str, Tensor]:
    """Two steps on this rank's half of four images, float64: maps, parameters, statistics."""
    network: nn.Module = build("test_efficientnet", stages=[1, 2], frozen_stages=frozen).double()
    if distributed.active():
        network = synchronise(network, torch.device("cpu"))
    network.train()
    rank, world = distributed.rank(), distributed.world_size()
    images = noise(4, 48).double()[rank * 4 // world : (rank + 1) * 4 // world]
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        maps = network.maps(images)  # type: ignore[operator]
        maps.square().mean().backward()
        (distributed.average_gradients if distributed.active() else distributed.leave_gradients)(parameters)
        optimizer.step()
    return {**{key: value.detach().clone() for key, value in network.state_dict().items()}, "maps": maps.detach()}


@pytest.mark.parametrize("frozen", [0, 1])
def test_one_and_two_workers_walk_alike(frozen: int, gloo: GlooPool) -> None:
    alone, both = walk(frozen), gloo.run(walk, 2, frozen)
    maps = torch.cat([rank["maps"] for rank in both])
    assert (maps - alone["maps"]).norm() <= 1e-9 * alone["maps"].norm()
    for key, value in alone.items():
        if key != "maps" and value.is_floating_point():
            assert (both[0][key] - value).norm() <= 1e-9 * value.norm().clamp_min(1.0), key


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"stages": [3, 2]}, r"stages: expected some of 0 to 4 in ascending order, each once, got \[3, 2\]$"),
        ({"stages": [5]}, r"stages: expected some of 0 to 4 in ascending order, each once, got \[5\]$"),
        ({"stages": [1], "frozen_stages": 3}, r"frozen_stages: expected 0 to 2, got 3$"),
        ({"stages": [1], "stride": 0}, r"stride: expected an integer >= 1, got 0$"),
        ({"stages": [1], "width": 0}, r"width: expected an integer >= 1, got 0$"),
        ({"stages": [1], "stride": 4, "dilated": True}, r"dilated: timm cannot make EfficientNet with a stride of 4;"),
        ({"stages": [1], "dilated": True, "model": "test_vit"}, r"dilated: timm cannot make VisionTransformer "),
        ({"stages": None}, r"stages: null beside stride, width or dilated, which are of stages' maps$"),
    ],
)
def test_what_does_not_go_together_is_one_line(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=rf"^method\.encoder\.{line}"):
        build(**{"model": "test_efficientnet", **arguments})
