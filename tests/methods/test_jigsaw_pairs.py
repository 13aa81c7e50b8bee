"""SimCLR and MoCo v2 of images and their puzzles: the pairs, what is compared with what, and bad views."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist import registry
from sslmed_dist.losses import LOSSES
from sslmed_dist.methods import METHODS, Method
from sslmed_dist.methods.jigsaw_pairs import ContrastiveJigsaw
from sslmed_dist.methods.moco import info_nce
from tests.methods import small

LOSS = {"name": "nt_xent", "temperature": 0.3}
SIMCLR = {"name": "contrastive_jigsaw", "encoder": small.ENCODER, "head": small.HEAD, "loss": LOSS, "channels": 1}


def simclr() -> ContrastiveJigsaw:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        method: Method = registry.build(METHODS, SIMCLR, "method")
    assert isinstance(method, ContrastiveJigsaw)
    return method.double().train()


def puzzle(encoder: nn.Module, head: Any, x: Tensor) -> Tensor:
    """The nine patches one by one, side by side in their order."""
    parts = [head.patch(encoder(x[:, [j]])) for j in range(9)]
    projected: Tensor = head.jigsaw(torch.cat(parts, dim=1))
    return projected


def test_simclr_compares_an_image_with_its_puzzle() -> None:
    method, given = simclr().eval(), small.batch("pirl")
    made = method.embed(given)
    expected = puzzle(method.encoder, method.head, given["patches"])
    torch.testing.assert_close(made["z1"], expected)
    torch.testing.assert_close(made["z0"], method.head(method.encoder(given["views_0"])))
    loss = registry.build(LOSSES, LOSS, "loss")(made["z0"], expected)
    torch.testing.assert_close(method.objective(made, given)["loss"], loss)
    other = given | {"views_1": given["views_1"] + 1.0}  # only shown to MoCo and PIRL
    torch.testing.assert_close(method.embed(other), made)


def test_simclr_trains_both_heads() -> None:
    method = simclr()
    method(small.batch("pirl"))["loss"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and (bool(parameter.grad.abs().sum() > 0) or name.endswith("bias")), name


def test_moco_asks_in_both_directions_and_keeps_both_keys() -> None:
    method, given = small.build("moco_jigsaw"), small.batch("moco_jigsaw")
    method.step_begin(0.0, 0.0)
    method.eval()
    slow, head = method.momentum_encoder, method.momentum_head
    image, jumbled = (
        method.head(method.encoder(given["views_0"])),
        puzzle(method.encoder, method.head, given["patches"]),
    )
    image_key, puzzle_key = head(slow(given["views_1"])), puzzle(slow, head, given["patches"])
    pairs = [(image, puzzle_key), (jumbled, image_key)]
    before = method.queue.rows.clone()
    terms = [info_nce(F.normalize(q, dim=1), F.normalize(k, dim=1), before, 0.2) for q, k in pairs]
    torch.testing.assert_close(method(given)["loss"], sum(terms) / 2)
    method.step_end(0.0)
    keys = torch.stack([puzzle_key, image_key], dim=1).flatten(0, 1)
    torch.testing.assert_close(method.queue.rows[:12], F.normalize(keys, dim=1))
    assert not any(parameter.requires_grad for parameter in head.parameters())


@pytest.mark.parametrize("name", ["contrastive_jigsaw", "moco_v2_jigsaw"])
def test_pairs_that_stay_the_same_are_learnt(name: str) -> None:
    """The loss of six pairs falls; of MoCo against a queue that is not written."""
    method: Any = simclr() if name == "contrastive_jigsaw" else small.build("moco_jigsaw")
    given, losses = small.batch("pirl"), []
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    method.step_begin(0.0, 0.0)
    for _ in range(20):
        loss = method(given)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1.0, losses


def test_the_slow_copies_follow_all_heads() -> None:
    method, given = small.build("moco_jigsaw"), small.batch("moco_jigsaw")
    small.step(method, given, 0.0, 0.0)
    small.step(method, given, 0.0, 0.5)
    for name, slow in method.momentum_head.named_parameters():
        own = dict(method.head.named_parameters())[name]
        assert not torch.equal(slow, own) and (slow - own).norm() < own.norm()


@pytest.mark.parametrize("name", ["contrastive_jigsaw", "moco_v2_jigsaw"])
def test_missing_or_misshapen_patches_are_named(name: str) -> None:
    method = simclr() if name == "contrastive_jigsaw" else small.build("moco_jigsaw")
    given = small.batch("pirl")
    said = rf"^patches: {name} needs \(6, 9, p, p\) \(views.name: jigsaw\), got "
    with pytest.raises(ValueError, match=said + "none$"):
        method.embed({key: value for key, value in given.items() if key != "patches"})
    with pytest.raises(ValueError, match=said + r"\(6, 4, 3, 3\)$"):
        method.embed({**given, "patches": given["patches"][:, :4]})
