"""``fit``: the one training loop. A driver decides where it runs and which samples it sees; nothing else differs."""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sslmed_dist import distributed
from sslmed_dist.config import Plan
from sslmed_dist.optim import Optimisation

Batch = dict[str, Tensor]
Metrics = dict[str, float]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Batches(Protocol):
    """What ``fit`` asks of its source of batches. ``seed`` is the run's; ``steps`` are those of one epoch."""

    global_batch: int
    steps: int
    seed: int

    def epoch(self, epoch: int, start_step: int = 0) -> Iterable[Batch]:
        """This rank's part of the batches of one epoch, from ``start_step`` on."""


class Trainable(Protocol):
    """What ``fit`` asks of a method beyond being a module: see ``methods.method.Method``."""

    def embed(self, batch: Batch) -> Batch: ...
    def objective(self, embeddings: Batch, batch: Batch) -> Batch: ...
    def measures(self, embeddings: Batch) -> Batch: ...
    def step_begin(self, epoch: float, progress: float) -> None: ...
    def before_update(self) -> None: ...
    def step_end(self, progress: float) -> None: ...


class NonFinite(ArithmeticError):
    """A loss or gradient is not finite: training stopped before the parameters were touched."""


@dataclass
class TrainState:
    """Where training stands. ``step`` counts optimiser steps of the run, ``samples`` those seen by all workers."""

    optimisation: Optimisation
    steps_per_epoch: int
    step: int = 0
    samples: int = 0
    scaler: GradScaler | None = None
    stopped: bool = False

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to."""
        return self.step // self.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """All that ``load_state_dict`` needs to go on bit for bit."""
        scaler = self.scaler.state_dict() if self.scaler is not None else None
        optimizer = self.optimisation.optimizer.state_dict()
        return {"step": self.step, "samples": self.samples, "optimizer": optimizer, "scaler": scaler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved position and optimiser state."""
        self.step, self.samples = int(state["step"]), int(state["samples"])
        self.optimisation.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])


Average = Callable[[Iterable[nn.Parameter], Sequence[Tensor]], list[Tensor]]
OnStep = Callable[[TrainState, Metrics], None]
OnState = Callable[[TrainState], None]


def ignore(*_: Any) -> None:
    """A callback that does nothing."""


def never() -> bool:
    """No request to stop."""
    return False


def fit(
    method: nn.Module,
    batches: Batches,
    plan: Plan,
    *,
    views: nn.Module,
    state: TrainState,
    average: Average = distributed.leave_gradients,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    on_step: OnStep = ignore,
    on_checkpoint: OnState = ignore,
    on_epoch: OnState = ignore,
    stop: Callable[[], bool] = never,
    until: int | None = None,
) -> TrainState:
    """Train ``method`` from ``state`` to the end of epoch ``until`` (default ``plan.epochs``); returns ``state``.

    ``average`` makes the gradients (and a few scalars) those of the global batch; ``penalty`` is added to the loss (a
    proximal term, say). ``on_step`` gets the logged scalars, ``on_checkpoint`` is called every
    ``plan.checkpoint_every`` steps (default: every epoch) and before stopping because ``stop`` said so on any rank.
    ``NonFinite`` is raised before an update that is not finite could reach the parameters.
    """
    method.train()
    with precision(plan):
        stepper = Stepper(method, views, plan, batches, state, average, penalty)
        every = plan.checkpoint_every or batches.steps
        for epoch in range(state.epoch, plan.epochs if until is None else until):
            for batch in batches.epoch(epoch, state.step % batches.steps):
                logged = stepper.step(batch, epoch, stop())
                on_step(state, logged) if logged is not None else None
                if state.step % every == 0 or state.stopped:
                    on_checkpoint(state)
                if state.stopped:
                    return state
            on_epoch(state)
    return state


