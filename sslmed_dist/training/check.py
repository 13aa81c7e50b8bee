"""``--check``: everything is built and two steps are tried; nothing is written."""

import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sslmed_dist import curve_events, distributed
from sslmed_dist.config import Config, fingerprint, replace
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.training import build, job
from sslmed_dist.training.monitor import Monitor
from sslmed_dist.training.precision import deterministic_kernels
from sslmed_dist.training.step import Stepper


@dataclass(frozen=True)
class Summary:
    """What ``--check`` prints: the resolved settings, the training data and what they amount to."""

    settings: Config
    dataset: Dataset
    lines: list[str]


def check_training(settings: Config, dataset: Dataset | None = None) -> Summary:
    """Build everything and take two steps on the real data. ``dataset`` stands in for the configured train split.

    ``ValueError`` for a setting that would make the run fail. The estimate of time holds for this machine.
    """
    workers = max(settings.ray.num_workers, 1) if settings.driver == "ray" else 1
    if settings.plan.batch_size % workers:
        raise ValueError(f"plan.batch_size: {settings.plan.batch_size} is not a multiple of {workers} workers")
    build.build_evaluators(settings)
    if settings.run.tensorboard:
        curve_events.require("run.tensorboard")
    # Compiling and starting threads would take longer than all the rest.
    left_out = {"compile": settings.plan.compile, "loader_threads": settings.plan.loader_threads}
    work = job.assemble(replace(settings, plan={"compile": False, "loader_threads": 0}), dataset)
    if settings.run.continue_from is not None:
        work.inherit(Path(settings.run.continue_from).expanduser())
    if settings.evaluate.every is not None:
        Monitor(work.settings, work.dataset)
    seconds = seconds_per_step(work)
    resolved = replace(work.settings, plan=left_out)
    return Summary(resolved, work.dataset, describe(work, resolved, seconds))


def seconds_per_step(work: job.Job) -> float:
    """Wall time in seconds of the second of two steps: the first one warms up."""
    plan, batches = work.settings.plan, work.batches
    average = distributed.leave_gradients  # one process: there is nothing to average over
    stepper = Stepper(work.method, work.views, plan, batches, work.state, average, None)
    seconds = 0.0
    with deterministic_kernels(plan):
        for _ in range(2):
            started = time.perf_counter()
            stepper.step(next(iter(batches.epoch(0))), 0, False)
            seconds = time.perf_counter() - started
    return seconds


def describe(work: job.Job, settings: Config, seconds: float) -> list[str]:
    """One line each: run, data, method, plan, device, memory, time."""
    data, plan, steps = work.dataset, settings.plan, job.total(work)
    device = build.choose_device(settings)
    weights = sum(p.numel() for p in work.method.parameters() if p.requires_grad)
    return [
        f"run       {settings.folder.name}, seed {settings.run.seed}, fingerprint {fingerprint(settings)[:12]}",
        f"data      {data.name}: {len(data)} samples, {data.channels} channel(s), {len(data.classes)} classes",
        f"method    {settings.method['name']}: {weights:,} parameters, {size(work.method) / 2**20:.1f} MiB",
        f"plan      {plan.epochs} epochs x {work.batches.steps} steps = {steps} steps of {plan.batch_size}",
        f"device    {device}, {torch.get_num_threads()} thread(s), {plan.precision}",
        f"memory    {peak_memory(device) / 2**20:.0f} MiB at the peak of one step, data included",
        f"time      {seconds:.2f} s a step here: about {steps * seconds / 60:.0f} min in one process",
    ]


def size(method: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in method.state_dict().values())


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak, or this process's peak resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
