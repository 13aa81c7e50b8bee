"""From a configuration to a trained method: what every driver does, wherever it runs."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import checkpoint, distributed, engine, optim, randomness, registry
from sslmed_dist.config import Config, fingerprint, merge, replace, to_tree
from sslmed_dist.data import DATASETS, SUBSETS
from sslmed_dist.data.batches import Batches
from sslmed_dist.data.dataset import Dataset, Subset
from sslmed_dist.downstream import EVALUATORS
from sslmed_dist.drivers.allocation import keep_freed_memory
from sslmed_dist.drivers.progress import Progress
from sslmed_dist.drivers.stopping import Stop
from sslmed_dist.methods import METHODS
from sslmed_dist.models.normalization import synchronise
from sslmed_dist.run_folder import RunFolder
from sslmed_dist.views import VIEWS


def choose_device(settings: Config) -> torch.device:
    """``run.device``; ``auto`` is the GPU that torch sees, else the CPU. ``ValueError`` for a GPU that is not there."""
    asked = settings.run.device
    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device: cuda asked for, but torch sees no CUDA device; allowed here: cpu, auto")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def load_data(settings: Config, split: str, overrides: Mapping[str, Any] | None = None) -> Dataset:
    """One split of the configured dataset; ``overrides`` are laid over the data leaf; ``data.subset`` cuts train."""
    leaf = merge(settings.data, overrides or {})
    subset = leaf.pop("subset", None)
    registry.check(DATASETS, leaf, "data", ("split",), also=("subset",))
    dataset: Dataset = registry.build(DATASETS, leaf, "data", split=split)
    if subset is not None and split == "train":
        given = {"labels": dataset.labels, "groups": dataset.groups, "ids": dataset.ids}
        names = [record["file"] for record in dataset.records if "file" in record]
        seed = randomness.key(settings.run.seed, "subset")
        chosen = registry.build(SUBSETS, subset, "data.subset", **given, names=names, seed=seed)
        return Subset(dataset, chosen)
    return dataset


def resolve(settings: Config, dataset: Dataset) -> Config:
    """Fill in what the data decides: channels, classes and task where the method asks for them, and the constants of
    normalisation, and of episodes the pixels' size, so that they are written down. ``ValueError`` where the
    configuration says otherwise."""
    trees: dict[str, Any] = {"method": {}}
    facts = {"channels": dataset.channels, "classes": len(dataset.classes), "task": dataset.task}
    asked = inspect.signature(registry.split(METHODS, settings.method, "method")[0]).parameters
    for key in ("channels", *(key for key in ("classes", "task") if key in asked)):
        if settings.method.get(key) is None:
            trees["method"][key] = facts[key]
        elif settings.method[key] != facts[key]:
            raise ValueError(f"method.{key}: {settings.method[key]}, but {dataset.name} has {facts[key]}")
    if "classes" in asked and (not dataset.classes or bool((dataset.labels < 0).any())):
        raise ValueError(f"{dataset.name}: holds unlabelled samples; the method {settings.method['name']} needs labels")
    missing = [key for key in ("mean", "std") if settings.views.get(key) is None]
    if missing:
        found = dict(zip(("mean", "std"), moments(dataset, settings.run.seed), strict=True))
        trees["views"] = {key: found[key] for key in missing}
    shown = inspect.signature(registry.split(VIEWS, settings.views, "views")[0]).parameters
    if "pixel_mm" in shown and settings.views.get("pixel_mm") is None:
        trees.setdefault("views", {})["pixel_mm"] = pixel_size(dataset)
    return replace(settings, **trees)


def pixel_size(dataset: Dataset) -> float | None:
    """Side in mm of the pixels of all slices, rounded to a thousandth; None where they are not square, or not of one
    size to 1 %, or the data does not say."""
    sides = {float(side) for record in dataset.records for side in record.get("spacing_mm", ())[:2]}
    if not sides or max(sides) > 1.01 * min(sides):
        return None
    return round(sum(sides) / len(sides), 3)


def moments(dataset: Dataset, seed: int, samples: int = 1000) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel on the scale [0, 1], from up to ``samples`` keyed samples, rounded to
    four digits so that another machine's last bit does not make another run of it."""
    chosen = randomness.order(dataset.ids, seed, "moments")[:samples]
    low, high = dataset.value_range()
    sums, count = torch.zeros(2, dataset.channels, dtype=torch.float64), 0
    for part in torch.split(chosen, 64):  # a thousand large images in float64 would be gigabytes
        images = dataset.fetch(part, seed=seed, epoch=0, draw=torch.zeros_like(part))["images"].to(torch.float64)
        images = (images - low) / (high - low)
        sums += torch.stack([images.sum((0, 2, 3)), images.square().sum((0, 2, 3))]).cpu()
        count += images.numel() // images.shape[1]
    mean = sums[0] / count
    std = ((sums[1] / count - mean.square()).clamp_min(0.0) * (count / max(count - 1, 1))).sqrt()
    return [round(v, 4) for v in mean.tolist()], [max(round(v, 4), 1e-4) for v in std.tolist()]


