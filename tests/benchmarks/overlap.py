"""What overlapping the gradient average with the backward pass would win: two processes on the same two cores.

    python -m tests.benchmarks.overlap [--depth 18] [--width 64] [--batch 128] [--steps 8]

Each step is forward, backward and average of the encoder on half of the batch, by gloo, one thread a process. ``flat``
is what a run does: one all-reduce after the backward pass. ``overlapped`` is torch's DistributedDataParallel, which
sends buckets while the backward pass goes on. Both take turns, so that the machine's moods meet both. ``message`` is
the all-reduce alone, between ranks that are ready at the same time: more than that no overlap can win. The medians are
of the slower rank, of the clock and of the processor: the second hardly depends on what else the machine does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from sslmed_dist import distributed
from sslmed_dist.models import ENCODERS
from sslmed_dist.registry import build


def seconds(work: Callable[[], None]) -> list[float]:
    """How long the slower rank takes when both begin together: of the clock, of its processor (all threads)."""
    dist.barrier()
    begun, busy = time.perf_counter(), time.process_time()
    work()
    spent = torch.tensor([time.perf_counter() - begun, time.process_time() - busy])
    dist.all_reduce(spent, dist.ReduceOp.MAX)
    return [float(value) for value in spent]


def measure(depth: int, width: int, batch: int, steps: int) -> dict[str, list[list[float]]]:
    """Seconds of each kind, in this rank's group."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    leaf = {"name": "resnet", "depth": depth, "stem": "cifar", "width": width}
    encoder: nn.Module = build(ENCODERS, leaf, "encoder")
    wrapped = nn.parallel.DistributedDataParallel(encoder)
    images = torch.rand(batch // 2, 3, 32, 32)
    parameters = list(encoder.parameters())

    def flat() -> None:
        encoder.zero_grad()
        encoder(images).square().mean().backward()
        distributed.average_gradients(parameters)

    def overlapped() -> None:
        encoder.zero_grad()
        wrapped(images).square().mean().backward()

    kinds: dict[str, Callable[[], None]] = {
        "flat": flat,
        "overlapped": overlapped,
        "message": lambda: void(distributed.average_gradients(parameters)),
    }
    spent: dict[str, list[list[float]]] = {name: [] for name in kinds}
    for step in range(steps + 2):
        for name, work in kinds.items():
            took = seconds(work)
            if step >= 2:  # the first ones allocate, and build buckets
                spent[name].append(took)
    return spent


def void(_: object) -> None:
    """Leave a value aside."""


def main() -> None:
    """As rank of a group, measure; else start the two ranks and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("depth", 18), ("width", 64), ("batch", 128), ("steps", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    if "RANK" in os.environ:
        distributed.join_from_environment()
        spent = measure(asked.depth, asked.width, asked.batch, asked.steps)
        if distributed.rank() == 0:
            print(json.dumps(spent), flush=True)
        distributed.leave()
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command += ["tests.benchmarks.overlap", *sys.argv[1:]]
    told = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.PIPE)
    spent: dict[str, list[list[float]]] = json.loads(told.stdout)
    for number, what in enumerate(("clock", "processor")):
        medians = {name: statistics.median(pair[number] for pair in pairs) for name, pairs in spent.items()}
        print(f"{what}: " + ", ".join(f"{name} {value * 1000:.1f} ms" for name, value in medians.items()), end="; ")
        print(f"flat / overlapped {medians['flat'] / medians['overlapped']:.3f}", end="; ")
        print(f"the message is {medians['message'] / medians['flat']:.1%} of a step")


if __name__ == "__main__":
    main()
