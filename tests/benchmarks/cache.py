"""What the gradient cache costs: a step in micro-batches against a plain step of the same batch.

    python -m tests.benchmarks.cache [--width 32] [--batch 64] [--micro 16]
    python -m tests.benchmarks.cache --budget 512 [--width 16] [--micro 64] [--most 4096]

CPU time and peak memory of a whole ``fit`` step, one thread; times interleaved in one process, memory of each in a
process of its own. Target: <= 1.4x the time (one more forward pass; 4/3 where backward costs two).

``--budget``: instead, groups of 1, 2 and 4 workers (gloo, synchronised batch norm): by how much one step raises the
peak resident memory of the worker that needs most, by global batch, doubled until ``--most`` or so many MiB.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sslmed_dist import config, distributed
from sslmed_dist.training import job
from sslmed_dist.training.step import Stepper
from tests import tiny
from tests.benchmarks.ranks_memory import MIB, WORLDS, climb, in_ranks, line_of, peak_during, status


def stepper(folder: Path, width: int, batch: int, micro: int | None) -> Stepper:
    """A ResNet-18 with the CIFAR stem on 32-px images, of this rank's group where there is one."""
    images = folder / f"images-{distributed.rank()}.npz"
    if not images.exists():
        folder.mkdir(exist_ok=True)
        tiny.write_images(images, train=batch, size=32)
    tree = tiny.tree(
        folder,
        run={"threads": 1},
        data={"root": str(images)},
        views={"size": 32, "blur": 0.0},
        method={"encoder": {"name": "resnet", "depth": 18, "stem": "cifar", "width": width}},
        plan={"batch_size": batch, "micro_batch": micro, "log_every": 1000},
    )
    work = job.assemble(config.from_tree(tree, "benchmark"))
    work.method.train()
    plan = work.settings.plan
    average = distributed.average_gradients if distributed.active() else distributed.leave_gradients
    return Stepper(work.method, work.views, plan, work.batches, work.state, average, None)


def take(made: Stepper) -> None:
    made.step(next(iter(made.batches.epoch(0))), 0, False)


def peak(width: int, batch: int, micro: int | None) -> None:
    """Print by how many bytes a step raises the peak resident set of this process."""
    with TemporaryDirectory() as name:
        made = stepper(Path(name), width, batch, micro)
        before = status("VmRSS")
        print(peak_during(lambda: take(made)) - before)


def workers(width: int, micro: int | None, sizes: Sequence[int], budget: int) -> None:
    """``climb`` in a worker: a step of each batch."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:

        def prepare(batch: int) -> Callable[[], None]:
            made = stepper(Path(name) / str(batch), width, batch, micro)
            return lambda: take(made)

        climb(sizes, budget, prepare)


def within(budget: int, width: int, micro: int, most: int) -> None:
    """Print what fits into a budget."""
    sizes = [micro << shift for shift in range(20) if micro << shift <= most]
    print(f"ResNet-18 width {width}, 32 px, float32, two views; the cache takes {micro} of the global batch at a time")
    for world in WORLDS:
        for name, cut in (("at once", None), ("cached", micro)):
            call = f"from tests.benchmarks.cache import workers; workers({width}, {cut}, {sizes}, {budget})"
            print(line_of(f"{world} workers, {name}", in_ranks(call, world), budget), flush=True)


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--width", type=int, default=32)
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--micro", type=int, default=16)
    arguments.add_argument("--repeat", type=int, default=7)
    arguments.add_argument("--budget", type=int, help="MiB that a step may take in a worker")
    arguments.add_argument("--most", type=int, default=4096, help="the largest batch that is tried")
    options = arguments.parse_args()
    if options.budget is not None:
        within(options.budget * MIB, options.width, options.micro, options.most)
        return
    torch.set_num_threads(1)
    cases: dict[str, int | None] = {"plain": None, "cached": options.micro}
    times: dict[str, list[float]] = {name: [] for name in cases}
    with TemporaryDirectory() as name:
        made = {case: stepper(Path(name), options.width, options.batch, micro) for case, micro in cases.items()}
        for turn in range(options.repeat + 1):
            for case in cases:
                started = time.process_time()
                take(made[case])
                if turn:
                    times[case].append(time.process_time() - started)
    ratio = statistics.median(a / b for a, b in zip(times["cached"], times["plain"], strict=True))
    print(f"ResNet-18 width {options.width}, batch {options.batch} in micro-batches of {options.micro}, CPU time")
    print(f"cached step {ratio:.2f}x the plain step (target <= 1.4x)")
    call = "from tests.benchmarks.cache import peak; peak({}, {}, {})"
    peaks = {case: in_ranks(call.format(options.width, options.batch, micro))[0][0] for case, micro in cases.items()}
    print(f"peak memory {peaks['cached'] / MIB:.0f} MiB against {peaks['plain'] / MIB:.0f} MiB")


if __name__ == "__main__":
    main()
