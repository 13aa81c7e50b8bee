"""The only file that knows process groups: rank, gather, the gradient average, and the seeding of a step.

In one process every function is the identity, so losses and normalisation layers are written once. A loss computes
the mean over its own rows against the gathered columns of all ranks; because the backward of ``gather`` sums over
ranks, the mean of the ranks' gradients is exactly the gradient that one process with the whole batch would compute.
"""

import datetime
import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from sslmed_dist import randomness

SMALL = 1 << 14  # values; above, an all-reduce moves fewer bytes than everybody's sending to everybody


def active() -> bool:
    """Whether this process belongs to a group of more than one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's rank; 0 outside a group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 outside a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def exchange(parts: Sequence[Tensor]) -> list[Tensor]:
    """Send ``parts[s]`` to rank s; return what the ranks sent to this one, in rank order. CPU tensors of one shape.

    Plain sends and receives: gloo's own collectives take seven to fourteen times as long for the small messages of a
    synchronised batch norm, and its all-reduce moves W times the bytes that a gather's backward needs.
    """
    world, own = dist.get_world_size(), dist.get_rank()
    sent = [part.contiguous() for part in parts]
    received = [part if rank == own else torch.empty_like(part) for rank, part in enumerate(sent)]
    others = [(own + offset) % world for offset in range(1, world)]  # not all to rank 0 at first
    waiting = [dist.isend(sent[rank], rank) for rank in others] + [dist.irecv(received[rank], rank) for rank in others]
    for request in waiting:
        assert request is not None
        request.wait()
    return received


def gathered(x: Tensor) -> Tensor:
    """(b, ...) -> (W b, ...) in rank order, no gradient."""
    world = dist.get_world_size()
    if not x.is_cuda:
        return torch.cat(exchange([x] * world))
    out = x.new_empty(world * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(out, x.contiguous())
    return out


def scattered_sum(x: Tensor) -> Tensor:
    """(W b, ...) -> (b, ...): the own block summed over ranks (in rank order on a CPU), no gradient."""
    world = dist.get_world_size()
    if not x.is_cuda:
        return torch.stack(exchange(x.chunk(world))).sum(0)
    out = x.new_empty(x.shape[0] // world, *x.shape[1:])
    dist.reduce_scatter_tensor(out, x.contiguous())
    return out


class ReduceSum(torch.autograd.Function):
    """Sum over ranks; the backward of a sum over ranks is again a sum over ranks, at every order of derivative."""

    @staticmethod
    def forward(ctx: "torch.autograd.function.FunctionCtx", x: Tensor) -> Tensor:
        if not x.is_cuda and x.numel() <= SMALL:
            return torch.stack(exchange([x] * dist.get_world_size())).sum(0)
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *grads: Tensor) -> Tensor:
        total: Tensor = ReduceSum.apply(grads[0])  # type: ignore[no-untyped-call]
        return total


class Gather(torch.autograd.Function):
    """(b, ...) -> (W b, ...) in rank order. The backward sums what all ranks ask of the own rows."""

    @staticmethod
    def forward(ctx: "torch.autograd.function.FunctionCtx", x: Tensor) -> Tensor:
        return gathered(x)

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *grads: Tensor) -> Tensor:
        own: Tensor = ScatterSum.apply(grads[0])  # type: ignore[no-untyped-call]
        return own


class ScatterSum(torch.autograd.Function):
    """(W b, ...) -> (b, ...): the own block of rows, summed over ranks. Adjoint of ``Gather``."""

    @staticmethod
    def forward(ctx: "torch.autograd.function.FunctionCtx", x: Tensor) -> Tensor:
        return scattered_sum(x)

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *grads: Tensor) -> Tensor:
        total: Tensor = Gather.apply(grads[0])  # type: ignore[no-untyped-call]
        return total


def gather(x: Tensor) -> Tensor:
    """(b, ...) on each rank -> (W b, ...), rank after rank. Every rank must hold the same number of rows."""
    return Gather.apply(x) if active() else x  # type: ignore[no-untyped-call]


def reduce_sum(x: Tensor) -> Tensor:
    """Elementwise sum over ranks, differentiable."""
    return ReduceSum.apply(x) if active() else x  # type: ignore[no-untyped-call]


def average_gradients(parameters: Iterable[torch.nn.Parameter], extras: Sequence[Tensor] = ()) -> list[Tensor]:
    """Replace every ``.grad`` by its mean over ranks, in one flat all-reduce; return the scalar ``extras``' means.

    One flat buffer in a fixed order is bit-stable across restarts (DistributedDataParallel rebuilds its buckets after
    the first step and is not). ``extras`` (loss terms, stop flags) ride along so that a step costs one message.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not active() or not (grads or extras):
        return [extra.detach() for extra in extras]
    reference = grads[0] if grads else extras[0].detach()
    tail = [extra.detach().to(reference).reshape(1) for extra in extras]
    flat = torch.cat([grad.reshape(-1) for grad in grads] + tail)
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    offset = 0
    for grad in grads:
        grad.copy_(flat[offset : offset + grad.numel()].view_as(grad))
        offset += grad.numel()
    return [flat[offset + i] for i in range(len(tail))]


def leave_gradients(parameters: Iterable[torch.nn.Parameter], extras: Sequence[Tensor] = ()) -> list[Tensor]:
    """What a single process passes to ``fit`` in place of ``average_gradients``: nothing to average."""
    return [extra.detach() for extra in extras]


def broadcast_module(module: torch.nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers."""
    if active():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def barrier() -> None:
    """Wait for all ranks."""
    if active():
        dist.barrier()


def seed_step(seed: int, step: int, micro: int = 0) -> None:
    """Reseed torch's global generators for one (micro-)step, so dropout replays and nothing random needs saving."""
    torch.manual_seed(randomness.key(seed, "step", step, rank(), micro) & ((1 << 63) - 1))


def join_from_environment(timeout_s: float = 300.0) -> bool:
    """Join the group that torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) describe, if they do.

    Returns whether a group was joined. NCCL with a GPU, gloo without. ``timeout_s`` breaks a hang of another rank.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
    return True


def leave() -> None:
    """Leave the group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
