"""Images per second of two Ray workers against one single-thread process, on the same two cores.

    python -m tests.benchmarks.workers [--depth 18] [--width 64] [--batch 128] [--steps 12] [--channels-last]

All runs log every step; the rate is taken between their third and last step, so starting Ray and importing torch do
not count. Beside the ratio stands the machine's ceiling: two such processes with half the batch each that train at the
same time and never speak to each other, against the one with the whole batch. Two processes of torchrun, which say the
same to each other as Ray's workers, tell what is Ray's share. ``--repeat``: the medians of so many rounds, in which the
kinds take turns. Target: >= 1.7x.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from sslmed_dist import plain_yaml
from sslmed_dist.run_folder import Metrics
from tests import tiny

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def rate(folder: Path, batch: int) -> float:
    """Images per second between the third and the last step in ``metrics.jsonl``; the first steps allocate."""
    rows = [row for row in Metrics(folder / "metrics.jsonl").read() if row["name"] == "loss"]
    first, last = rows[2], rows[-1]
    return float((last["step"] - first["step"]) * batch / (last["time"] - first["time"]))


def start(path: Path, run: str, *overrides: str, world: int = 1) -> subprocess.Popen[bytes]:
    """``sslmed train`` of the recipe at ``path`` as the run ``run``, by ``world`` processes of torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    command = [sys.executable, *torchrun, "-m", "sslmed_dist.cli", "train", str(path), f"run.name={run}", *overrides]
    return subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def trained(folder: Path, path: Path, batch: int, turn: int) -> dict[str, float]:
    """Images per second of the kinds of runs; processes that train at the same time are added up."""
    half = ["driver=local", f"plan.batch_size={batch // 2}"]
    kinds = {
        "one process": [(batch, 1, ["driver=local"])],
        "two Ray workers": [(batch, 1, ["driver=ray"])],
        "two of torchrun": [(batch, 2, ["driver=local"])],
        "two independent processes": [(batch // 2, 1, half), (batch // 2, 1, half)],
    }
    rates = {}
    for label, runs in kinds.items():
        names = [f"{label.replace(' ', '-')}-{turn}-{number}" for number in range(len(runs))]
        running = [
            start(path, name, *overrides, world=world) for name, (_, world, overrides) in zip(names, runs, strict=True)
        ]
        if any([process.wait() for process in running]):  # a list: every one is waited for
            raise RuntimeError(f"{label}: training failed")
        rates[label] = sum(rate(folder / "runs" / name, size) for name, (size, *_) in zip(names, runs, strict=True))
        print(f"{label:25} {rates[label]:8.1f} images/s", flush=True)
    return rates


def main() -> None:
    """Run them all and print the ratios."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--depth", type=int, default=18)
    arguments.add_argument("--width", type=int, default=64)
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--steps", type=int, default=12)
    arguments.add_argument("--channels-last", action="store_true")
    arguments.add_argument("--repeat", type=int, default=1)
    options = arguments.parse_args()
    encoder = {"name": "resnet", "depth": options.depth, "stem": "cifar", "width": options.width}
    with TemporaryDirectory() as name:
        folder = Path(name)
        images = tiny.write_images(folder / "images.npz", train=options.batch * 2, size=32)
        tree = tiny.tree(
            folder,
            run={"threads": 1},
            data={"root": str(images)},
            views={"size": 32, "blur": 0.0},
            method={"encoder": encoder},
            plan={"batch_size": options.batch, "epochs": 1, "steps_per_epoch": options.steps, "log_every": 1},
        )
        tree["plan"] |= {"checkpoint_every": 100000, "channels_last": options.channels_last}
        path = folder / "run.yaml"
        path.write_text(plain_yaml.write(tree))
        rounds = [trained(folder, path, options.batch, turn) for turn in range(options.repeat)]
    layout = ", channels last" if options.channels_last else ""
    what = f"ResNet-{options.depth} width {options.width}, global batch {options.batch}, 32 px{layout}"
    shown = []
    for label in list(rounds[0])[1:]:
        ratios = sorted(rates[label] / rates["one process"] for rates in rounds)
        shown.append(f"{label} {statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"{what}, {options.repeat} rounds: {', '.join(shown)}; target for Ray's workers >= 1.7x")


if __name__ == "__main__":
    main()
