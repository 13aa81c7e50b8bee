"""PIRL's loss against its definition, written out pair by pair, and who is whose negative."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslmed_dist.methods.pirl import nce
from tests.methods import small
from tests.methods.test_moco import rows


def slow_nce(queries: Tensor, memories: Tensor, negatives: Tensor, own: Tensor, temperature: float) -> float:
    """Eq. 4: -ln h(own memory) - sum over negatives of ln(1 - h), h a share of the softmax over both."""
    total = 0.0
    for i, query in enumerate(queries):
        others = [j for j in range(len(negatives)) if not own[i, j]]
        weights = [math.exp(float(query @ memories[i]) / temperature)]
        weights += [math.exp(float(query @ negatives[j]) / temperature) for j in others]
        shares = [weight / sum(weights) for weight in weights]
        total -= math.log(shares[0]) + sum(math.log(1.0 - share) for share in shares[1:])
    return total / len(queries)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nce_is_its_definition(temperature: float) -> None:
    own = torch.zeros(4, 7, dtype=torch.bool)
    own[1, 2] = own[1, 5] = own[3, 0] = True
    given = (rows(4, 0), rows(4, 1), rows(7, 2), own, temperature)
    assert float(nce(*given)) == pytest.approx(slow_nce(*given), rel=1e-9)


def test_gradient_of_nce() -> None:
    queries = rows(3, 0).requires_grad_()
    own = torch.eye(3, 4, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda q: nce(q, rows(3, 1), rows(4, 2), own, 0.3), (queries,))


def test_a_negative_equal_to_the_query_stays_finite() -> None:
    """Its share rounds to 1 at a temperature of 0.01, and ln(1 - 1) has no value."""
    queries = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = nce(queries, torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[False]]), 0.01)
    loss.backward()  # type: ignore[no-untyped-call]
    assert queries.grad is not None and bool(loss.isfinite()) and bool(queries.grad.isfinite().all())


def test_the_loss_of_a_step_and_the_queue_after_it() -> None:
    """Two epochs of twelve samples: in the second one an image meets its own earlier memories, which do not count."""
    method = small.build("pirl", weight=0.3)
    seen = 0
    for first in (0, 6, 0, 6):
        given, before = small.batch("pirl", first=first), method.queue.rows.clone()
        method.step_begin(0.0, 0.0)
        made = {key: F.normalize(value.detach(), dim=1) for key, value in method.embed(given).items()}
        own = given["index"][:, None] == method.queue.ids
        assert int(own.sum()) == (6 if seen >= 12 else 0)
        slow = {name: slow_nce(made[name], made["memory"], before, own, 0.2) for name in ("jigsaw", "image")}
        terms = small.step(method, given, epoch=0.0, progress=0.0)
        assert float(terms["loss"]) == pytest.approx(0.3 * slow["jigsaw"] + 0.7 * slow["image"], rel=1e-9)
        assert float(terms["loss_jigsaw"]) == pytest.approx(slow["jigsaw"], rel=1e-9)
        assert method.queue.ids[seen : seen + 6].tolist() == given["index"].tolist()
        torch.testing.assert_close(method.queue.rows[seen : seen + 6], made["memory"], rtol=0, atol=1e-14)
        seen += 6


def test_the_projection_of_the_patches() -> None:
    """Every patch by itself through the encoder; the nine results side by side in the order of the patches."""
    method, given = small.build("pirl").eval(), small.batch("pirl")
    parts = [method.patch_head(method.encoder(given["patches"][:, [j]])) for j in range(9)]
    expected = method.jigsaw_head(torch.cat(parts, dim=1))
    torch.testing.assert_close(method.embed(given)["jigsaw"], expected)


def test_missing_or_misshapen_patches_are_named() -> None:
    method, given = small.build("pirl"), small.batch("pirl")
    with pytest.raises(ValueError, match=r"^patches: pirl needs \(6, 9, p, p\) \(views.name: jigsaw\), got none$"):
        method.embed({name: value for name, value in given.items() if name != "patches"})
    with pytest.raises(ValueError, match=r"^patches: pirl needs .*, got \(6, 4, 3, 3\)$"):
        method.embed({**given, "patches": given["patches"][:, :4]})
