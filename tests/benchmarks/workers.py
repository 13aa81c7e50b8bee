"""Images per second of two Ray workers against one single-thread process, on the same two cores.

    python -m tests.benchmarks.workers [--width 64] [--batch 128] [--steps 12]

Both runs log every step; the rate is taken between their third and last step, so starting Ray and importing torch do
not count. Beside it the ceiling of the machine: two processes that never speak to each other (the encoder alone,
forward and backward, half the batch each) against one process with the whole batch. Target: >= 1.7x.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sslmed_dist import plain_yaml
from sslmed_dist.models import ENCODERS
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training.allocation import keep_freed_memory
from tests import tiny

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def rate(folder: Path, batch: int) -> float:
    """Images per second between the third and the last step in ``metrics.jsonl``; the first steps allocate."""
    rows = [row for row in Metrics(folder / "metrics.jsonl").read() if row["name"] == "loss"]
    first, last = rows[2], rows[-1]
    return float((last["step"] - first["step"]) * batch / (last["time"] - first["time"]))


def encoder_of(width: int) -> dict[str, Any]:
    return {"name": "resnet", "depth": 18, "stem": "cifar", "width": width}


def alone(width: int, images: int, seconds: float) -> float:
    """Images per second of the encoder's forward and backward on two views of ``images`` images."""
    keep_freed_memory()
    torch.set_num_threads(1)
    leaf = {key: value for key, value in encoder_of(width).items() if key != "name"}
    encoder, pixels = ENCODERS["resnet"](**leaf, channels=1), torch.rand(2 * images, 1, 32, 32)
    started, steps = 0.0, -1
    while steps < 1 or time.perf_counter() - started < seconds:
        if steps == 0:
            started = time.perf_counter()
        encoder(pixels).sum().backward()
        encoder.zero_grad()
        steps += 1
    return steps * images / (time.perf_counter() - started)


def ceiling(width: int, batch: int, seconds: float) -> float:
    """Two independent processes against one."""
    rates = []
    for processes in (1, 2):
        call = f"from tests.benchmarks.workers import alone; print(alone({width}, {batch // processes}, {seconds}))"
        command = [sys.executable, "-c", call]
        running = [
            subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.PIPE, text=True) for _ in range(processes)
        ]
        rates.append(sum(float(process.communicate()[0]) for process in running))
    return rates[1] / rates[0]


def trained(folder: Path, path: Path, batch: int) -> dict[str, float]:
    """Images per second of both runs."""
    rates = {}
    for label, overrides in (("one process", ["driver=local"]), ("two Ray workers", ["driver=ray"])):
        run = label.replace(" ", "-")
        command = [sys.executable, "-m", "sslmed_dist.cli", "train", str(path), f"run.name={run}", *overrides]
        subprocess.run(command, check=True, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rates[label] = rate(folder / "runs" / run, batch)
        print(f"{label:16} {rates[label]:8.1f} images/s", flush=True)
    return rates


def main() -> None:
    """Run both and print the ratio."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--width", type=int, default=64)
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--steps", type=int, default=12)
    options = arguments.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        images = tiny.write_images(folder / "images.npz", train=options.batch * 2, size=32)
        tree = tiny.tree(
            folder,
            run={"threads": 1},
            data={"root": str(images)},
            views={"size": 32, "blur": 0.0},
            method={"encoder": encoder_of(options.width)},
            plan={"batch_size": options.batch, "epochs": 1, "steps_per_epoch": options.steps, "log_every": 1},
        )
        tree["plan"]["checkpoint_every"] = 100000
        path = folder / "run.yaml"
        path.write_text(plain_yaml.write(tree))
        rates = trained(folder, path, options.batch)
    ratio = rates["two Ray workers"] / rates["one process"]
    print(f"ratio: {ratio:.2f}x (target >= 1.7x; ResNet-18 width {options.width}, global batch {options.batch}, 32 px)")
    print(f"two independent processes: {ceiling(options.width, options.batch, 15.0):.2f}x")


if __name__ == "__main__":
    main()
