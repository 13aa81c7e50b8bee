"""Images per second and core from a folder of JPEG files, from packs, from a pack in a node's cache, and from noise.

    python -m tests.benchmarks.input [--images 160] [--rounds 3]

As ``benchmarks.packing``, whose files it takes (500 x 375, quality 90, in the page cache), but through ``Batches``, in
the order of a training, one thread, batches of 32: what a step waits for, without the views. All sets take turns in one
run; a rate is the median over the rounds. ``copy`` is the first opening of the cached pack, which copies and checks it.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sslmed_dist.data import DATASETS, Batches, Dataset
from tests.benchmarks.packing import SIDE, folder_and_packs


def seconds(data: Dataset, epoch: int) -> float:
    """Time to read the batches of one epoch."""
    batches = Batches(data, global_batch=32, seed=0)
    started = time.perf_counter()
    for _ in batches.epoch(epoch):
        pass
    return time.perf_counter() - started


def main() -> None:
    """Print the rates and their ratios to the folder's."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, default=160)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        size, sets = folder_and_packs(folder, options.images, "JPEG folder")
        begun = time.perf_counter()
        cached = DATASETS["packed"](root=f"file://{folder / 'jpeg'}", workers=0, cache=str(folder / "cache"))
        copied = time.perf_counter() - begun
        sets["packed jpeg, cached"] = cached
        sets["synthetic"] = DATASETS["synthetic"](images=options.images, size=SIDE, classes=2)
        times: dict[str, list[float]] = {label: [] for label in sets}
        for epoch in range(options.rounds):
            for label, data in sets.items():
                times[label].append(seconds(data, epoch))
        stored = (folder / "jpeg" / "shard-00000.bin").stat().st_size
    count = options.images // 32 * 32
    rates = {label: count / statistics.median(values) for label, values in times.items()}
    print(f"{options.images} images of {size:,} bytes, packed as JPEG {stored // options.images:,}")
    for label, rate in rates.items():
        print(f"{label:20} {rate:9.0f} images/s {rate / rates['JPEG folder']:7.2f}x the folder")
    print(f"copy {copied:.2f} s for {stored / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
