"""From a configuration to a trained method: what every driver does, wherever it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import checkpoint, distributed, registry
from sslmed_dist.config import Config, fingerprint, from_tree, to_tree
from sslmed_dist.data.batches import Batches
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.samples import Samples, describe
from sslmed_dist.downstream import EVALUATORS
from sslmed_dist.methods import Method
from sslmed_dist.models.normalization import synchronise
from sslmed_dist.printable import note
from sslmed_dist.run_folder import RunFolder, differences
from sslmed_dist.training import engine, optim
from sslmed_dist.training.allocation import keep_freed_memory
from sslmed_dist.training.build import build_views, choose_device, compile_encoder, load_data, resolve, resolve_auto
from sslmed_dist.training.feature_cache import FOLDER, FeatureSet, Given, feature_set
from sslmed_dist.training.monitor import Monitor
from sslmed_dist.training.phases import ENDING, MEASURING, SAVING
from sslmed_dist.training.pretrained import find, first_method
from sslmed_dist.training.progress import Progress
from sslmed_dist.training.pulse import Pulse
from sslmed_dist.training.same_data import open_folder, recognise, write_down
from sslmed_dist.training.state import TrainState, begin, require_momenta
from sslmed_dist.training.stem_cache import StemSet
from sslmed_dist.training.stopping import Stop
from sslmed_dist.training.validation import Validation
from sslmed_dist.training.waiting import WAIT_SHARE, crowded


@dataclass
class Job:
    """One run, assembled: everything ``fit`` needs. ``settings`` is resolved."""

    settings: Config
    dataset: Dataset
    method: Method
    views: nn.Module
    batches: Batches
    state: TrainState
    samples: Samples | None = None  # of the dataset; in a run folder only, and on rank 0
    validation: Validation | None = None
    best: dict[str, Tensor] | None = None  # the method's state at the lowest validation loss, on the CPU
    features: FeatureSet | StemSet | None = None  # of what is frozen; then batches are of these, views see nothing

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds beside the step."""
        best = {} if self.best is None else {"best": self.best}
        return best | {
            "config": to_tree(self.settings),
            "fingerprint": fingerprint(self.settings),
            "method": self.method.state_dict(),
            "state": self.state.state_dict(),
            "samples": None if self.samples is None else self.samples.known(),
        }

    def restore(self, path: Path) -> dict[str, Any]:
        """Take over a checkpoint of the same run; returns its content. ``ValueError`` names a file of another run."""
        saved = checkpoint.load(path)
        if saved["kind"] != "training" or saved["fingerprint"] != fingerprint(self.settings):
            raise ValueError(f"{path}: checkpoint of another run (configuration fingerprint differs)")
        checkpoint.require_step(saved, path, total(self))
        self.load(saved, path)
        return saved

    def load(self, saved: Mapping[str, Any], path: Path) -> None:
        """Take over the method and the training state of ``saved``, the content of the checkpoint ``path``.
        ``ValueError`` names the file and what does not fit or is damaged."""
        checkpoint.load_method(self.method, saved["method"], path)
        with checkpoint.state_of(path):
            require_momenta(self.method, self.state, saved["state"], path)
            self.state.load_state_dict(saved["state"])
        self.best = saved.get("best")

    def keep_best(self) -> None:
        """Remember the method as it is now."""
        self.best = {name: value.detach().cpu().clone() for name, value in self.method.state_dict().items()}

    def finished(self) -> bool:
        """Whether there is nothing left to train: all steps are done, or the validation loss ended training early."""
        return self.state.step >= total(self) or self.state.watch.ended

    def inherit(self, source: Path) -> Mapping[str, Any] | None:
        """Begin with the whole state of the run folder or checkpoint file ``source``: method, optimiser, queues.
        Returns what its checkpoint knows of its samples. ``ValueError`` where that is no training, or of another
        method, architecture or optimiser."""
        path = find(source)
        saved = checkpoint.load(path)
        if saved["kind"] != "training":
            raise ValueError(f"{path}: holds no whole training; run.start_from takes the encoder of a federation")
        before = from_tree(saved["config"], str(path))
        for leaf in ("method", "optim"):
            theirs, ours = (getattr(settings, leaf)["name"] for settings in (before, self.settings))
            if theirs != ours:
                raise ValueError(
                    f"{path}: run.continue_from: {leaf} is {theirs} there and {ours} here; they must agree"
                )
        checkpoint.load_method(self.method, saved["method"], path)
        with checkpoint.state_of(path):
            try:
                self.state.inherit(saved["state"])
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            require_momenta(self.method, self.state, saved["state"], path)
        return saved.get("samples")


