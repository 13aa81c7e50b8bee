"""Time and memory of losses block by block against the same loss as one dense matrix under autograd.

    python -m tests.benchmarks.losses [--pairs 4096] [--memory-pairs 8192] [--device cpu|cuda] [--no-onednn]
    python -m tests.benchmarks.losses --budget 512 [--most 16384]

Loss and gradient of N pairs, D = 128, float32. CPU time: one thread, interleaved repetitions in one process, the
median ratio; targets at N = 4096 in ``TARGETS``. ``--no-onednn`` leaves all products to torch.mm, as they are on
processors where oneDNN is not the faster one (``losses.products``). Memory: growth of the peak resident set, each case
in a process of its own; target <= 0.05x dense at N = 8192 and at most 2.2x for twice the pairs. On a GPU (``--device
cuda``): milliseconds and extra memory at N = 131072 against the matrix products alone (16 N^2 D operations, 24 for the
softmax family).

``--budget``: memory alone, in groups of 1, 2 and 4 workers (gloo), each with its share of the rows against all columns:
by how much loss and gradient raise the peak resident memory of a worker, by pairs in all, doubled until ``--most`` or
so many MiB.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslmed_dist import distributed
from sslmed_dist.losses import LOSSES, products
from sslmed_dist.training.allocation import keep_freed_memory
from tests.benchmarks.ranks_memory import MIB, WORLDS, climb, in_ranks, line_of, peak_during, status

WIDTH = 128
DYSTRESS = {"name": "dystress", "low": 0.07, "high": 0.2}
CASES: dict[str, tuple[str, Any]] = {
    "mio_v3": ("mio_v3", 0.2),
    "nt_xent": ("nt_xent", 0.2),
    "dystress": ("nt_xent", DYSTRESS),
    "dcl": ("dcl", 0.1),
}
TARGETS = {"mio_v3": 0.3, "nt_xent": 0.45, "dystress": 0.5, "dcl": 0.5}  # CPU time against dense, at most


def dense(case: str, z0: Tensor, z1: Tensor) -> Tensor:
    """The loss as one would write it down, for autograd: this rank's rows against all columns."""
    columns = F.normalize(torch.cat([distributed.gather(z0), distributed.gather(z1)]), dim=1)
    share, count = len(z0), len(columns) // 2
    first = distributed.rank() * share + torch.arange(share, device=z0.device)
    own = torch.cat([first, first + count])  # which of the columns this rank's rows are
    partner, rows = own.roll(share), torch.arange(2 * share, device=z0.device)
    cosines = columns[own] @ columns.T
    lowest = cosines.new_tensor(-math.inf)
    if case in ("dystress", "nt_xent"):
        tau = 0.07 + 0.5 * (0.2 - 0.07) * (1.0 + torch.cos(math.pi * (1.0 + cosines))) if case == "dystress" else 0.2
        return F.cross_entropy((cosines / tau).index_put_((rows, own), lowest), partner)
    logits = cosines / (0.1 if case == "dcl" else 0.2)
    positives = logits[rows, partner]
    logits = logits.index_put_((rows, own), lowest).index_put((rows, partner), lowest)
    if case == "dcl":
        return logits.logsumexp(1).mean() - positives.mean()
    return logits.exp().sum() / (2 * share * (2 * count - 2)) - positives.mean()


def blockwise(case: str) -> Callable[[Tensor, Tensor], Tensor]:
    name, temperature = CASES[case]
    return LOSSES[name](temperature=temperature)