class Stepper:
    """One optimiser step, the same for every driver."""

    def __init__(
        self,
        method: nn.Module,
        views: nn.Module,
        plan: Plan,
        batches: Batches,
        state: TrainState,
        average: Average,
        penalty: Callable[[nn.Module], Tensor] | None,
    ) -> None:
        self.method, self.views, self.plan, self.state = method, views, plan, state
        self.batches, self.average, self.penalty = batches, average, penalty
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.dtype = self.parameters[0].dtype
        self.total = plan.epochs * batches.steps

    def step(self, batch: Batch, epoch: int, stop: bool) -> Metrics | None:
        """Forward, backward, average, guard, update. Returns the scalars when this step is to be logged."""
        state, plan = self.state, self.plan
        distributed.seed_step(self.batches.seed, state.step)
        self.method.step_begin(state.step / self.batches.steps, state.step / self.total)  # type: ignore[operator]
        batch = self.prepare(batch, epoch)
        terms, embeddings = self.losses(batch)
        scaler = state.scaler
        (scaler.scale(terms["loss"]) if scaler else terms["loss"]).backward()  # type: ignore[no-untyped-call]
        flag = torch.tensor(float(stop), dtype=self.dtype, device=self.device)
        names = list(terms)
        averaged = self.average(self.parameters, [terms[name].detach() for name in names] + [flag])
        if scaler:
            # After the average, so that an overflow on one rank is one on all and all skip the step together.
            scaler.unscale_(state.optimisation.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        self.guard(dict(zip(names, averaged[:-1], strict=True)), norm, batch)
        if plan.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, plan.clip, norm)
        rate = self.update()
        state.step += 1
        state.samples += self.batches.global_batch
        self.method.step_end(state.step / self.total)  # type: ignore[operator]
        state.stopped = float(averaged[-1]) > 0
        if state.step % plan.log_every and state.step % self.batches.steps and not state.stopped:
            return None
        logged = dict(zip(names, (float(value) for value in averaged[:-1]), strict=True))
        with torch.no_grad():
            measures = self.method.measures(embeddings)  # type: ignore[operator]
        logged |= {name: float(value) for name, value in measures.items()}
        return logged | {"lr": rate, "gradient_norm": float(norm)}

    def prepare(self, batch: Batch, epoch: int) -> Batch:
        """Batch to the device, views, precision and memory format."""
        batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        with torch.no_grad():
            batch = self.views(batch, seed=self.batches.seed, epoch=epoch)
        for name, value in batch.items():
            if value.is_floating_point() and value.dim() == 4:
                layout = torch.channels_last if self.plan.channels_last else torch.contiguous_format
                batch[name] = value.to(self.dtype, memory_format=layout)
        return batch

    def losses(self, batch: Batch) -> tuple[Batch, Batch]:
        """Loss terms of this rank and the embeddings they came from; encoder in half precision where asked."""
        with autocast(self.plan, self.device):
            embeddings = self.method.embed(batch)  # type: ignore[operator]
        # Losses are float32 islands: exponentials of similarities overflow and cancel in half precision.
        embeddings = {k: v.float() if v.dtype in HALF.values() else v for k, v in embeddings.items()}
        terms = self.method.objective(embeddings, batch)  # type: ignore[operator]
        if self.penalty is not None:
            extra = self.penalty(self.method)
            terms = {**terms, "loss": terms["loss"] + extra, "penalty": extra.detach()}
        return terms, embeddings

    def update(self) -> float:
        """The optimiser's step at this step's learning rate, which is returned."""
        state = self.state
        rate = state.optimisation.set_rate(state.step)
        self.method.before_update()  # type: ignore[operator]
        if state.scaler:
            state.scaler.step(state.optimisation.optimizer)
            state.scaler.update()
        else:
            state.optimisation.optimizer.step()
        state.optimisation.optimizer.zero_grad(set_to_none=True)
        return rate

    def guard(self, terms: Batch, norm: Tensor, batch: Batch) -> None:
        """Raise ``NonFinite`` with the step, the loss terms and the first non-finite module, before any update."""
        # fp16 meets infinite gradients by design: the scaler then skips the step, so only the loss is looked at.
        watched = terms["loss"] if self.state.scaler else terms["loss"] + norm
        if math.isfinite(float(watched)):
            return
        shown = ", ".join(f"{name}={float(value):g}" for name, value in terms.items())
        where = first_non_finite(self.method, batch, self.plan, self.device)
        if where is None:
            where = "none, the embeddings are finite" + (" on this rank" if distributed.active() else "")
        self.state.optimisation.optimizer.zero_grad(set_to_none=True)  # nothing bad may enter a later sum
        raise NonFinite(
            f"step {self.state.step}: not finite: {shown}, gradient norm={float(norm):g}; first non-finite module: "
            f"{where}; parameters were left as before this step"
        )


def autocast(plan: Plan, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The autocast region that ``plan.precision`` asks for."""
    if plan.precision not in HALF:
        return contextlib.nullcontext()
    return torch.autocast(device.type, HALF[plan.precision])


@contextlib.contextmanager
def precision(plan: Plan) -> Iterator[None]:
    """Deterministic kernels while ``plan.deterministic`` asks for them."""
    if plan.deterministic:
        # cuBLAS is deterministic only with a fixed workspace, and torch refuses its matrix products without one.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(plan.deterministic or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def first_non_finite(method: nn.Module, batch: Batch, plan: Plan, device: torch.device) -> str | None:
    """Name of the first module, in order of execution, whose output is not finite when ``batch`` is run again."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not found and not bool(torch.isfinite(output).all()):
                found.append(name)

        return hook

    inputs = [name for name, value in batch.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    hooks = [module.register_forward_hook(watch(name)) for name, module in method.named_modules() if name]
    try:
        # Even where the input is at fault: synchronised layers would wait for a rank that does not run. Eagerly, or a
        # compiled encoder would be compiled once more for the hooks.
        with torch.no_grad(), autocast(plan, device), torch.compiler.set_stance("force_eager"):
            method.embed(batch)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
    if inputs:
        return f"input {inputs[0]}"
    return found[0] if found else None


def begin(method: nn.Module, optimisation: Optimisation, plan: Plan, steps_per_epoch: int) -> TrainState:
    """The state before the first step. ``ValueError`` where ``plan.precision`` cannot run on the method's device."""
    device = next(method.parameters()).device
    if plan.precision == "fp16" and device.type != "cuda":
        raise ValueError(
            f"plan.precision: fp16 needs a CUDA device, this is {device.type}; allowed here: float32, bf16"
        )
    scaler = GradScaler(device.type) if plan.precision == "fp16" else None
    return TrainState(optimisation, steps_per_epoch, scaler=scaler)
