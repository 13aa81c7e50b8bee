"""What the gradient cache costs: a step in micro-batches against a plain step of the same batch.

    python -m tests.benchmarks.cache [--width 32] [--batch 64] [--micro 16]

CPU time and peak memory of a whole ``fit`` step, one thread; times interleaved in one process, memory of each in a
process of its own. Target: <= 1.4x the time (one more forward pass; 4/3 where backward costs two).
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sslmed_dist import config, distributed
from sslmed_dist.training import job
from sslmed_dist.training.step import Stepper
from tests import tiny
from tests.benchmarks.losses import resident


def stepper(folder: Path, width: int, batch: int, micro: int | None) -> Stepper:
    """A ResNet-18 with the CIFAR stem on 32-px images."""
    images = folder / "images.npz"
    if not images.exists():
        tiny.write_images(images, train=2 * batch, size=32)
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
    plan, average = work.settings.plan, distributed.leave_gradients
    return Stepper(work.method, work.views, plan, work.batches, work.state, average, None)


def take(made: Stepper) -> None:
    made.step(next(iter(made.batches.epoch(0))), 0, False)


def peak(width: int, batch: int, micro: int | None) -> None:
    """Print by how many bytes a step raises the peak resident set of this process."""
    with TemporaryDirectory() as name:
        made = stepper(Path(name), width, batch, micro)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = resident("VmRSS")
        take(made)
        print(resident("VmHWM") - before)


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--width", type=int, default=32)
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--micro", type=int, default=16)
    arguments.add_argument("--repeat", type=int, default=7)
    options = arguments.parse_args()
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
    peaks = {
        case: int(
            subprocess.run(
                [sys.executable, "-c", call.format(options.width, options.batch, micro)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for case, micro in cases.items()
    }
    print(f"peak memory {peaks['cached'] / 2**20:.0f} MiB against {peaks['plain'] / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
