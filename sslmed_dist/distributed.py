"""The only file that knows process groups: rank, gather, the gradient average, and the seeding of a step.

In one process every function is the identity, so losses and normalisation layers are written once. A loss is the mean
over the rows of this rank, each compared with the gathered rows of all ranks. The backward of ``gather`` sums over
ranks, so the mean of the ranks' gradients is exactly the gradient that one process with the whole batch would compute.

Shapes: W ranks; b rows on each rank, so W b rows in all, rank after rank.
"""

import datetime
import os
from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from sslmed_dist import links, randomness

LINKS: WeakKeyDictionary[dist.ProcessGroup, links.Links | None] = WeakKeyDictionary()  # of every group that has sent
MESSAGES = [0]  # how many messages of the whole group this process has begun, see ``calls``
SMALL = 1 << 14  # values in a tensor; above, an all-reduce moves fewer bytes than sends from everybody to everybody


def active() -> bool:
    """Whether this process belongs to a group of more than one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's rank; 0 outside a group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 outside a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def calls() -> int:
    """How many messages of the whole group this process has begun. All ranks begin the same ones in the same order, so
    where all wait, the rank with the fewest is the one that the others wait for."""
    return MESSAGES[0]


def count_call() -> None:
    """Note that a message of the whole group begins."""
    MESSAGES[0] += 1


def linked() -> links.Links | None:
    """The direct connections of this group, made at the first call, which all ranks make together; None where its ranks
    are on several machines."""
    group = dist.group.WORLD
    assert group is not None
    if group not in LINKS:
        patience: datetime.timedelta = group._get_backend(torch.device("cpu")).options._timeout
        LINKS[group] = links.connect(patience.total_seconds())
    return LINKS[group]


def exchange(parts: Sequence[Tensor]) -> list[Tensor]:
    """Send ``parts[s]`` to rank s; return what the ranks sent to this one, W tensors in rank order. All are CPU tensors
    of one shape.

    Small messages go by ``links`` where all ranks are on one machine. Others are plain sends and receives: gloo's own
    collectives take seven to fourteen times as long for small messages, and its all-reduce moves W times the bytes that
    a gather's backward needs.
    """
    count_call()
    world, own_rank = dist.get_world_size(), dist.get_rank()
    sent = [part.contiguous() for part in parts]
    direct = linked()
    if direct is not None and 0 < sent[0].nbytes <= links.LARGEST:
        return direct.exchange(sent)
    received = [part if s == own_rank else torch.empty_like(part) for s, part in enumerate(sent)]
    others = [(own_rank + offset) % world for offset in range(1, world)]  # not all to rank 0 at first
    # All transfers are started before any is waited for, or two ranks could wait for each other.
    requests = [dist.isend(sent[s], s) for s in others] + [dist.irecv(received[s], s) for s in others]
    for request in requests:
        assert request is not None
        request.wait()
    return received


def gathered(x: Tensor) -> Tensor:
    """(b, ...) -> (W b, ...): the rows of all ranks in rank order, no gradient."""
    world = dist.get_world_size()
    if not x.is_cuda:
        return torch.cat(exchange([x] * world))
    count_call()
    out = x.new_empty(world * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(out, x.contiguous())
    return out


def scattered_sum(x: Tensor) -> Tensor:
    """(W b, ...) -> (b, ...): the block of rows that belongs to this rank, summed over what all ranks hold of it (in
    rank order on a CPU), no gradient."""
    world = dist.get_world_size()
    if not x.is_cuda:
        return torch.stack(exchange(x.chunk(world))).sum(0)  # chunk s of every rank meets at rank s
    count_call()
    out = x.new_empty(x.shape[0] // world, *x.shape[1:])
    dist.reduce_scatter_tensor(out, x.contiguous())
    return out


class ReduceSum(torch.autograd.Function):
    """Elementwise sum over ranks. Its backward is again a sum over ranks, at every order of derivative."""

    @staticmethod
    def forward(ctx: "torch.autograd.function.FunctionCtx", x: Tensor) -> Tensor:
        if not x.is_cuda and x.numel() <= SMALL:
            return torch.stack(exchange([x] * dist.get_world_size())).sum(0)
        count_call()
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *grads: Tensor) -> Tensor:
        total: Tensor = ReduceSum.apply(grads[0])  # type: ignore[no-untyped-call]
        return total


class Gather(torch.autograd.Function):
    """(b, ...) -> (W b, ...) in rank order. The backward sums the gradients of all ranks for this rank's rows."""

    @staticmethod
    def forward(ctx: "torch.autograd.function.FunctionCtx", x: Tensor) -> Tensor:
        return gathered(x)

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *grads: Tensor) -> Tensor:
        own_rows_grad: Tensor = ScatterSum.apply(grads[0])  # type: ignore[no-untyped-call]
        return own_rows_grad


