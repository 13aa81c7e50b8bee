"""20 epochs of a diagnosis's head, kept features against features computed anew (``-m tests.benchmarks.diagnosis``).

Generated exams in the MRNet layout, SKID v3 at 1/16 of its width on slices of 128 pixels, a ConvLSTM head. Prints the
seconds of both, first epochs and all, and their ratio; the two heads must agree to 1e-3.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import config
from sslmed_dist.training import job
from tests import knees


def settings(folder: Path, cache: str, epochs: int) -> config.Config:
    """A run of ``epochs`` with or without kept features."""
    tree = knees.tree(
        folder,
        run={"name": f"{cache}-{epochs}"},
        data={"clip": 8},
        views={"size": 128},
        method={
            "encoder": {"name": "skid", "width": 1 / 16},
            "head": {"name": "convlstm", "hidden": 32},
            "cache": cache,
        },
        plan={"epochs": epochs, "batch_size": 2, "copies": 2, "log_every": 100},
    )
    return config.from_tree(tree, "benchmark")


def timed(folder: Path, cache: str, epochs: int) -> tuple[float, dict[str, Tensor]]:
    """Seconds of a whole training, and the head's tensors."""
    started = time.perf_counter()
    method = job.train(settings(folder, cache, epochs)).method
    seconds = time.perf_counter() - started
    return seconds, {name: value for name, value in method.state_dict().items() if name.startswith("head.")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--exams", type=int, default=16)
    chosen: Any = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        knees.write_exams(folder / "knees", train=chosen.exams, valid=2, slices=(8, 12), planes=("sagittal",))
        kept, kept_head = timed(folder, "float16", chosen.epochs)
        fresh, fresh_head = timed(folder, "off", chosen.epochs)
    gaps = torch.stack([(kept_head[name] - fresh_head[name]).norm() for name in kept_head])
    sizes = torch.stack([fresh_head[name].norm() for name in kept_head])
    gap = float(gaps.norm() / sizes.norm())
    print(f"{chosen.epochs} epochs of {chosen.exams} exams: kept {kept:.1f} s, computed anew {fresh:.1f} s")
    print(f"ratio {fresh / kept:.1f}; the heads differ by {gap:.1e}")


if __name__ == "__main__":
    main()