def build_method(settings: Config) -> nn.Module:
    """The method on the CPU, its weights drawn from the substream ``init`` of the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.key(settings.run.seed, "init") & ((1 << 63) - 1))
        method: nn.Module = registry.build(METHODS, settings.method, "method")
    return method.double() if settings.plan.precision == "float64" else method


def first_method(settings: Config) -> nn.Module:
    """``build_method``, its encoder replaced by that of ``run.start_from`` where one is named. ``ValueError`` names
    a checkpoint whose architecture is another."""
    method = build_method(settings)
    if settings.run.start_from is not None:
        from sslmed_dist.drivers import encoder  # it builds its methods here

        start = encoder.load(Path(settings.run.start_from))
        checkpoint.load_method(method.encoder, start.encoder.state_dict(), start.file)  # type: ignore[arg-type]
    return method


def build_views(settings: Config, dataset: Dataset) -> nn.Module:
    """The training views for ``dataset``."""
    given = {"channels": dataset.channels, "value_range": dataset.value_range()}
    views: nn.Module = registry.build(VIEWS, settings.views, "views", **given)
    return views


def standard_views(settings: Config, dataset: Dataset) -> nn.Module:
    """The deterministic evaluation view, with the size and the normalisation of the training views."""
    leaf = {"name": "standard", **{key: settings.views[key] for key in ("size", "mean", "std")}}
    given = {"channels": dataset.channels, "value_range": dataset.value_range()}
    views: nn.Module = registry.build(VIEWS, leaf, "views", **given)
    return views


def compile_encoder(encoder: nn.Module) -> None:
    """Compile the encoder's forward pass and, where it has them, its feature maps, which some methods call alone."""
    encoder.compile()
    if hasattr(encoder, "maps"):
        encoder.maps = torch.compile(encoder.maps)  # type: ignore[assignment, arg-type]


@dataclass
class Job:
    """One run, assembled: everything ``fit`` needs. ``settings`` is resolved."""

    settings: Config
    dataset: Dataset
    method: nn.Module
    views: nn.Module
    batches: Batches
    state: engine.TrainState

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds beside the step."""
        return {
            "config": to_tree(self.settings),
            "fingerprint": fingerprint(self.settings),
            "method": self.method.state_dict(),
            "state": self.state.state_dict(),
        }

    def restore(self, path: Path) -> None:
        """Take over a checkpoint of the same run. ``ValueError`` names a file of another run."""
        saved = checkpoint.load(path)
        if saved["kind"] != "training" or saved["fingerprint"] != fingerprint(self.settings):
            raise ValueError(f"{path}: checkpoint of another run (configuration fingerprint differs)")
        checkpoint.load_method(self.method, saved["method"], path)
        self.state.load_state_dict(saved["state"])


def assemble(settings: Config, dataset: Dataset | None = None) -> Job:
    """Build data, views, method, batches and optimiser on this process's device and rank."""
    if settings.run.threads is not None:
        torch.set_num_threads(settings.run.threads)
    for leaf in settings.evaluate.protocols:  # written into every checkpoint, so a mistake has to end the run here
        registry.check(EVALUATORS, leaf, "evaluate.protocols")
    plan, device = settings.plan, choose_device(settings)
    if device.type == "cpu":
        keep_freed_memory()
    dataset = load_data(settings, "train") if dataset is None else dataset
    settings = resolve(settings, dataset)
    method = first_method(settings).to(device)
    if distributed.active():
        method = synchronise(method, device)
        distributed.broadcast_module(method)
    if plan.channels_last:
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if plan.compile:
        compile_encoder(method.encoder)  # type: ignore[arg-type]
    batches = Batches(
        dataset.to(device) if plan.resident else dataset,
        global_batch=plan.batch_size,
        seed=settings.run.seed,
        rank=distributed.rank(),
        world=distributed.world_size(),
        steps_per_epoch=plan.steps_per_epoch,
        draws=plan.draws,
        workers=plan.loader_threads,
        device=device,
    )
    views = build_views(settings, dataset).to(device)
    sizes = {"batch_size": plan.batch_size, "epochs": plan.epochs, "per_epoch": batches.steps}
    optimisation = optim.build(settings.optim, method, **sizes)
    state = engine.begin(method, optimisation, plan, batches.steps)
    return Job(settings, dataset, method, views, batches, state)


