"""Synchronised batch norm on the CPU: two processes compute what one computes from the whole batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslmed_dist import distributed, randomness
from sslmed_dist.models.normalization import SyncBatchNorm, synchronise
from tests.gloo import GlooPool

CPU = torch.device("cpu")
CHANNELS, ROWS, STEPS = 3, 8, 3
KINDS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def rows(dims: int, step: int) -> Tensor:
    """The whole batch (8, 3, ...), float64, with a mean that a naive variance would cancel against."""
    shape = (ROWS, CHANNELS, 2, 3, 2)[:dims]
    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    return 50.0 + randomness.normal(step, numbers)


def layer(dims: int, arguments: dict[str, Any]) -> nn.Module:
    """A batch norm with weights that are not one and zero."""
    norm = KINDS[dims](CHANNELS, **arguments).double()
    if norm.affine:
        norm.weight.data = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
        norm.bias.data = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    return norm


def walk(dims: int, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Some steps in training and one in evaluation mode on this rank's rows: outputs, gradients, buffers.

    The loss is a sum over rows, so that the ranks' gradients of the parameters add up.
    """
    rank, world = distributed.rank(), distributed.world_size()
    norm: nn.Module = layer(dims, arguments)
    if world > 1:
        norm = synchronise(norm, CPU)
    mine = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    found: dict[str, Tensor] = {}
    for step in range(STEPS + 1):
        norm.train(step < STEPS)
        x = rows(dims, step)[mine].requires_grad_()
        y = norm(x)
        (y.pow(3) * rows(dims, 10 + step)[mine]).sum().backward()
        found |= {f"y{step}": y.detach(), f"x{step}": x.grad}  # type: ignore[dict-item]
    distributed_sum = {
        name: distributed.reduce_sum(p.grad) for name, p in norm.named_parameters() if p.grad is not None
    }
    return found | distributed_sum | {name: buffer.clone() for name, buffer in norm.named_buffers()}


@pytest.mark.parametrize(
    "dims, arguments",
    [
        (2, {}),
        (4, {}),
        (3, {"eps": 1e-3, "momentum": 0.3}),
        (5, {}),
        (2, {"momentum": None}),
        (4, {"momentum": None}),
        (4, {"affine": False}),
        (2, {"track_running_stats": False}),
    ],
)
def test_two_processes_equal_one(gloo: GlooPool, dims: int, arguments: dict[str, Any]) -> None:
    alone, (first, second) = walk(dims, arguments), gloo.run(walk, 2, dims, arguments)
    assert alone.keys() == first.keys() == second.keys()
    evaluated_by_batch = not arguments.get("track_running_stats", True)  # then evaluation is of this rank's rows alone
    for name, expected in alone.items():
        if evaluated_by_batch and (name in (f"x{STEPS}", f"y{STEPS}") or name in ("weight", "bias")):
            continue
        of_rows = name[0] in "xy"
        got = torch.cat([first[name], second[name]]) if of_rows else first[name]
        assert of_rows or torch.equal(first[name], second[name]), name
        assert float((got - expected).double().norm()) <= 1e-12 * float(expected.double().norm()), name


