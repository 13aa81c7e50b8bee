"""SE-Net against a slow reading of it, its gates, and what must not matter."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist import randomness, registry
from sslmed_dist.downstream.oneshot.segmenter import Segmenter
from sslmed_dist.models import ENCODERS
from sslmed_dist.models.se_net import SENet, unpooled
from tests.downstream.oneshot.fake_scans import SPACING, FakeScans

NAMES = ("down.0", "down.1", "down.2", "down.3", "bottleneck", "up.0", "up.1", "up.2", "up.3")


def build(**arguments: Any) -> SENet:
    """A small one from a fixed seed, float64, whose batch norms have seen something."""
    leaf = {"name": "se_net", "segmenter": 5, "conditioner": 3, **arguments}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made: SENet = registry.build(ENCODERS, leaf, "method.encoder", channels=1)
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
    return made.double().eval()


def numbers(key: int, *shape: int) -> Tensor:
    return randomness.normal(key, torch.arange(torch.Size(shape).numel()).view(shape)).double()


def masks(*shape: int) -> Tensor:
    return (numbers(9, *shape) > 0.3).double()


def slow_unpool(x: Tensor, fine: Tensor) -> Tensor:
    """Each value at the first largest of its 2 x 2 pixels of ``fine``, one pixel at a time; a last odd row or column
    has no value."""
    out = torch.zeros_like(fine)
    for n, c, i, j in torch.cartesian_prod(*(torch.arange(size) for size in x.shape)).tolist():
        at = int(fine[n, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten().argmax())
        out[n, c, 2 * i + at // 2, 2 * j + at % 2] = x[n, c, i, j]
    return out


def slow_arm(arm: nn.Module, x: Tensor, gates: list[Tensor] | None) -> list[Tensor]:
    """The nine maps, block by block, from the weights by their names."""
    state = dict(arm.named_parameters()) | dict(arm.named_buffers())
    maps: list[Tensor] = []
    fines: list[Tensor] = []
    for k, name in enumerate(NAMES):
        if k > 4:
            x = slow_unpool(x, fines.pop())
        x = F.conv2d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=2)
        mean, variance = (state[f"{name}.1.running_{what}"][:, None, None] for what in ("mean", "var"))
        x = (x - mean) / (variance + 1e-5).sqrt()
        x = x * state[f"{name}.1.weight"][:, None, None] + state[f"{name}.1.bias"][:, None, None]
        x = torch.where(x > 0, x, x * state[f"{name}.2.weight"][:, None, None])
        if k < 4:
            fines.append(x)
            x = F.max_pool2d(x, 2)
        x = x if gates is None else x * gates[k]
        maps.append(x)
    return maps


@pytest.mark.parametrize("size", [(16, 32), (21, 19)])
def test_scores_are_the_slow_ones(size: tuple[int, int]) -> None:
    network = build()
    support, mask, query = numbers(1, 2, 1, *size), masks(2, *size), numbers(2, 2, 1, *size)
    conditions = slow_arm(network.conditioner, torch.cat([support, mask[:, None]], 1), None)
    gates = []
    for squeeze, maps in zip(network.squeeze, conditions, strict=True):
        weighted = (squeeze.weight[0, :, 0, 0][:, None, None] * maps).sum(1, keepdim=True) + squeeze.bias
        gates.append(1 / (1 + torch.exp(-weighted)))
    last = slow_arm(network.segmenter, query, gates)[-1]
    logits = torch.einsum("oc,nchw->nohw", network.classifier.weight[:, :, 0, 0], last)
    expected = logits + network.classifier.bias[:, None, None]
    found = network.scores(network.prototypes(support[:, None], mask[:, None]), network.maps(query))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert found.shape == (2, 2, *size) and (gates[0].amax() - gates[0].amin()) > 1e-2
    features = slow_arm(network.segmenter, query, None)[4].mean(dim=(2, 3))
    torch.testing.assert_close(network(query), features, rtol=1e-9, atol=1e-9)


def test_unpooling_is_torchs() -> None:
    fine = numbers(3, 2, 3, 7, 8)
    pooled, place = F.max_pool2d(fine, 2, return_indices=True)
    expected = F.max_unpool2d(2 * pooled, place, 2, output_size=[7, 8])
    assert torch.equal(unpooled(2 * pooled, place, fine.shape), expected)


def test_supports_are_averaged_and_one_episode_serves_all_queries() -> None:
    network = build()
    support, mask, query = numbers(1, 1, 2, 1, 16, 16), masks(1, 2, 16, 16), numbers(2, 5, 1, 16, 16)
    both = network.prototypes(support, mask)
    each = [network.prototypes(support[:, k : k + 1], mask[:, k : k + 1]) for k in range(2)]
    for gate, one, other in zip(both, *each, strict=True):
        torch.testing.assert_close(gate, (one + other) / 2)
    assert all(torch.equal(a, b) for a, b in zip(both, network.prototypes(support, mask.bool()), strict=True))
    together = network.scores(both, query)
    apart = torch.cat([network.scores(both, query[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(together, network.scores(each[0], query))


def test_the_segmenter_takes_its_own_head_and_evaluates() -> None:
    """Whatever head a recipe names; in evaluation mode, and it gets its mode back."""
    network, scans = build().float().train(), FakeScans()
    (shown, organs), (images, _) = scans.scan(7), scans.scan(2)
    segmenter = Segmenter(network, object(), "cpu", chunk=3)
    assert segmenter.head is network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learnt = segmenter.learn(segmenter.maps(shown), organs == 1, SPACING)
    found = segmenter.find(learnt, segmenter.maps(images), (16, 16), SPACING)
    assert found.margins.shape == (3, 11, 16, 16) and network.training and network.conditioner.down[0][1].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.eval()
    gates = network.prototypes(shown[None, learnt.slices[1]][None], (organs == 1)[learnt.slices[1]][None, None])
    scores = network.scores(gates, images)
    torch.testing.assert_close(found.margins[1], scores[:, 1] - scores[:, 0], rtol=1e-4, atol=1e-5)


def test_wrong_arguments_are_named() -> None:
    for arguments, message in (
        ({"segmenter": 0}, "method.encoder.segmenter: expected an integer >= 1, got 0"),
        ({"conditioner": 0}, "method.encoder.conditioner: expected an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            build(**arguments)
    with pytest.raises(ValueError, match="^images: expected 1 channels, got 3$"):
        build().maps(numbers(1, 2, 3, 16, 16))
    with pytest.raises(ValueError, match="^images: expected at least 16 x 16 pixels, got "):
        build().maps(numbers(1, 2, 1, 15, 16))
