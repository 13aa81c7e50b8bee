"""What a training step costs outside the encoder's forward and backward pass.

    python -m tests.benchmarks.step [--width 64] [--batch 64]

Prints the share of a whole ``fit`` step (batch, views, head, loss, guard, optimiser, logging) that is not the
encoder's own forward and backward, from interleaved repetitions in one process and one thread. Target: <= 10 %.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sslmed_dist import config, distributed
from sslmed_dist.training import job
from sslmed_dist.training.step import Stepper
from tests import tiny


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--width", type=int, default=64)
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--repeat", type=int, default=7)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        images = tiny.write_images(Path(name) / "images.npz", train=options.batch * 4, size=32)
        work = job.assemble(settings(Path(name), images, options.width, options.batch))
    work.method.train()
    stepper = Stepper(
        work.method, work.views, work.settings.plan, work.batches, work.state, distributed.leave_gradients, None
    )
    batch = next(iter(work.batches.epoch(0)))
    views = work.views(batch, seed=0, epoch=0)
    pair = torch.cat([views["views_0"], views["views_1"]])
    encoder = work.method.encoder

    def whole() -> None:
        stepper.step(next(iter(work.batches.epoch(0))), 0, False)

    def alone() -> None:
        encoder(pair).sum().backward()
        work.method.zero_grad(set_to_none=True)

    times: dict[str, list[float]] = {"whole": [], "alone": []}
    for turn in range(options.repeat + 1):
        for label, function in (("whole", whole), ("alone", alone)):
            started = time.process_time()
            function()
            if turn:
                times[label].append(time.process_time() - started)
    shares = [1 - b / a for a, b in zip(times["whole"], times["alone"], strict=True)]
    print(f"ResNet-18 width {options.width}, batch {options.batch}, 32 px, one thread, CPU time")
    print(f"whole step   {statistics.median(times['whole']) * 1e3:8.1f} ms")
    print(f"encoder only {statistics.median(times['alone']) * 1e3:8.1f} ms")
    print(f"overhead share of the step: {statistics.median(shares):.1%} (target <= 10 %)")


def settings(folder: Path, images: Path, width: int, batch: int) -> config.Config:
    """The thesis's CIFAR set-up on grey images."""
    encoder = {"name": "resnet", "depth": 18, "stem": "cifar", "width": width}
    head = {"name": "projection", "hidden": 512, "out": 128}
    tree = tiny.tree(
        folder,
        data={"root": str(images)},
        views={"size": 32, "blur": 0.0},
        method={"encoder": encoder, "head": head},
        plan={"batch_size": batch, "log_every": 10, "checkpoint_every": 1000},
    )
    return config.from_tree(tree, "benchmark")


if __name__ == "__main__":
    main()
