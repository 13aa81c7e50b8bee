"""Peak memory of the workers of a group, and the largest batch that a budget allows."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from sslmed_dist import distributed

MIB = 2**20
WORLDS = (1, 2, 4)
JOIN = "from sslmed_dist import distributed; distributed.join_from_environment(); {}; distributed.leave()"


def status(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_during(work: Callable[[], object]) -> int:
    """The largest resident set of this process while ``work`` runs, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    work()
    return status("VmHWM")


def climb(sizes: Iterable[int], budget: int, prepare: Callable[[int], Callable[[], object]]) -> None:
    """In a worker: by how many bytes the work of each size, the smallest first, raises its resident set above what it
    holds before the first. Rank 0 prints a line a size, its largest worker; none follows one above ``budget``."""
    before = status("VmRSS")
    for size in sizes:
        own = torch.tensor([peak_during(prepare(size)) - before])
        taken = int(distributed.gather(own).max())
        if distributed.rank() == 0:
            print(size, taken, flush=True)
        if taken > budget:
            return


def in_ranks(call: str, world: int = 1) -> list[list[int]]:
    """The numbers, line by line, that the Python line ``call`` prints in a group of ``world`` new processes of one
    thread each."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command = [*torchrun, "--no-python", sys.executable, "-c", JOIN.format(call)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


def line_of(title: str, told: list[list[int]], budget: int) -> str:
    """What ``climb`` has told, in MiB, and the largest size that is within the budget."""
    shown = ", ".join(f"{size}: {taken / MIB:.0f}" for size, taken in told)
    fits = max((size for size, taken in told if taken <= budget), default=0)
    more = " or more" if told[-1][1] <= budget else ""
    return f"{title}: MiB of a worker by global batch {shown}; in {budget / MIB:.0f} MiB {fits}{more}"