def in_channels_last() -> tuple[Tensor, Tensor, list[bool]]:
    """Output and gradient of this rank's rows stored channels last, and whether both are stored that way."""
    norm: nn.Module = layer(4, {})
    if distributed.active():
        norm = synchronise(norm, CPU)
    mine = slice(distributed.rank() * ROWS // 2, (distributed.rank() + 1) * ROWS // 2) if distributed.active() else ...
    last = {"memory_format": torch.channels_last}
    x = rows(4, 0)[mine].to(**last).requires_grad_()  # type: ignore[call-overload]
    y = norm(x)
    (gradient,) = torch.autograd.grad(y, x, rows(4, 9)[mine].to(**last))  # type: ignore[call-overload]
    return y.detach(), gradient, [t.is_contiguous(**last) for t in (y, gradient)]


def test_channels_last_stays_and_equals_one_process(gloo: GlooPool) -> None:
    y, gradient, _ = in_channels_last()
    first, second = gloo.run(in_channels_last, 2)
    assert first[2] == second[2] == [True, True]
    for got, expected in ((torch.cat([first[0], second[0]]), y), (torch.cat([first[1], second[1]]), gradient)):
        assert float((got - expected).norm()) <= 1e-12 * float(expected.norm())


def walk_in_half_precision() -> tuple[Tensor, Tensor | None]:
    """Statistics are computed in float32 whatever comes in; the parameters stay float32."""
    norm: nn.Module = layer(2, {}).float()
    if distributed.active():
        norm = synchronise(norm, CPU)
    mine = slice(distributed.rank() * 4, distributed.rank() * 4 + 4) if distributed.active() else ...
    x = (rows(2, 0) - 50.0)[mine].bfloat16()
    x = (x if distributed.active() else x.float()).requires_grad_()
    y = norm(x)
    (y.float() * (rows(2, 9) - 50.0)[mine].float()).sum().backward()
    return y.detach(), x.grad


def test_half_precision_in_and_out(gloo: GlooPool) -> None:
    parts = gloo.run(walk_in_half_precision, 2)
    for ours, expected in zip(zip(*parts, strict=True), walk_in_half_precision(), strict=True):
        assert [t.dtype for t in ours] == [torch.bfloat16] * 2 and expected is not None
        got = torch.cat(list(ours)).float()
        assert float((got - expected).norm()) <= 0.01 * float(expected.norm())


def network() -> nn.Sequential:
    """Norms at several depths, one of them frozen, one already in evaluation mode."""
    inner = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3, momentum=0.2, eps=1e-3), nn.ReLU())
    made = nn.Sequential(nn.BatchNorm2d(1, affine=False), inner, nn.Flatten(), nn.BatchNorm1d(3))
    made[1][1].weight.requires_grad_(False)  # type: ignore[index]
    made[3].eval()
    return made


def test_conversion_keeps_keys_and_shares_parameters() -> None:
    made = network()
    before, modes = dict(made.state_dict(keep_vars=True)), [module.training for module in made.modules()]
    converted = synchronise(made, CPU)
    assert converted is made
    after = dict(made.state_dict(keep_vars=True))
    assert list(after) == list(before)
    assert all(after[key] is before[key] for key in before)
    norms = [module for module in made.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert [type(norm) for norm in norms] == [SyncBatchNorm] * 3
    assert (norms[1].momentum, norms[1].eps, norms[0].affine) == (0.2, 1e-3, False)
    assert [module.training for module in made.modules()] == modes
    assert synchronise(made, CPU) is made and list(made.modules())[1] is norms[0], "twice is once"


def test_a_norm_alone_is_converted_too() -> None:
    norm = nn.BatchNorm1d(3)
    twin = synchronise(norm, CPU)
    assert isinstance(twin, SyncBatchNorm) and twin.weight is norm.weight and synchronise(twin, CPU) is twin


def test_in_one_process_it_is_batch_norm() -> None:
    plain, ours = layer(4, {}), synchronise(layer(4, {}), CPU)
    for training in (True, False):
        x = rows(4, 0)
        assert torch.equal(ours.train(training)(x), plain.train(training)(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), plain.buffers(), strict=True))
    with pytest.raises(ValueError, match=r"batch norm expects \(N, C, ...\), got shape \(3,\)"):
        ours(torch.ones(3, dtype=torch.float64))


def twice() -> list[Tensor]:
    """Derivatives of a gradient's square with respect to rows, weight and bias, on this rank's rows."""
    rank, world = distributed.rank(), distributed.world_size()
    norm: nn.Module = layer(4, {})
    if world > 1:
        norm = synchronise(norm, CPU)
    mine = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    x = (rows(4, 0) - 50.0)[mine].requires_grad_()
    inputs = (x, norm.weight, norm.bias)
    first = torch.autograd.grad((norm(x).pow(3) * rows(4, 9)[mine]).sum(), inputs, create_graph=True)
    total = first[0].square().sum() + sum(distributed.reduce_sum(g).square().sum() / world for g in first[1:])
    return list(torch.autograd.grad(total, inputs))


def test_two_processes_equal_one_in_the_second_derivative(gloo: GlooPool) -> None:
    alone, (first, second) = twice(), gloo.run(twice, 2)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), alone[0], rtol=1e-9, atol=1e-9)
    for one, two, expected in zip(first[1:], second[1:], alone[1:], strict=True):
        torch.testing.assert_close(one + two, expected, rtol=1e-9, atol=1e-9)
