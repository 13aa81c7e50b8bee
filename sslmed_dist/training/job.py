"""From a configuration to a trained method: what every driver does, wherever it runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslmed_dist import distributed
from sslmed_dist.config import Config, from_tree, to_tree
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.samples import describe
from sslmed_dist.printable import note
from sslmed_dist.run_folder import RunFolder, differences
from sslmed_dist.training import engine
from sslmed_dist.training.assembly import Job as Job
from sslmed_dist.training.assembly import assemble as assemble
from sslmed_dist.training.assembly import total as total
from sslmed_dist.training.build import resolve_auto
from sslmed_dist.training.feature_cache import FOLDER
from sslmed_dist.training.monitor import Monitor
from sslmed_dist.training.phases import ENDING, MEASURING, SAVING
from sslmed_dist.training.progress import Progress
from sslmed_dist.training.pulse import Pulse
from sslmed_dist.training.same_data import open_folder, recognise, write_down
from sslmed_dist.training.state import TrainState
from sslmed_dist.training.stopping import Stop
from sslmed_dist.training.waiting import WAIT_SHARE, crowded


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
    if saved is not None:
        note(f"{run.path.name} goes on after step {job.state.step}")
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
    run.describe(job.batches.steps)
    write_down(run.path, job.samples, job.dataset.notices, told)


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