def assemble(settings: Config, dataset: Dataset | None = None) -> Job:
    """Build data, views, method, batches and optimiser on this process's device and rank."""
    if settings.run.threads is not None:
        torch.set_num_threads(settings.run.threads)
    for leaf in settings.evaluate.protocols:  # written into every checkpoint, so a mistake has to end the run here
        registry.check(EVALUATORS, leaf, "evaluate.protocols")
    settings = resolve_auto(settings)
    plan, device = settings.plan, choose_device(settings)
    if device.type == "cpu":
        keep_freed_memory()
    dataset = load_data(settings, "train") if dataset is None else dataset
    settings = resolve(settings, dataset)
    method = first_method(settings).to(device)
    # All ranks start from the same weights, and their batch norms see the global batch.
    if distributed.active():
        synchronise(method, device)
        distributed.broadcast_module(method)
    if plan.channels_last:
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if plan.compile:
        compile_encoder(method.encoder)
    views = build_views(settings, dataset).to(device)
    features = feature_set(method, dataset, views, settings, device)
    batches = Batches(
        features or (dataset.to(device) if plan.resident else dataset),
        global_batch=plan.batch_size,
        seed=settings.run.seed,
        rank=distributed.rank(),
        world=distributed.world_size(),
        steps_per_epoch=plan.steps_per_epoch,
        draws=plan.draws,
        slices_per_exam=plan.slices_per_exam,
        copies=plan.copies,
        workers=plan.loader_threads,
        device=device,
    )
    optimisation = optim.build(
        settings.optim, method, batch_size=plan.batch_size, epochs=plan.epochs, per_epoch=batches.steps
    )
    state = begin(method, optimisation, plan, batches.steps)
    validation = Validation.of(settings, method, views)
    shown = Given() if features else views
    return Job(settings, dataset, method, shown, batches, state, validation=validation, features=features)


def train(
    settings: Config,
    *,
    resume: str = "auto",
    dataset: Dataset | None = None,
    folder: Path | None = None,
    title: str | None = None,
    within: Stop | None = None,
    told: bool = False,
    pulse: Pulse | None = None,
) -> Job:
    """Train to the end, or until a stop is asked for, in this process or as one rank of a group.

    Rank 0 alone writes the run folder (``folder``, default ``settings.folder``). Every rank reads the checkpoint it
    resumes from. ``within`` is the stop of a run that this one is a part of, ``told`` says that the caller has
    said what reading the data left aside. ``pulse`` shows another thread how it goes. Returns the job; its
    ``state.stopped`` says whether it was stopped.
    """
    run_folder = folder or settings.folder
    job = assemble(resolve_auto(settings, run_folder), dataset)
    run = RunFolder(run_folder, job.settings)
    try:
        take_over(job, run, resume, told)
        bar = Progress(title or run.path.name, total(job), job.batches.global_batch, job.state.step)
        with Stop(run.path, within) as stop, bar:
            run_fit(job, run, stop, bar, pulse or Pulse())
        if job.features is not None and not job.state.stopped and distributed.rank() == 0:
            job.features.close(run.path / FOLDER)
    finally:
        run.close()
    return job


def take_over(job: Job, run: RunFolder, resume: str, told: bool = False) -> None:
    """Open the run folder (rank 0) and bring ``job`` to where the folder's newest checkpoint stands (all ranks).

    The settings are written down where training goes on; a run that is finished stays as it is.
    """
    if distributed.rank() == 0:
        open_folder(run, job.dataset, resume)
    distributed.barrier()  # the folder is checked before any rank reads it
    latest, other = run.checkpoints.latest(), job.settings.run.continue_from
    saved = None if latest is None else job.restore(latest)
    if saved is None and other is not None:
        inherited = job.inherit(Path(other).expanduser())
        if distributed.rank() == 0:
            note(f"goes on from {other}; the same run.seed would draw its order and views of images once more")
            if inherited and inherited["digest"] != describe(job.dataset, bool(inherited["content"])).digest:
                note(f"{other} was trained on other samples than these ({inherited['count']} of them)")
    if distributed.rank() == 0:
        go_on(job, run, saved, told)
    distributed.barrier()
    if job.features is not None and not job.finished():
        job.features.open(run.path / FOLDER)