def embeddings(pairs: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    first = torch.randn(pairs, WIDTH)
    return first.to(device), (first + torch.randn(pairs, WIDTH)).to(device)


def step(loss: Callable[[Tensor, Tensor], Tensor], z0: Tensor, z1: Tensor) -> Tensor:
    """The gradient."""
    leaf = z0.clone().requires_grad_()
    loss(leaf, z1).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad


def times(pairs: int, repeat: int, keep: bool) -> None:
    """CPU-time ratios; ``keep``: under the allocator as a run of ours has it, which helps the dense matrix most."""
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    print("freed memory kept, as in a run" if keep else "the C library's allocator as it comes", end="; ")
    print("products of tiles by " + ("oneDNN" if products.onednn_is_faster() else "torch.mm"))
    z0, z1 = embeddings(pairs)
    for case in CASES:
        functions = {"dense": lambda a, b, case=case: dense(case, a, b), "blocks": blockwise(case)}
        spent: dict[str, list[float]] = {name: [] for name in functions}
        for turn in range(repeat + 1):
            for name, function in functions.items():
                started = time.process_time()
                step(function, z0, z1)
                if turn:
                    spent[name].append(time.process_time() - started)
        ratio = statistics.median(b / d for b, d in zip(spent["blocks"], spent["dense"], strict=True))
        exact = step(functions["dense"], z0[:1024].double(), z1[:1024].double())
        error = float((step(functions["blocks"], z0[:1024], z1[:1024]).double() - exact).norm() / exact.norm())
        shown = f"{statistics.median(spent['blocks']):.2f} s against {statistics.median(spent['dense']):.2f} s"
        verdict = f"target <= {TARGETS[case]}x: {'reached' if ratio <= TARGETS[case] else 'MISSED'}"
        print(f"{case:9} N = {pairs}: CPU time {ratio:.2f}x dense ({shown}; {verdict}); ", end="")
        print(f"float32 gradient within {error:.1e} of float64 dense at N = 1024 (target 5e-6)", flush=True)


def function_of(case: str, kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss by ``blocks``, or ``dense``."""
    return blockwise(case) if kind == "blocks" else lambda a, b: dense(case, a, b)


def peak(case: str, pairs: int, kind: str) -> None:
    """Print by how many bytes loss and gradient raise the peak resident set of this process."""
    torch.set_num_threads(1)
    function = function_of(case, kind)
    step(function, *embeddings(64))  # libraries are loaded at their first use
    z0, z1 = embeddings(pairs)
    before = status("VmRSS")
    print(peak_during(lambda: step(function, z0, z1)) - before)


def measured_peak(case: str, pairs: int, kind: str) -> int:
    return in_ranks(f"from tests.benchmarks.losses import peak; peak({case!r}, {pairs}, {kind!r})")[0][0]


def workers(case: str, kind: str, sizes: Sequence[int], budget: int) -> None:
    """``climb`` in a worker: loss and gradient of its share of the pairs."""
    torch.set_num_threads(1)
    function = function_of(case, kind)

    def prepare(pairs: int) -> Callable[[], Tensor]:
        z0, z1 = (z.chunk(distributed.world_size())[distributed.rank()].clone() for z in embeddings(pairs))
        return lambda: step(function, z0, z1)

    prepare(64)()  # libraries are loaded at their first use
    climb(sizes, budget, prepare)


def within(budget: int, most: int) -> None:
    """Print what fits into a budget."""
    sizes = [1024 << shift for shift in range(20) if 1024 << shift <= most]
    for case in ("mio_v3", "nt_xent"):  # one of one pass over the tiles, one of two
        for world in WORLDS:
            for kind in ("dense", "blocks"):
                call = f"from tests.benchmarks.losses import workers; workers({case!r}, {kind!r}, {sizes}, {budget})"
                print(line_of(f"{case}, {world} workers, {kind}", in_ranks(call, world), budget), flush=True)


def memory(pairs: int) -> None:
    """Peak ratios."""
    for case in CASES:
        whole, blocks, twice = (
            measured_peak(case, *arguments)
            for arguments in ((pairs, "dense"), (pairs, "blocks"), (2 * pairs, "blocks"))
        )
        print(
            f"{case:9} N = {pairs}: peak memory {blocks / whole:.3f}x dense ({blocks / 2**20:.0f} against "
            f"{whole / 2**20:.0f} MiB; target <= 0.05x); twice the pairs {twice / blocks:.2f}x (target <= 2.2x)",
            flush=True,
        )


def gpu(pairs: int) -> None:
    """Milliseconds of loss and gradient against the matrix products alone, bf16 tensor cores left aside."""
    z0, z1 = embeddings(pairs, "cuda")
    for case in CASES:
        loss = blockwise(case)
        step(loss, z0[:4096], z1[:4096])
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, started = torch.cuda.memory_allocated(), time.perf_counter()
        step(loss, z0, z1)
        torch.cuda.synchronize()
        seconds, extra = time.perf_counter() - started, torch.cuda.max_memory_allocated() - before
        operations = (16 if case == "mio_v3" else 24) * pairs**2 * WIDTH
        print(
            f"{case:9} N = {pairs}: {seconds * 1e3:.0f} ms, {operations / seconds / 1e12:.0f} TFLOP/s of matrix ",
            end="",
        )
        print(f"products, {extra / 2**30:.2f} GiB extra")


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pairs", type=int, default=4096)
    arguments.add_argument("--memory-pairs", type=int, default=8192)
    arguments.add_argument("--repeat", type=int, default=3)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments.add_argument("--no-onednn", action="store_true")
    arguments.add_argument("--budget", type=int, help="MiB that loss and gradient may take in a worker")
    arguments.add_argument("--most", type=int, default=16384, help="the largest number of pairs that is tried")
    options = arguments.parse_args()
    if options.budget is not None:
        within(options.budget * MIB, options.most)
        return
    if options.no_onednn:
        products.onednn_is_faster = lambda: False
    if options.device == "cuda":
        gpu(131072)
        return
    for keep in (False, True):  # the advice cannot be taken back
        times(options.pairs, options.repeat, keep)
    memory(options.memory_pairs)


if __name__ == "__main__":
    main()
