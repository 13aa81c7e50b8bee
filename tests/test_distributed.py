"""Collectives on 2 and 4 gloo ranks: order, gradients of both orders, the flat average, the seeding of a step."""

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist import distributed
from tests.gloo import GlooPool

WORLDS = pytest.mark.parametrize("world", [1, 2, 4])


def rows_of_rank() -> Tensor:
    """(3, 2), different on every rank."""
    return torch.arange(6.0, dtype=torch.float64).reshape(3, 2) + 100.0 * distributed.rank()


def gathered() -> tuple[Tensor, Tensor]:
    """All ranks' rows, and the gradient of sum(weights * rows) where each rank weighs by its own number."""
    x = rows_of_rank().requires_grad_()
    everything = distributed.gather(x)
    weights = torch.arange(everything.numel(), dtype=torch.float64).view_as(everything) * (1 + distributed.rank())
    (everything * weights).sum().backward()
    assert x.grad is not None
    return everything.detach(), x.grad


@WORLDS
def test_gather_is_in_rank_order_and_its_backward_sums_over_ranks(gloo: GlooPool, world: int) -> None:
    expected = torch.cat([torch.arange(6.0).reshape(3, 2).double() + 100.0 * rank for rank in range(world)])
    gradient = torch.arange(6.0 * world).double().reshape(-1, 2) * sum(range(1, world + 1))
    for rank, (everything, own) in enumerate(gloo.run(gathered, world)):
        assert torch.equal(everything, expected)
        assert torch.equal(own, gradient[3 * rank : 3 * rank + 3])


def gathered_channels_last() -> Tensor:
    images = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4) + 1000.0 * distributed.rank()
    return distributed.gather(images.to(memory_format=torch.channels_last))


def test_gather_keeps_values_of_strided_tensors(gloo: GlooPool) -> None:
    images = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    for everything in gloo.run(gathered_channels_last, 2):
        assert torch.equal(everything, torch.cat((images, images + 1000.0)))


def summed() -> tuple[Tensor, Tensor, Tensor]:
    """Sum over ranks of x = rank + (1, 2); gradient and second gradient of its cube, of which each rank takes 1 / W."""
    x = (torch.tensor([1.0, 2.0], dtype=torch.float64) + distributed.rank()).requires_grad_()
    total = distributed.reduce_sum(x)
    (first,) = torch.autograd.grad((total**3).sum() / distributed.world_size(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum() / distributed.world_size(), x)
    return total.detach(), first.detach(), second


@WORLDS
def test_reduce_sum_and_its_derivatives(gloo: GlooPool, world: int) -> None:
    total = torch.tensor([1.0, 2.0]).double() * world + sum(range(world))
    for value, first, second in gloo.run(summed, world):
        assert torch.equal(value, total)
        assert torch.allclose(first, 3 * total**2, rtol=1e-14)
        assert torch.allclose(second, 6 * total, rtol=1e-14)


def averaged(with_gradients: bool) -> tuple[list[Tensor], list[float]]:
    """Gradients of a convolution in channels_last and of a vector, rank-dependent; two extras; one unused parameter."""
    image, vector, unused = (
        nn.Parameter(torch.ones(2, 3, 2, 2)),
        nn.Parameter(torch.ones(4)),
        nn.Parameter(torch.ones(1)),
    )
    rank = distributed.rank()
    if with_gradients:
        image.grad = (torch.arange(24.0).reshape(2, 3, 2, 2) * (1 + rank)).to(memory_format=torch.channels_last)
        vector.grad = torch.full((4,), float(rank))
    extras = [torch.tensor(10.0 * rank, requires_grad=True), torch.tensor(rank == 0)]
    means = distributed.average_gradients([image, unused, vector], extras)
    assert unused.grad is None and not any(mean.requires_grad or mean.ndim for mean in means)
    return [p.grad for p in (image, vector) if p.grad is not None], [float(mean) for mean in means]


@WORLDS
@pytest.mark.parametrize("with_gradients", [True, False])
def test_average_of_gradients_and_extras(gloo: GlooPool, world: int, with_gradients: bool) -> None:
    mean_rank = (world - 1) / 2
    for grads, means in gloo.run(averaged, world, with_gradients):
        assert means == pytest.approx([10.0 * mean_rank, 1.0 / world])
        if with_gradients:
            assert torch.equal(grads[0], torch.arange(24.0).reshape(2, 3, 2, 2) * (1 + mean_rank))
            assert torch.equal(grads[1], torch.full((4,), mean_rank))


def test_a_single_process_leaves_gradients_and_detaches_extras() -> None:
    extra = torch.tensor(2.0, requires_grad=True)
    for average in (distributed.average_gradients, distributed.leave_gradients):
        (mean,) = average([], [extra])
        assert mean.item() == 2.0 and not mean.requires_grad


def broadcast() -> dict[str, Tensor]:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + 10 * distributed.rank())
    distributed.broadcast_module(module)
    distributed.barrier()
    return dict(module.state_dict())


def test_broadcast_gives_all_ranks_the_state_of_rank_0(gloo: GlooPool) -> None:
    for state in gloo.run(broadcast, 2):
        assert all(torch.equal(t, torch.arange(t.numel()).reshape(t.shape).to(t.dtype)) for t in state.values())


def draws(seed: int, step: int, micro: int) -> list[float]:
    torch.rand(distributed.rank() + 3)  # what was drawn before does not matter
    distributed.seed_step(seed, step, micro)
    return torch.rand(4).tolist()


def test_seed_step_depends_on_seed_step_rank_and_micro_batch_alone(gloo: GlooPool) -> None:
    both = gloo.run(draws, 2, 1, 5, 0)
    assert gloo.run(draws, 2, 1, 5, 0) == both and draws(1, 5, 0) == both[0]
    streams = [*both, draws(2, 5, 0), draws(1, 6, 0), draws(1, 5, 1)]
    assert len({tuple(stream) for stream in streams}) == 5


def test_one_process_needs_no_group() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    assert distributed.gather(x) is x and distributed.reduce_sum(x) is x
    assert (distributed.rank(), distributed.world_size(), distributed.active()) == (0, 1, False)
    distributed.barrier()
    distributed.leave()


@pytest.mark.parametrize("world", ["", "1"])
def test_no_group_is_joined_without_two_processes(monkeypatch: pytest.MonkeyPatch, world: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", world) if world else monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not distributed.join_from_environment()
