"""``--check``: everything is built, some steps are tried, and what the run needs is said. Nothing is written."""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslmed_dist import distributed
from sslmed_dist.config import Config, fingerprint, replace
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.printable import duration, plural
from sslmed_dist.trackers import followers
from sslmed_dist.training import build, job
from sslmed_dist.training.monitor import Monitor
from sslmed_dist.training.precision import deterministic_kernels
from sslmed_dist.training.rehearsal import Need, process_age, rehearse
from sslmed_dist.training.step import Stepper


@dataclass(frozen=True)
class Summary:
    """The resolved settings of a run that was checked, and its training data."""

    settings: Config
    dataset: Dataset


@dataclass(frozen=True)
class Tried:
    """A run that was assembled and took two steps. Seconds: ``start`` until this process's modules were there,
    ``prepare`` to assemble it, ``first`` for the first step, ``parts`` for those of the second one. ``settings`` are
    the resolved ones; the job's own leave out what would take longer to start than all the rest."""

    work: job.Job
    settings: Config
    start: float
    prepare: float
    first: float
    parts: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Wall time that the check itself took."""
        return self.prepare + self.first + sum(self.parts.values())


def require_even(settings: Config) -> None:
    """``ValueError`` where the workers of ``settings.ray``, as few or as many of them as there may be, cannot share the
    global batch, or a micro-batch of it, evenly."""
    options, plan = settings.ray, settings.plan
    why = f" (ray.num_workers: [{options.fewest}, {options.most}])" if options.elastic else ""
    for workers in range(max(options.fewest, 1), max(options.most, 1) + 1):
        for key, size in (("batch_size", plan.batch_size), ("micro_batch", plan.micro_batch)):
            if size is not None and size % workers:
                raise ValueError(f"plan.{key}: {size} is not a multiple of {workers} workers{why}")


def check_training(settings: Config, dataset: Dataset | None = None) -> Summary:
    """Build everything and take two steps on the real data. ``dataset`` stands in for the configured train split.
    ``ValueError`` for a setting that would make the run fail."""
    tried = try_out(settings, dataset)
    return Summary(tried.settings, tried.work.dataset)


def check_lines(settings: Config, dataset: Dataset | None = None) -> list[str]:
    """``check_training``, and lines that say what the run in one process is and needs; see ``describe``."""
    tried = try_out(settings, dataset)
    return describe(tried, *need_lines(tried.settings, expected(tried)))


def try_out(
    settings: Config, dataset: Dataset | None = None, before_steps: Callable[[], object] = lambda: None
) -> Tried:
    """What ``check_training`` does, with what it built and the time that it took. ``before_steps`` is called when all
    is built and no step is taken yet: what it refuses is said sooner, and after the training's own mistakes."""
    start, begun = process_age(), time.perf_counter()
    work = assembled(settings, dataset)
    built = time.perf_counter()
    before_steps()
    waited = time.perf_counter() - built
    begun, built = begun + waited, built + waited
    parts = seconds_per_step(work)
    first = time.perf_counter() - built - sum(parts.values())
    left_out = {"compile": settings.plan.compile, "loader_threads": settings.plan.loader_threads}
    return Tried(work, replace(work.settings, plan=left_out), start, built - begun, first, parts)


def assembled(settings: Config, dataset: Dataset | None = None) -> job.Job:
    """Everything that the run needs before its first step. Nothing is compiled and no thread is started: that would
    take longer than all the rest. ``ValueError`` for a setting that cannot be built."""
    if settings.driver == "ray":
        require_even(settings)
    build.build_evaluators(settings)
    followers(settings, settings.folder)
    work = job.assemble(replace(settings, plan={"compile": False, "loader_threads": 0}), dataset)
    if settings.run.continue_from is not None:
        work.inherit(Path(settings.run.continue_from).expanduser())
    if settings.evaluate.every is not None:
        Monitor(work.settings, work.dataset)
    return work


def expected(tried: Tried) -> Need:
    """What the run needs in one process, from further steps of it with the threads that it reads with."""
    tried.work.batches.workers = tried.settings.plan.loader_threads
    return rehearse(tried.work, start=tried.start, prepare=tried.prepare, first=tried.first)


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


def describe(tried: Tried, memory: str, spent: str) -> list[str]:
    """One line each: run, data, method, plan, device, memory, time, slowest. ``memory`` and ``spent`` say what the run
    needs (``need_lines``)."""
    work, settings = tried.work, tried.settings
    data, plan, steps = work.dataset, settings.plan, job.total(work)
    device = build.choose_device(settings)
    weights = sum(p.numel() for p in work.method.parameters() if p.requires_grad)
    return [
        f"run       {settings.folder.name}, seed {settings.run.seed}, fingerprint {fingerprint(settings)[:12]}",
        f"data      {data.name}: {plural(len(data), 'sample')}, {plural(data.channels, 'channel')}, "
        f"{plural(len(data.classes), 'class', 'classes')}",
        f"method    {settings.method['name']}: {weights:,} parameters, {size(work.method) / 2**20:.1f} MiB",
        *([] if work.features is None else [f"features  {work.features.line()}"]),
        f"plan      {plural(plan.epochs, 'epoch')} x {plural(work.batches.steps, 'step')} = {plural(steps, 'step')} of "
        f"{plan.batch_size}",
        f"device    {device}, {plural(torch.get_num_threads(), 'thread')}, {plan.precision}",
        f"memory    {memory}",
        f"time      {spent}",
        f"slowest   {shares(tried.parts)}",
    ]


def need_lines(settings: Config, need: Need) -> tuple[str, str]:
    """(memory, time) of a run in one process, in words: how much, of what, and what that rests on."""
    memory = f"about {mebibytes(need.memory)} at the peak of this process, libraries, data, training and its end"
    if build.choose_device(settings).type == "cuda":
        gpu = mebibytes(torch.cuda.max_memory_allocated())
        memory = f"{memory}; of the GPU {gpu} in these steps (not compared with a run yet)"
    return memory, time_words(settings, need)


def time_words(settings: Config, need: Need, beside: str = "") -> str:
    """The time of a run in words. ``beside``: what the start holds besides this program's own."""
    checks = f", {need.watches} x nearest neighbours {need.watch:.2f} s" if need.watches else ""
    compiled = "; compilation is not in it" if settings.plan.compile else ""
    return (
        f"about {duration(need.seconds)}: start {need.start + need.prepare:.1f} s{beside}, "
        f"{plural(need.steps, 'step')} of {need.step:.2f} s, "
        f"{plural(need.saves, 'checkpoint')} of {need.save:.2f} s{checks}, "
        f"end {need.end:.1f} s; from {plural(need.tried, 'step')} here, no evaluation{compiled}"
    )


def mebibytes(count: int) -> str:
    """``1,234 MiB``."""
    return f"{count / 2**20:,.0f} MiB"


def size(method: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in method.state_dict().values())
