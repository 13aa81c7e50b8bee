"""Images per second of two Ray workers against one single-thread process, on the same two cores.

    python -m tests.benchmarks.workers [--width 32] [--epochs 3]

Both runs log every step; the rate is taken between their first and last logged step, so starting Ray and importing
torch do not count. Target: >= 1.7x.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from sslmed_dist.run_folder import Metrics
from tests import tiny

BATCH = 64


def rate(folder: Path) -> float:
    """Images per second between the first and the last step in ``metrics.jsonl``."""
    rows = [row for row in Metrics(folder / "metrics.jsonl").read() if row["name"] == "loss"]
    first, last = rows[2], rows[-1]  # the first steps allocate
    return float((last["step"] - first["step"]) * BATCH / (last["time"] - first["time"]))


def main() -> None:
    """Run both and print the ratio."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--width", type=int, default=32)
    arguments.add_argument("--epochs", type=int, default=3)
    options = arguments.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        images = tiny.write_images(folder / "images.npz", train=BATCH * 12, size=32)
        encoder = {"name": "resnet", "depth": 18, "stem": "cifar", "width": options.width}
        tree = tiny.tree(
            folder,
            run={"threads": 1},
            data={"root": str(images)},
            views={"size": 32, "blur": 0.0},
            method={"encoder": encoder},
            plan={"batch_size": BATCH, "epochs": options.epochs, "log_every": 1, "checkpoint_every": 100000},
        )
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(tree))
        rates = {}
        for label, overrides in (
            ("one process", ["driver=local"]),
            ("two Ray workers", ["driver=ray", "ray.num_workers=2"]),
        ):
            run = label.replace(" ", "-")
            command = [sys.executable, "-m", "sslmed_dist.cli", "train", str(path), f"run.name={run}", *overrides]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
            rates[label] = rate(folder / "runs" / run)
            print(f"{label:16} {rates[label]:8.1f} images/s")
    ratio = rates["two Ray workers"] / rates["one process"]
    print(f"ratio: {ratio:.2f}x (target >= 1.7x; ResNet-18 width {options.width}, global batch {BATCH}, 32 px)")


if __name__ == "__main__":
    main()