class ScatterSum(torch.autograd.Function):
    """(W b, ...) -> (b, ...): this rank's block of rows, summed over ranks. The adjoint (transpose) of ``Gather``."""

    @staticmethod
    def forward(ctx: "torch.autograd.function.FunctionCtx", x: Tensor) -> Tensor:
        return scattered_sum(x)

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *grads: Tensor) -> Tensor:
        all_rows_grad: Tensor = Gather.apply(grads[0])  # type: ignore[no-untyped-call]
        return all_rows_grad


def gather(x: Tensor) -> Tensor:
    """(b, ...) on each rank -> (W b, ...), rank after rank, differentiable. Every rank must hold the same number of
    rows."""
    return Gather.apply(x) if active() else x  # type: ignore[no-untyped-call]


def reduce_sum(x: Tensor) -> Tensor:
    """Elementwise sum over ranks of a tensor of any shape, differentiable."""
    return ReduceSum.apply(x) if active() else x  # type: ignore[no-untyped-call]


def average_gradients(parameters: Iterable[torch.nn.Parameter], extras: Sequence[Tensor] = ()) -> list[Tensor]:
    """Replace every ``.grad`` by its mean over ranks, in one flat all-reduce; return the means of the scalars
    ``extras``, as 0-d tensors.

    One flat buffer in a fixed order gives the same bits after a restart (DistributedDataParallel rebuilds its buckets
    after the first step and does not). ``extras`` (loss terms, stop flags) go in the same buffer, so that a step costs
    one message. Every rank must hold gradients of the same parameters.
    """
    owners = [p for p in parameters if p.grad is not None]
    grads = [p.grad for p in owners if p.grad is not None]
    if not active() or not (grads or extras):
        return [extra.detach() for extra in extras]
    count_call()
    # The gradients one after another as one vector, then the extras in the gradients' type and device.
    reference = grads[0] if grads else extras[0].detach()
    tail = [extra.detach().to(reference).reshape(1) for extra in extras]
    flat = torch.cat([grad.reshape(-1) for grad in grads] + tail)
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    # Cut the vector up again: a gradient becomes its part of it, where it lies in memory as the part does.
    offset = 0
    for owner, grad in zip(owners, grads, strict=True):
        part = flat[offset : offset + grad.numel()].view_as(grad)
        if grad.dtype == flat.dtype and grad.is_contiguous():
            owner.grad = part
        else:
            grad.copy_(part)
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
        count_call()
        dist.barrier()


def seed_step(seed: int, step: int, micro: int = 0) -> None:
    """Reseed torch's global generators for one (micro-)step: its dropout can be repeated, and a checkpoint needs no
    state of a generator. Every rank gets another seed."""
    torch.manual_seed(randomness.key(seed, "step", step, rank(), micro) & ((1 << 63) - 1))


def join_from_environment(timeout_s: float = 300.0) -> bool:
    """Join the group that torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) describe, if they are set.

    Returns whether a group was joined. The backend is NCCL with a GPU, gloo without. After ``timeout_s`` seconds a rank
    no longer waits for one that hangs.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
    return True


def leave() -> None:
    """Leave the group, if there is one; ranks that wait for this one's message fail."""
    if dist.is_available() and dist.is_initialized():
        group = dist.group.WORLD
        direct = LINKS.pop(group, None) if group is not None else None
        if direct is not None:
            direct.close()
        dist.destroy_process_group()
