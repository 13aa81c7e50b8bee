"""SE-Net on episodes: its loss and gradient, ranks, micro-batches of one, that it learns, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist import registry
from sslmed_dist.losses.overlap import soft_dice
from sslmed_dist.methods import METHODS
from sslmed_dist.methods.se_net import SENetEpisodes
from tests.gloo import GlooPool
from tests.methods.test_cowpro import batch_of, relative, trained


def build(**arguments: Any) -> SENetEpisodes:
    """A small one from a fixed seed, float64."""
    leaf = {"name": "se_net", "encoder": {"name": "se_net", "segmenter": 6, "conditioner": 4}, **arguments}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        made: SENetEpisodes = registry.build(METHODS, leaf, "method")
    return made.double().train()


def trained_net(**plan: Any) -> tuple[dict[str, Tensor], list[Any]]:
    """As ``trained``, of this method."""
    return trained(method=build(), **plan)  # type: ignore[arg-type]


@pytest.mark.parametrize("shots", [None, 2])
def test_the_loss_is_one_minus_dice_of_each_episode(shots: int | None) -> None:
    method, batch = build(), batch_of(4, shots)
    batch["query_mask"][1] = 0
    found = method(batch)
    supports = batch["support"].view(4, shots or 1, 1, 16, 16)
    gates = method.encoder.prototypes(supports, batch["support_mask"].view(4, -1, 16, 16))  # type: ignore[operator]
    logits = method.encoder.scores(gates, batch["query"])  # type: ignore[operator]
    probabilities = torch.exp(logits[:, 1]) / torch.exp(logits).sum(1)
    expected = torch.stack([soft_dice(probabilities[e : e + 1], batch["query_mask"][e : e + 1]) for e in range(4)])
    assert found["loss"].item() == pytest.approx(expected.mean().item(), rel=1e-10)
    assert found.keys() == {"loss", "dice"} and expected[1] > 0.999 and 0 <= found["dice"] <= 1


def test_the_gradient_reaches_both_arms() -> None:
    """In float64 against differences, of the weight with the largest gradient in either arm and in a gate."""
    method, batch = build(), batch_of(3)
    method(batch)["loss"].backward()
    weights = dict(method.encoder.named_parameters())
    for name in ("conditioner.up.0.0.weight", "segmenter.up.0.0.weight", "squeeze.8.weight"):
        weight, gradient, step = weights[name].detach().view(-1), weights[name].grad.flatten(), 1e-6  # type: ignore[union-attr]
        at, values = int(gradient.abs().argmax()), []
        for sign in (1, -2):
            weight[at] += sign * step
            values.append(method(batch)["loss"].item())
        weight[at] += step
        assert abs(gradient[at]) > 1e-4
        assert gradient[at].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4), name
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in method.parameters())


def test_workers_walk_one_float64_trajectory(gloo: GlooPool) -> None:
    alone, logged = trained_net()
    (first, log), *others = gloo.run(trained_net, 2)
    assert relative(first, alone) < 1e-9
    assert all(torch.equal(other[key], first[key]) for other, _ in others for key in alone)
    assert [row["loss"] for row in log] == pytest.approx([row["loss"] for row in logged], rel=1e-6)


def test_it_learns_and_keeps_its_weights_once() -> None:
    method, batch = build(), batch_of(8)
    assert {name.split(".")[0] for name in method.state_dict()} == {"encoder"}
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        terms = method(batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < 0.3 * losses[0] and terms["dice"] > 0.8
    half, _ = trained_net(precision="bf16")
    assert all(bool(value.isfinite().all()) for value in half.values())


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="^method.encoder: expected one that is its own head; allowed: se_net$"):
        build(encoder={"name": "dilated_resnet", "depth": 9, "stem": "cifar", "width": 4, "out": 8})
    with pytest.raises(
        ValueError, match="^views: .* needs episodes .views.name: episode., got a batch without support"
    ):
        build().embed({"query": torch.ones(1, 1, 16, 16)})
    assert isinstance(build().encoder, nn.Module)
