"""What a run will need in memory and time, from some real steps of it. Nothing is written.

The steps are those of the run itself: its data, views, loss, gradients and optimiser, whose own tensors (momenta, say)
appear at the first step. A checkpoint is made and thrown away. What no step shows is measured apart: an interpreter
that has imported torch needs more memory while it ends than before.
"""

import functools
import itertools
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sslmed_dist import distributed
from sslmed_dist.data.dataset import Item
from sslmed_dist.data.samples import describe
from sslmed_dist.training import build, job
from sslmed_dist.training.monitor import Monitor
from sslmed_dist.training.precision import deterministic_kernels
from sslmed_dist.training.step import Stepper
from sslmed_dist.training.stopping import started_at

LEAST, MOST, SECONDS = 4, 60, 6.0  # steps that are tried: so many, then on until so many or so long
WATCHED = 256  # images on which the nearest neighbours of ``evaluate.every`` are timed
# What a process prints when it begins to end (its peak so far, the time), and a small one that starts it, waits for its
# end and prints its peak. The small one, because the system counts to a new process what the one before it had in use.
ENDING = """import atexit, time, torch
def say():
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(peak, time.monotonic(), flush=True)
atexit.register(say)"""
STARTER = """import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
_, status, used = os.wait4(child.pid, 0)
print(used.ru_maxrss, time.monotonic())
sys.exit(status != 0)"""


@dataclass(frozen=True)
class Need:
    """What one process of a run is expected to need. Seconds: ``start`` until the program's modules are there,
    ``prepare`` for data, method and the hash of the samples, ``first`` for the first step, ``step`` for each other one
    (the median of those tried), ``save`` for a checkpoint, ``watch`` for the nearest neighbours of ``evaluate.every``,
    ``end`` for the end of the process. ``memory``: bytes of resident memory at the peak. ``tried``: steps it rests on.
    """

    start: float
    prepare: float
    first: float
    step: float
    save: float
    watch: float
    end: float
    steps: int
    saves: int
    watches: int
    memory: int
    tried: int

    @property
    def seconds(self) -> float:
        """Wall time of the whole run."""
        steps = (self.first if self.steps else 0.0) + max(self.steps - 1, 0) * self.step
        return self.start + self.prepare + steps + self.saves * self.save + self.watches * self.watch + self.end


def rehearse(work: job.Job, *, start: float, prepare: float, first: float | None = None) -> Need:
    """Take some steps of ``work``, whose training state goes on with them, and one checkpoint. ``first``: seconds of
    its first step where that was taken already. All ranks of a group have to call it."""
    clock = Clock(build.choose_device(work.settings))
    if distributed.rank() == 0:
        work.samples = describe(work.dataset)
        prepare += clock.lap()
    distributed.barrier()
    times = step_times(work, clock)
    settings, steps = work.settings, job.total(work)
    clock.lap()
    with Path(os.devnull).open("wb") as nowhere:
        torch.save(work.content(), nowhere)
    save, watches = clock.lap(), settings.plan.epochs // settings.evaluate.every if settings.evaluate.every else 0
    # Ray ends its workers at once.
    memory, ending = peak_resident(), (0, 0.0) if distributed.active() else end_of_process()
    return Need(
        start=start,
        prepare=prepare,
        first=times[0] if first is None else first,
        step=statistics.median(times[1 if first is None else 0 :] or times),
        save=save,
        watch=watch_seconds(work) if watches and distributed.rank() == 0 else 0.0,
        end=ending[1],
        steps=steps,
        saves=math.ceil(steps / (settings.plan.checkpoint_every or work.batches.steps)),
        watches=watches,
        memory=memory + ending[0],
        tried=len(times),
    )


def step_times(work: job.Job, clock: "Clock") -> list[float]:
    """Seconds of each step that is tried, its batch included. All ranks take as many, and no more than the run has."""
    average, plan = distributed.average_gradients, work.settings.plan
    stepper = Stepper(work.method, work.views, plan, work.batches, work.state, average, None)
    left = max(job.total(work) - work.state.step, 1)
    times: list[float] = []
    clock.lap()
    with deterministic_kernels(plan):
        for epoch, batch in endless(work):
            # The wish to stop travels with the gradients, so all ranks agree on it.
            last = len(times) + 1 >= min(MOST, left) or (len(times) + 1 >= LEAST and sum(times) > SECONDS)
            stepper.step(batch, epoch, last)
            times.append(clock.lap())
            if work.state.stopped:
                break
    return times


def endless(work: job.Job) -> Iterator[tuple[int, Item]]:
    """(epoch, batch) from the first epoch on, without an end."""
    for epoch in itertools.count():
        for batch in work.batches.epoch(epoch):
            yield epoch, batch


def watch_seconds(work: job.Job) -> float:
    """Seconds that the nearest neighbours of ``evaluate.every`` take once, scaled up from a part of their images."""
    monitor = Monitor(work.settings, work.dataset)
    whole = sum(len(part) for part in monitor.parts.values())
    share = min(WATCHED / whole, 1.0)
    monitor.parts = {name: part[: math.ceil(share * len(part))] for name, part in monitor.parts.items()}
    begun = time.perf_counter()
    monitor.measure(work.method)
    return (time.perf_counter() - begun) / share


class Clock:
    """Wall time between one call of ``lap`` and the next, in seconds, all that was asked of the device done."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.last = device, time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, or since the clock was made."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        before, self.last = self.last, time.perf_counter()
        return self.last - before


def peak_resident() -> int:
    """Bytes: this process's peak resident set so far. Not that of ``getrusage``, which begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def process_age() -> float:
    """Seconds since this process began."""
    up = float(Path("/proc/uptime").read_text().split()[0])
    began = started_at(os.getpid())
    assert began is not None  # this process is there
    return up - began / os.sysconf("SC_CLK_TCK")


@functools.cache  # the same for every run that one process checks
def end_of_process() -> tuple[int, float]:
    """(bytes of peak resident memory that the end of a process adds, seconds that it takes), of another process that
    imports torch and nothing else. ``RuntimeError`` where that fails."""
    command = [sys.executable, "-c", STARTER, ENDING]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    words = done.stdout.split()
    if done.returncode or len(words) != 4:
        raise RuntimeError(f"--check: the end of a process could not be measured: {done.stderr.strip()[-200:]}")
    return max(int(words[2]) - int(words[0]), 0) * 1024, float(words[3]) - float(words[1])
