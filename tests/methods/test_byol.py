"""BYOL and SimSiam: the losses against their definitions, and where the gradient stops."""

import math

import pytest
import torch
from torch import Tensor

from tests.methods import small


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two vectors, from sums of products."""
    dot, aa, bb = (sum(float(x * y) for x, y in zip(u, v, strict=True)) for u, v in ((a, b), (a, a), (b, b)))
    return dot / math.sqrt(aa * bb)


def mean_cosine(a: Tensor, b: Tensor) -> float:
    """Mean over rows."""
    return sum(cosine(x, y) for x, y in zip(a.detach(), b.detach(), strict=True)) / len(a)


def test_byols_loss_is_the_squared_distance_of_unit_vectors_in_both_directions() -> None:
    method, given = small.build("byol"), small.batch("byol")
    made = method.embed(given)
    loss = method.objective(made, given)["loss"].item()
    slow = sum(2.0 - 2.0 * mean_cosine(made[f"p{v}"], made[f"t{1 - v}"]) for v in (0, 1))
    assert loss == pytest.approx(slow, rel=1e-12)
    p, t = (made[name].detach() / made[name].detach().norm(dim=1, keepdim=True) for name in ("p0", "t1"))
    assert float((p - t).square().sum(1).mean()) == pytest.approx(2.0 - 2.0 * mean_cosine(p, t), rel=1e-12)


def test_simsiams_loss_is_the_mean_negative_cosine() -> None:
    method, given = small.build("simsiam"), small.batch("simsiam")
    made = method.embed(given)
    slow = -0.5 * (mean_cosine(made["p0"], made["z1"]) + mean_cosine(made["p1"], made["z0"]))
    assert method.objective(made, given)["loss"].item() == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize(("name", "target"), [("byol", "t"), ("simsiam", "z")])
def test_perfect_predictions_are_the_least_loss(name: str, target: str) -> None:
    method, given = small.build(name), small.batch(name)
    made = method.embed(given)
    perfect = {**made, "p0": 3.0 * made[f"{target}1"], "p1": 0.5 * made[f"{target}0"]}
    assert method.objective(perfect, given)["loss"].item() == pytest.approx(0.0 if name == "byol" else -1.0, abs=1e-12)


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_what_the_four_embeddings_are(name: str) -> None:
    """The prediction of a view and the target of the same view, each network on one view at a time."""
    method, given = small.build(name), small.batch(name)
    made = method.embed(given)
    for view in (0, 1):
        images = given[f"views_{view}"]
        projection = method.head(method.encoder(images))
        torch.testing.assert_close(made[f"p{view}"], method.predictor(projection))
        if name == "simsiam":
            torch.testing.assert_close(made[f"z{view}"], projection)
        else:
            torch.testing.assert_close(made[f"t{view}"], method.momentum_head(method.momentum_encoder(images)))


def test_simsiams_gradient_passes_through_the_predictions_alone() -> None:
    """It is that of the same loss with the targets as constants."""
    method, given = small.build("simsiam"), small.batch("simsiam")
    made = method.embed(given)
    method.objective(made, given)["loss"].backward()
    found = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    again = method.embed(given)
    constants = {name: made[name].clone().detach() for name in ("z0", "z1")}
    method.objective({**again, **constants}, given)["loss"].backward()
    for one, parameter in zip(found, method.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


def test_default_heads_are_the_papers() -> None:
    from sslmed_dist.methods.byol import BYOL, SimSiam

    shapes = [tuple(p.shape) for p in BYOL(small.ENCODER).predictor.parameters() if p.dim() == 2]
    assert shapes == [(4096, 256), (256, 4096)]
    shapes = [tuple(p.shape) for p in SimSiam(small.ENCODER).predictor.parameters() if p.dim() == 2]
    assert shapes == [(512, 2048), (2048, 512)]
