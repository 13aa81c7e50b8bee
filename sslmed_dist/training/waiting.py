"""What reading the data costs a training: the share of time that steps wait for it, and the threads that read it."""

import time
from collections.abc import Generator, Iterable, Iterator

import torch

from sslmed_dist import distributed
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset, Subset
from sslmed_dist.training.precision import Batch

WAIT_SHARE = "wait_share"  # its name in metrics.jsonl


class Waiting:
    """The time in which nothing was done but to wait for the next batch, and the time in all. Two readings of a clock
    per step; no figure of the training depends on it."""

    def __init__(self) -> None:
        self.waited, self.since = 0.0, time.perf_counter()

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; the time until each of them is there is counted."""
        remaining = iter(batches)
        try:
            while True:
                asked = time.perf_counter()
                batch = next(remaining, None)
                self.waited += time.perf_counter() - asked
                if batch is None:
                    return
                yield batch
        finally:  # where a training ends within an epoch, the threads that read ahead end with it
            if isinstance(remaining, Generator):
                remaining.close()

    def share(self, device: torch.device) -> float:
        """The part of the time since the last call (from 0 to 1) that was spent waiting: of the rank that waited most,
        for all others wait for it. All ranks call this together. ``device``: where their messages have to be."""
        now = time.perf_counter()
        own = self.waited / max(now - self.since, 1e-9)
        self.waited, self.since = 0.0, now
        with torch.no_grad():
            return float(distributed.gather(torch.tensor([own], dtype=torch.float32, device=device)).max())


def crowded(settings: Config, dataset: Dataset) -> str | None:
    """A line where a worker of Ray reads with more threads than it has asked CPUs for: Ray may put as many workers on a
    node as it has CPUs, and does not see the threads. None where they fit."""
    if settings.driver != "ray" or settings.ray.num_workers == 0 or dataset.in_memory:
        return None
    source = dataset.dataset if isinstance(dataset, Subset) else dataset
    decoding, reading = max(int(getattr(source, "workers", 1)), 1), settings.plan.loader_threads
    threads = 1 + reading * decoding if reading else decoding
    cpus = settings.ray.cpus_per_worker
    if threads <= cpus:
        return None
    parts = f"1 + plan.loader_threads {reading} x data.workers {decoding}" if reading else f"data.workers {decoding}"
    return (
        f"a worker has {threads} threads for its data ({parts}) and asks for {cpus} CPUs; "
        f"ray.cpus_per_worker={threads} keeps them from taking turns"
    )
