"""The gradient cache against plain steps, against one graph of all micro-batches, and over ranks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist import distributed
from sslmed_dist.models.normalization import synchronise
from sslmed_dist.training.precision import NonFinite
from sslmed_dist.training.state import TrainState
from tests.gloo import GlooPool
from tests.training.engine_toy import Bench, Flips, bench, same, tensors


def plain_toy(*, norm: bool = False, dropout: bool = False, **arguments: Any) -> Bench:
    """A float64 bench of whole batches of 12, without the layers that are not asked for."""
    made = bench(**{"batch_size": 12, "precision": "float64", "epochs": 4, **arguments})
    if not norm:
        made.method.encoder.bn = nn.Identity()
    if not dropout:
        made.method.encoder.dropout = nn.Identity()
    return made


@pytest.mark.parametrize("micro", [1, 2, 4, 6])
def test_without_batch_norm_it_is_the_plain_step(micro: int) -> None:
    whole, cut = plain_toy().fit(), plain_toy(micro_batch=micro).fit()
    expected = tensors(whole)
    for name, value in tensors(cut).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-11, atol=1e-13)
    for (_, got), (_, expected) in zip(cut.steps, whole.steps, strict=True):
        assert got == pytest.approx(expected, rel=1e-10)


def test_one_micro_batch_is_the_plain_step_bit_for_bit() -> None:
    whole = plain_toy(norm=True, dropout=True).fit()
    assert same(tensors(whole), tensors(plain_toy(norm=True, dropout=True, micro_batch=12).fit()))


def one_graph(made: Bench, count: int) -> list[Tensor]:
    """Gradients of one graph in which the micro-batches are embedded one after another, under the cache's keys."""
    method, batch = made.method, next(iter(made.batches.epoch(0)))
    parts = []
    for number in range(count):
        distributed.seed_step(made.batches.seed, 0, number)
        piece = {name: value[number::count] for name, value in batch.items()}
        views = Flips()(piece, seed=1, epoch=0)
        ready = {name: value.double() if value.is_floating_point() else value for name, value in views.items()}
        parts.append(method.embed(ready))
    embeddings = {name: torch.stack([part[name] for part in parts], dim=1).flatten(0, 1) for name in parts[0]}
    method.objective(embeddings, batch)["loss"].backward()  # type: ignore[no-untyped-call]
    return [p.grad for p in method.parameters() if p.grad is not None]


@pytest.mark.parametrize("micro", [3, 4])
def test_with_batch_norm_and_dropout_it_is_one_graph_of_micro_batches(micro: int) -> None:
    seen: list[list[Tensor]] = []

    def keep(parameters: Any, extras: Any) -> list[Tensor]:
        seen.append([p.grad.clone() for p in parameters if p.grad is not None])
        return [extra.detach() for extra in extras]

    cut = plain_toy(norm=True, dropout=True, micro_batch=micro, epochs=1).fit(average=keep)
    reference = plain_toy(norm=True, dropout=True, epochs=1)
    reference.method.train()
    expected = one_graph(reference, 12 // micro)
    for got, wanted in zip(seen[0], expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    for name, buffer in reference.method.named_buffers():
        torch.testing.assert_close(dict(cut.method.named_buffers())[name], buffer, rtol=1e-12, atol=1e-14)
    assert int(cut.method.encoder.bn.num_batches_tracked) == 12 // micro


def trajectory(epochs: int) -> dict[str, Tensor]:
    """Three micro-batches of four with synchronised batch norm, on this rank's share."""
    rank, world = distributed.rank(), distributed.world_size()
    made = plain_toy(norm=True, micro_batch=4, epochs=epochs, rank=rank, world=world)
    if distributed.active():
        synchronise(made.method, torch.device("cpu"))
    average = distributed.average_gradients if world > 1 else distributed.leave_gradients
    return tensors(made.fit(average=average))


def test_micro_batches_hold_the_same_samples_on_any_number_of_ranks(gloo: GlooPool) -> None:
    """The toy's loss is of a rank's rows, so one step is compared; tests/drivers compares trajectories of real ones."""
    for world in (2, 4):
        ranks = gloo.run(statistics_of_rank, world)
        for name, value in statistics_of_rank().items():
            assert all(torch.allclose(rank[name], value, rtol=1e-12, atol=1e-14) for rank in ranks), (world, name)


def statistics_of_rank() -> dict[str, Tensor]:
    """Running statistics after one step: they tell which samples stood together in a micro-batch."""
    return {name: value for name, value in trajectory(1).items() if "running" in name}


def test_a_value_that_is_not_finite_is_named() -> None:
    made = bench(batch_size=4, micro_batch=2, broken=True)
    before = [p.clone() for p in made.method.parameters()]
    with pytest.raises(NonFinite, match="step 0: not finite: .* first non-finite module: input views_0;"):
        made.fit()
    assert all(torch.equal(p, old) for p, old in zip(made.method.parameters(), before, strict=True))


@pytest.mark.parametrize("micro", [3, 8])
def test_a_batch_that_cannot_be_cut(micro: int) -> None:
    with pytest.raises(ValueError, match=r"plan.micro_batch: expected a divisor of the global batch 4 and a multiple"):
        bench(batch_size=4, micro_batch=micro).fit()


def test_a_restart_in_the_middle_goes_on_bit_for_bit() -> None:
    whole = plain_toy(norm=True, dropout=True, micro_batch=3).fit()
    first = plain_toy(norm=True, dropout=True, micro_batch=3).fit(until=2)
    second = plain_toy(norm=True, dropout=True, micro_batch=3)
    second.method.load_state_dict(first.method.state_dict())
    second.state.load_state_dict(first.state.state_dict())
    assert isinstance(second.state, TrainState)
    assert same(tensors(whole), tensors(second.fit()))
