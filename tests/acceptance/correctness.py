"""What the device computes, against what the CPU computes: views, losses, layers, decoding, collectives."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sslmed_dist import distributed
from sslmed_dist.losses import LOSSES
from sslmed_dist.models.normalization import synchronise
from tests import device_cases
from tests.acceptance.part import Bench, Comparison
from tests.benchmarks.losses import CASES, blockwise, dense
from tests.differences import Tensors, Tolerance
from tests.losses.golden import embeddings

WHITENING = ("logdet", "wmse", "zero_fcl", "zero_icl")  # they factorise matrices, which float32 rounds more


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 in convolutions and matrix products: it rounds to 10 bits, more than these comparisons allow."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def every_loss(device: str, dtype: torch.dtype, tiny: bool) -> dict[str, Tensor]:
    """Value and gradient of every entry of ``LOSSES``, and of NT-Xent with DySTreSS, at their own defaults."""
    samples, width = (48, 8) if tiny else (512, 64)
    makers: dict[str, Callable[[], Any]] = {name: maker for name, maker in LOSSES.items() if name != "sum"}
    makers["dystress"] = lambda: blockwise("dystress")
    found: dict[str, Tensor] = {}
    for name, maker in makers.items():
        first, second = (z.to(device, dtype).requires_grad_() for z in embeddings(samples, width, "acceptance", name))
        with full_float32():
            value = maker().to(device=device, dtype=dtype)(first, second)
            value.backward()
        assert first.grad is not None and second.grad is not None
        found[name] = device_cases.require_on(device, value.detach())
        found[f"{name}, gradient"] = torch.stack([first.grad, second.grad])
    return found


def loss_tolerance(name: str) -> Tolerance:
    """float32 against float64."""
    return Tolerance("norm", 2e-3 if name.startswith(WHITENING) else 2e-5)


def across_tiles(device: str, dtype: torch.dtype, tiny: bool, whole: bool) -> dict[str, Tensor]:
    """Value and gradient of more pairs than one tile holds; ``whole``: as one dense matrix under autograd."""
    pairs = 300 if tiny else 5000
    found: dict[str, Tensor] = {}
    for case in CASES:
        first, second = (z.to(device, dtype) for z in embeddings(pairs, 16, "tiles"))
        first.requires_grad_()
        with full_float32():
            value = dense(case, first, second) if whole else blockwise(case)(first, second)
            value.backward()  # type: ignore[no-untyped-call]
        assert first.grad is not None
        found |= {case: value.detach(), f"{case}, gradient": first.grad}
    return found


def normalised(device: str, dtype: torch.dtype, together: bool) -> dict[str, Tensor]:
    """Three steps of batch norm on (64, 32, 8, 8) and on (64, 32): outputs, gradients, running statistics.
    ``together``: as the layer that is synchronised over ranks, in a group of one."""
    found: dict[str, Tensor] = {}
    for kind, shape in ((nn.BatchNorm2d, (64, 32, 8, 8)), (nn.BatchNorm1d, (64, 32))):
        norm: nn.Module = kind(32).to(device, dtype)
        cells = embeddings(64, math.prod(shape[1:]), "batch norm")
        rows, weights = ((z * 3 + 5).view(shape).to(device, dtype) for z in cells)
        with group_of_one(device) if together else contextlib.nullcontext():
            if together:
                norm = synchronise(norm, torch.device(device))
            x = rows.requires_grad_()
            for _ in range(3):
                out = norm(x)
                (out.pow(2) * weights).sum().backward()
        assert x.grad is not None
        tensors = {"output": out.detach(), "gradient": x.grad, **dict(norm.named_buffers())}
        tensors |= {f"{name}, gradient": p.grad for name, p in norm.named_parameters() if p.grad is not None}
        found |= {f"{kind.__name__}, {name}": value for name, value in tensors.items()}
    return found


def norm_tolerance(name: str) -> Tolerance:
    """float32 against float64; the counter of batches exactly."""
    return device_cases.BITS if name.endswith("num_batches_tracked") else Tolerance("norm", 1e-5)


@contextlib.contextmanager
def group_of_one(device: str) -> Iterator[None]:
    """A process group of this process alone: NCCL on a GPU, gloo elsewhere."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    if device == "cuda":
        dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=torch.device("cuda", 0))
    else:
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def collectives(bench: Bench) -> Tensors:
    """Every message of ``sslmed_dist.distributed`` and its backward, sent to the one rank there is."""
    kinds = (torch.float32, torch.float64, torch.bfloat16)
    found: dict[str, Tensor] = {}
    with group_of_one(bench.device):
        for dtype in kinds:
            x = rows_of_rank(bench.device, dtype).requires_grad_()
            gathered: Tensor = distributed.Gather.apply(x)  # type: ignore[no-untyped-call]
            total: Tensor = distributed.ReduceSum.apply(gathered)  # type: ignore[no-untyped-call]
            scattered: Tensor = distributed.ScatterSum.apply(total)  # type: ignore[no-untyped-call]
            scattered.square().sum().backward()  # type: ignore[no-untyped-call]
            assert x.grad is not None
            found |= {f"{dtype}, rows": scattered.detach().float(), f"{dtype}, gradient": x.grad.float()}
        flat = rows_of_rank(bench.device, torch.float32)
        dist.all_reduce(flat)
        dist.broadcast(flat, 0)
        dist.barrier()
        found["flat average"] = flat / dist.get_world_size()
    return {name: device_cases.require_on(bench.device, value) for name, value in found.items()}


