"""Peak memory of the workers of a group, and the largest batch that a budget allows."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

MIB = 2**20
JOIN = "from sslmed_dist import distributed; distributed.join_from_environment(); {}; distributed.leave()"


def status(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def grown(work: Callable[[], object]) -> int:
    """By how many bytes ``work`` raises the peak resident set of this process above what it holds before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def in_ranks(call: str, world: int = 1) -> int:
    """The Python line ``call``, which prints a number of bytes, in a group of ``world`` new processes of one thread
    each: the largest number."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command = [*torchrun, "--no-python", sys.executable, "-c", JOIN.format(call)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    told = [int(line) for line in done.stdout.split()]
    assert len(told) == world, told
    return max(told)


def table(title: str, sizes: Iterable[int], measure: Callable[[int], int], budget: int) -> str:
    """A line: the MiB of each size, the smallest first and none after the first that is above ``budget``, and the
    largest size that is within it."""
    shown, fits, last = [], 0, 0
    for size in sizes:
        taken, last = measure(size), size
        shown.append(f"{size}: {taken / MIB:.0f}")
        if taken > budget:
            break
        fits = size
    more = "" if fits < last else " or more"
    return f"{title}: MiB of a worker by global batch: {', '.join(shown)}; in {budget / MIB:.0f} MiB: {fits}{more}"