def go_on(job: Job, run: RunFolder, saved: Mapping[str, Any] | None, told: bool) -> None:
    """What rank 0 does before training begins, or goes on from ``saved``, the content of a checkpoint."""
    before = job.settings if saved is None else from_tree(saved["config"], str(run.path))
    paths = differences(to_tree(before), to_tree(job.settings))
    known = None if saved is None else saved.get("samples")
    job.samples = recognise(run.path, job.dataset, known)
    if saved is not None and job.finished():
        early = ", ended early by the validation loss" if job.state.watch.ended else ""
        note(f"{run.path.name} is finished (step {job.state.step}{early}): nothing is trained")
        if paths:
            note(f"not taken, because the run is finished: {', '.join(paths)}")
        if any(path.startswith(("data.", "evaluate.")) for path in paths):
            note("sslmed evaluate RUN KEY=VALUE measures a run on other data or by other protocols")
        return
    if saved is not None and known is None:
        note("this checkpoint is of an older version: whether the samples are still those of the run is not known")
    if saved is None and run.metrics.path.is_file() and run.metrics.path.stat().st_size:
        old = "; results in evaluate/ are of before" if any(run.path.glob("evaluate/*.json")) else ""
        note(f"{run.path.name} has metrics and no checkpoint: it begins anew{old}")
    changed = ", ".join(paths)
    # Scalars and a stop request that are newer than the checkpoint belong to the interrupted attempt.
    run.metrics.cut(job.state.step)
    (run.path / "stop").unlink(missing_ok=True)
    if changed:  # so that the checkpoint and ``config.yaml`` never contradict each other
        note(f"changed since the last checkpoint: {changed}")
        run.checkpoints.save(job.state.step, **job.content())
    line = crowded(job.settings, job.dataset)
    if line is not None:
        note(line)
    run.describe()
    write_down(run.path, job.samples, job.dataset.notices, told)


def total(job: Job) -> int:
    """Optimiser steps of the whole run."""
    return job.settings.plan.epochs * job.batches.steps


def run_fit(job: Job, run: RunFolder, stop: Stop, bar: Progress, pulse: Pulse) -> None:
    """``fit`` with the callbacks of a run folder; only rank 0 writes."""
    writes, pulse.state = distributed.rank() == 0, job.state

    def on_step(state: TrainState, values: dict[str, float]) -> None:
        if writes:
            epoch = (state.step - 1) // state.steps_per_epoch  # ``step`` counts the steps that are done
            shown = values | {WAIT_SHARE: state.wait_share}
            run.metrics.write(shown, step=state.step, epoch=epoch, split="train")
            bar.update(state.step, shown)

    def on_checkpoint(state: TrainState) -> None:
        if writes:
            run.checkpoints.save(state.step, **job.content())

    every = job.settings.evaluate.every
    monitor = Monitor(job.settings, job.dataset) if every is not None and writes else None

    def on_epoch(state: TrainState) -> None:
        if monitor is not None and every is not None and state.epoch % every == 0:
            values = monitor.measure(job.method)
            run.metrics.write(values, step=state.step, epoch=state.epoch - 1, split="train")
            note(f"epoch {state.epoch}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))

    def validate(state: TrainState) -> None:
        validation = job.validation
        if validation is None:
            return
        values, lowest = validation.measure(state, job.settings.plan.patience)
        if lowest:
            job.keep_best()
        if writes:
            run.metrics.write(values, step=state.step, epoch=state.epoch - 1, split=validation.split)
            note(validation.line(state, values))

    engine.fit(
        job.method,
        job.batches,
        job.settings.plan,
        views=job.views,
        state=job.state,
        average=pulse.average,
        on_step=on_step,
        on_checkpoint=pulse.during(SAVING, on_checkpoint),
        on_epoch=pulse.during(MEASURING, on_epoch),
        validate=pulse.during(MEASURING, validate),
        stop=pulse.stops(stop),
    )
    pulse.phase = ENDING
    # The last step need not be one that ``plan.checkpoint_every`` saves.
    if writes and run.checkpoints.latest() != run.checkpoints.path(job.state.step):
        run.checkpoints.save(job.state.step, **job.content())
    distributed.barrier()
