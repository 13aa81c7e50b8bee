"""``--check``: everything is built and two steps are tried; nothing is written."""

import functools
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    parts = seconds_per_step(work)
    resolved = replace(work.settings, plan=left_out)
    return Summary(resolved, work.dataset, describe(work, resolved, parts))


class Parts:
    """Wall time in seconds that the forward passes of some modules take, by name."""

    def __init__(self, device: torch.device, modules: Mapping[str, nn.Module]) -> None:
        self.device, self.seconds, self.started = device, dict.fromkeys(modules, 0.0), dict.fromkeys(modules, 0.0)
        self.hooks = []
        for name, module in modules.items():
            self.hooks.append(module.register_forward_pre_hook(functools.partial(self.begin, name)))
            self.hooks.append(module.register_forward_hook(functools.partial(self.end, name)))

    def now(self) -> float:
        """The time, when all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def begin(self, name: str, *_: Any) -> None:
        """A forward pass of a module begins."""
        self.started[name] = self.now()

    def end(self, name: str, *_: Any) -> None:
        """It ends."""
        self.seconds[name] += self.now() - self.started[name]

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self.hooks:
            hook.remove()


def seconds_per_step(work: job.Job) -> dict[str, float]:
    """Wall time in seconds of the parts of the second of two steps (the first one warms up): reading the data, the
    views, the encoder's forward pass, and the rest: heads, loss, backward pass and optimiser."""
    plan, batches = work.settings.plan, work.batches
    average = distributed.leave_gradients  # one process: there is nothing to average over
    stepper = Stepper(work.method, work.views, plan, batches, work.state, average, None)
    device = build.choose_device(work.settings)
    seconds: dict[str, float] = {}
    with deterministic_kernels(plan):
        for _ in range(2):
            parts = Parts(device, {"views": work.views, "encoder": work.method.encoder})
            started = parts.now()
            batch = next(iter(batches.epoch(0)))
            read = parts.now()
            stepper.step(batch, 0, False)
            ended = parts.now()
            parts.remove()
            rest = ended - read - sum(parts.seconds.values())
            seconds = {"data": read - started, **parts.seconds, "loss, backward and optimiser": rest}
    return seconds


def shares(seconds: Mapping[str, float]) -> str:
    """Each part's share of a step in percent, the slowest first."""
    whole = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * value / whole:.0f} %" for name, value in ordered)


def duration(seconds: float) -> str:
    """A span in the unit that a person would use: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 120 * 60 else f"{seconds / 3600:.1f} h"


def describe(work: job.Job, settings: Config, parts: Mapping[str, float]) -> list[str]:
    """One line each: run, data, method, plan, device, memory, time, slowest. ``parts`` are ``seconds_per_step``."""
    data, plan, steps = work.dataset, settings.plan, job.total(work)
    device = build.choose_device(settings)
    seconds = sum(parts.values())
    weights = sum(p.numel() for p in work.method.parameters() if p.requires_grad)
    return [
        f"run       {settings.folder.name}, seed {settings.run.seed}, fingerprint {fingerprint(settings)[:12]}",
        f"data      {data.name}: {len(data)} samples, {data.channels} channel(s), {len(data.classes)} classes",
        f"method    {settings.method['name']}: {weights:,} parameters, {size(work.method) / 2**20:.1f} MiB",
        f"plan      {plan.epochs} epochs x {work.batches.steps} steps = {steps} steps of {plan.batch_size}",
        f"device    {device}, {torch.get_num_threads()} thread(s), {plan.precision}",
        f"memory    {peak_memory(device) / 2**20:.0f} MiB at the peak of one step, data included",
        f"time      {seconds:.2f} s a step here: about {duration(steps * seconds)} in one process",
        f"slowest   {shares(parts)}",
    ]


def size(method: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in method.state_dict().values())


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak, or this process's peak resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