def rows_of_rank(device: str, dtype: torch.dtype) -> Tensor:
    """More values than ``distributed.SMALL``."""
    return embeddings(300, 64, "collectives")[0].to(dtype).to(device)


def not_sent(bench: Bench) -> Tensors:
    """What ``collectives`` gives where every message is the identity."""
    found: dict[str, Tensor] = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = rows_of_rank("cpu", dtype)
        found |= {f"{dtype}, rows": x.float(), f"{dtype}, gradient": (2 * x).float()}
    return found | {"flat average": rows_of_rank("cpu", torch.float32)}


def cpu_views(bench: Bench) -> Tensors:
    return device_cases.views("cpu")


def device_views(bench: Bench) -> Tensors:
    return device_cases.views(bench.device)


def cpu_episodes(bench: Bench) -> Tensors:
    return device_cases.episodes("cpu")


def device_episodes(bench: Bench) -> Tensors:
    return device_cases.episodes(bench.device)


def cpu_batches(bench: Bench) -> Tensors:
    return {f"{name}, {how}": value for how in HOW for name, value in device_cases.batches("cpu", False, 0).items()}


def device_batches(bench: Bench) -> Tensors:
    return {
        f"{name}, {how}": value
        for how, arguments in HOW.items()
        for name, value in device_cases.batches(bench.device, *arguments).items()
    }


HOW = {"from the host": (False, 0), "by threads": (False, 2), "resident": (True, 0), "resident, by threads": (True, 2)}


def cpu_rows(bench: Bench) -> Tensors:
    return device_cases.rows("cpu")


def device_rows(bench: Bench) -> Tensors:
    return device_cases.rows(bench.device)


def cpu_jpeg(bench: Bench) -> Tensors:
    return device_cases.decoded("cpu", device_cases.jpeg_pack(bench.scratch))


def device_jpeg(bench: Bench) -> Tensors:
    return device_cases.decoded(bench.device, device_cases.jpeg_pack(bench.scratch))


def exact_losses(bench: Bench) -> Tensors:
    return every_loss("cpu", torch.float64, bench.tiny)


def device_losses(bench: Bench) -> Tensors:
    return every_loss(bench.device, torch.float32, bench.tiny)


def dense_losses(bench: Bench) -> Tensors:
    return across_tiles("cpu", torch.float64, bench.tiny, whole=True)


def tiled_losses(bench: Bench) -> Tensors:
    return across_tiles(bench.device, torch.float32, bench.tiny, whole=False)


def plain_norm(bench: Bench) -> Tensors:
    return normalised("cpu", torch.float64, together=False)


def synchronised_norm(bench: Bench) -> Tensors:
    return normalised(bench.device, torch.float32, together=True)


VIEWS = Comparison(cpu_views, device_views, device_cases.views_tolerance)
EPISODES = Comparison(cpu_episodes, device_episodes, device_cases.episodes_tolerance)
BATCHES = Comparison(cpu_batches, device_batches, device_cases.bits)
ROWS = Comparison(cpu_rows, device_rows, device_cases.rows_tolerance)
JPEG = Comparison(cpu_jpeg, device_jpeg, device_cases.decoded_tolerance)
EVERY_LOSS = Comparison(exact_losses, device_losses, loss_tolerance)
TILES = Comparison(dense_losses, tiled_losses, loss_tolerance)
BATCH_NORM = Comparison(plain_norm, synchronised_norm, norm_tolerance)
COLLECTIVES = Comparison(not_sent, collectives, device_cases.bits)