def train(
    settings: Config,
    *,
    resume: str = "auto",
    dataset: Dataset | None = None,
    folder: Path | None = None,
    title: str | None = None,
) -> Job:
    """Train to the end, or to where a stop was asked for, in this process or as one rank of a group.

    The run folder (default ``settings.folder``) is written by rank 0 alone; every rank reads the checkpoint it resumes
    from. Returns the job; ``job.state.stopped`` says whether it was stopped.
    """
    job = assemble(settings, dataset)
    run = RunFolder(folder or settings.folder, job.settings)
    try:
        take_over(job, run, resume)
        bar = Progress(title or run.path.name, total(job), job.batches.global_batch, job.state.step)
        with Stop(run.path) as stop, bar:
            run_fit(job, run, stop, bar)
    finally:
        run.close()
    return job


def take_over(job: Job, run: RunFolder, resume: str) -> None:
    """Open the run folder (rank 0) and bring ``job`` to where the folder's newest checkpoint stands (all ranks)."""
    if distributed.rank() == 0:
        run.open(resume)
    distributed.barrier()
    latest = run.checkpoints.latest()
    if latest is not None:
        job.restore(latest)
    if distributed.rank() == 0:
        run.metrics.cut(job.state.step)
        (run.path / "stop").unlink(missing_ok=True)
    distributed.barrier()


def total(job: Job) -> int:
    """Optimiser steps of the whole run."""
    return job.settings.plan.epochs * job.batches.steps


def run_fit(job: Job, run: RunFolder, stop: Stop, bar: Progress) -> None:
    """``fit`` with the callbacks of a run folder; only rank 0 writes."""
    first = distributed.rank() == 0

    def on_step(state: engine.TrainState, values: dict[str, float]) -> None:
        if first:
            epoch = (state.step - 1) // state.steps_per_epoch
            run.metrics.write(values, step=state.step, epoch=epoch, split="train")
            bar.update(state.step, values)

    def on_checkpoint(state: engine.TrainState) -> None:
        if first:
            run.checkpoints.save(state.step, **job.content())

    average = distributed.average_gradients if distributed.active() else distributed.leave_gradients
    callbacks: dict[str, Any] = {"on_step": on_step, "on_checkpoint": on_checkpoint, "stop": stop}
    engine.fit(
        job.method, job.batches, job.settings.plan, views=job.views, state=job.state, average=average, **callbacks
    )
    if first and run.checkpoints.latest() != run.checkpoints.path(job.state.step):
        run.checkpoints.save(job.state.step, **job.content())
    distributed.barrier()


def shared_keys(method: nn.Module, share: str) -> list[str]:
    """Names of the tensors a federation averages: floating-point parameters and norm statistics of the encoder, or of
    the whole method but what it calls ``site_only``. Integer counters (``num_batches_tracked``) stay where they are."""
    state: Mapping[str, Tensor] = method.state_dict()
    kept: tuple[str, ...] = method.site_only  # type: ignore[assignment]
    shared = [key for key in state if share == "all" or key.startswith("encoder.")]
    return [key for key in shared if state[key].is_floating_point() and not key.startswith(kept)]
