"""MoCo v2's loss against its definition, written out pair by pair."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslmed_dist.methods.moco import info_nce
from tests.methods import small


def slow_info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> float:
    """-ln of the softmax share of each query's own key among it and all negatives, mean over queries."""
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        own = math.exp(float(query @ key) / temperature)
        others = sum(math.exp(float(query @ negative) / temperature) for negative in negatives)
        total -= math.log(own / (own + others)) / len(queries)
    return total


def rows(count: int, seed: int) -> Tensor:
    """Unit rows (count, 5)."""
    source = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 5, dtype=torch.float64, generator=source), dim=1)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_is_its_definition(temperature: float) -> None:
    queries, keys, negatives = rows(4, 0), rows(4, 1), rows(7, 2)
    found = float(info_nce(queries, keys, negatives, temperature))
    assert found == pytest.approx(slow_info_nce(queries, keys, negatives, temperature), rel=1e-12)


def test_info_nce_of_equal_rows_is_the_logarithm_of_their_number() -> None:
    same = rows(1, 0).expand(6, -1)
    assert float(info_nce(same[:2], same[:2], same, 0.07)) == pytest.approx(math.log(7), rel=1e-12)


def test_gradient_of_info_nce() -> None:
    queries = rows(3, 0).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: info_nce(q, rows(3, 1), rows(4, 2), 0.2), (queries,))


@pytest.mark.parametrize("name", ["moco", "moco_symmetric"])
def test_the_loss_of_a_step_and_the_queue_after_it(name: str) -> None:
    """Both directions see the queue as it was; then all keys enter, a sample's two beside each other."""
    method = small.build(name)
    pointer = 0
    for number in range(4):
        given, before = small.batch(name, first=6 * number), method.queue.rows.clone()
        method.step_begin(0.0, 0.0)
        made = {key: F.normalize(value.detach(), dim=2) for key, value in method.embed(given).items()}
        directions = made["queries"].shape[1]
        assert directions == (2 if name == "moco_symmetric" else 1)
        losses = [
            slow_info_nce(made["queries"][:, v], made["keys"][:, v], before, method.temperature)
            for v in range(directions)
        ]
        terms = small.step(method, given, epoch=0.0, progress=0.0)
        assert float(terms["loss"]) == pytest.approx(sum(losses) / directions, rel=1e-11)
        expected = before.clone()
        for sample in range(6):
            for v in range(directions):
                expected[pointer] = made["keys"][sample, v]
                pointer = (pointer + 1) % 40
        torch.testing.assert_close(method.queue.rows, expected, rtol=0, atol=1e-14)


def test_queries_and_keys_are_of_the_two_views() -> None:
    """Query 0 is of view 0 and its key of view 1; in the symmetric method query 1 is of view 1."""
    method, given = small.build("moco_symmetric"), small.batch("moco_symmetric")
    made = method.embed(given)
    for direction, (query, key) in enumerate((("views_0", "views_1"), ("views_1", "views_0"))):
        torch.testing.assert_close(made["queries"][:, direction], method.head(method.encoder(given[query])))
        torch.testing.assert_close(
            made["keys"][:, direction], method.momentum_head(method.momentum_encoder(given[key]))
        )
