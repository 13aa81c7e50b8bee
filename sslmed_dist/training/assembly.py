"""From a configuration to everything that ``fit`` needs: the data, the views, the method, the state, in one ``Job``."""

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
from sslmed_dist.data.samples import Samples
from sslmed_dist.downstream import EVALUATORS
from sslmed_dist.methods import Method
from sslmed_dist.models.normalization import synchronise
from sslmed_dist.training import optim
from sslmed_dist.training.allocation import keep_freed_memory
from sslmed_dist.training.build import build_views, choose_device, compile_encoder, load_data, resolve, resolve_auto
from sslmed_dist.training.feature_cache import Given, feature_set
from sslmed_dist.training.kept import Kept
from sslmed_dist.training.pretrained import find, first_method
from sslmed_dist.training.state import TrainState, begin, require_momenta
from sslmed_dist.training.validation import Validation


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
    features: Kept | None = None  # of what is frozen; then batches are of these, views see nothing

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


def total(job: Job) -> int:
    """Optimiser steps of the whole run."""
    return job.settings.plan.epochs * job.batches.steps
