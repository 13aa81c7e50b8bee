"""What ``fit`` takes and where training stands: batches, the state that is saved, the average over ranks."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sslmed_dist import state_dicts
from sslmed_dist.config import Plan
from sslmed_dist.methods.method import Method
from sslmed_dist.training.optim import Optimisation
from sslmed_dist.training.precision import Batch

Metrics = dict[str, float]


class Batches(Protocol):
    """What ``fit`` asks of its source of batches. ``seed`` is the run's; ``steps`` are those of one epoch."""

    global_batch: int
    steps: int
    seed: int

    def epoch(self, epoch: int, start_step: int = 0) -> Iterable[Batch]:
        """This rank's part of the batches of one epoch, from ``start_step`` on."""

    def drawn_as(self, epoch: int) -> int:
        """The epoch that the draws of slices and views are keyed by."""


@dataclass
class Watch:
    """The validation loss so far. ``measured``: epochs measured; ``lowest``: the lowest loss, None before the first;
    ``lowest_epoch``: how many epochs were done then; ``ended``: training has ended early, for want of patience."""

    measured: int = 0
    lowest: float | None = None
    lowest_epoch: int = 0
    ended: bool = False

    def see(self, loss: float, epochs: int, patience: int | None) -> bool:
        """Take note of the loss after ``epochs`` epochs; whether it is the lowest. A loss that is not finite is none.
        ``ended`` becomes true where the last ``patience`` epochs brought no lower one."""
        self.measured = epochs
        lower = math.isfinite(loss) and (self.lowest is None or loss < self.lowest)
        if lower:
            self.lowest, self.lowest_epoch = loss, epochs
        self.ended = patience is not None and epochs - self.lowest_epoch >= patience
        return lower


@dataclass
class TrainState:
    """Where training stands. ``step`` counts optimiser steps of the run, ``samples`` those seen by all workers;
    ``watch`` is what a run with ``plan.validate`` has measured. ``wait_share``: the part of the time, from 0 to 1, that
    went by waiting for data before the last logged step; it is measured and not saved."""

    optimisation: Optimisation
    steps_per_epoch: int
    step: int = 0
    samples: int = 0
    scaler: GradScaler | None = None
    stopped: bool = False
    watch: Watch = field(default_factory=Watch)
    wait_share: float = 0.0

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to."""
        return self.step // self.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs to go on bit for bit."""
        scaler = self.scaler.state_dict() if self.scaler is not None else None
        optimizer = self.optimisation.optimizer.state_dict()
        place = {"step": self.step, "samples": self.samples, "steps_per_epoch": self.steps_per_epoch}
        return place | {"optimizer": optimizer, "scaler": scaler, "watch": asdict(self.watch)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved position and optimiser state. ``ValueError`` where an epoch then had another number of
        steps: its schedules would not be those that the run began with."""
        steps = state.get("steps_per_epoch", self.steps_per_epoch)  # older checkpoints do not say
        if steps != self.steps_per_epoch:
            raise ValueError(
                f"data: an epoch has {self.steps_per_epoch} steps now and had {steps} when the run began: samples came "
                "or went; allowed: the same data, or another run.name"
            )
        self.step, self.samples = int(state["step"]), int(state["samples"])
        self.watch = Watch(**state.get("watch", {}))  # older checkpoints have none
        self.optimisation.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])

    def inherit(self, state: dict[str, Any]) -> None:
        """Begin with the momenta and the loss scale of another run's saved state. Rates, decays and schedule stay this
        run's own. ``ValueError`` where the optimiser has other parameters."""
        optimizer = self.optimisation.optimizer
        own = optimizer.state_dict()["param_groups"]
        sizes, theirs = (
            [len(group["params"]) for group in groups] for groups in (own, state["optimizer"]["param_groups"])
        )
        if sizes != theirs:
            raise ValueError(
                f"optim: groups of {sizes} parameters, in the other run {theirs}; optim.exclude must agree"
            )
        optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": own})
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])


Penalty = Callable[[Method], Tensor]  # a 0-d tensor that is added to the loss
# Averages the parameters' .grad over ranks in place, and returns the averages of some scalars.
Average = Callable[[Iterable[nn.Parameter], Sequence[Tensor]], list[Tensor]]


def begin(method: Method, optimisation: Optimisation, plan: Plan, steps_per_epoch: int) -> TrainState:
    """The state before the first step. ``ValueError`` where ``plan.precision`` cannot run on the method's device."""
    device = next(method.parameters()).device
    if plan.precision == "fp16" and device.type != "cuda":
        raise ValueError(
            f"plan.precision: fp16 needs a CUDA device, this is {device.type}; allowed here: float32, bf16"
        )
    scaler = GradScaler(device.type) if plan.precision == "fp16" else None
    return TrainState(optimisation, steps_per_epoch, scaler=scaler)


def require_momenta(method: Method, state: TrainState, saved: Mapping[str, Any], path: Path) -> None:
    """``ValueError`` naming the checkpoint ``path`` and the tensors of the optimiser in ``saved``, its training state,
    that are not finite, or of another shape than their parameters of ``method`` (``state_dicts.momenta_misfit``)."""
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    groups = state.optimisation.optimizer.param_groups
    parameters = [(names[id(parameter)], parameter) for group in groups for parameter in group["params"]]
    problem = state_dicts.momenta_misfit(saved["optimizer"]["state"], parameters)
    if problem:
        raise ValueError(f"{path}: its training state is damaged: optimiser: {problem}")
