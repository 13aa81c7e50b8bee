"""``fit``: the one training loop. A driver decides where it runs and which samples it sees; nothing else differs."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sslmed_dist import distributed, gradient_cache
from sslmed_dist.config import Plan
from sslmed_dist.guard import HALF, Batch, NonFinite, autocast, first_non_finite, precision
from sslmed_dist.optim import Optimisation

Metrics = dict[str, float]
Parts = Callable[[], Iterator[Batch]]


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
        self.micro_batches = micro_batches(plan, batches.global_batch)

    def step(self, batch: Batch, epoch: int, stop: bool) -> Metrics | None:
        """Forward, backward, average, guard, update. Returns the scalars when this step is to be logged."""
        state, plan = self.state, self.plan
        distributed.seed_step(self.batches.seed, state.step)
        self.method.step_begin(state.step / self.batches.steps, state.step / self.total)  # type: ignore[operator]
        parts, terms, embeddings = (self.cached if self.micro_batches > 1 else self.plain)(batch, epoch)
        flag = torch.tensor(float(stop), dtype=self.dtype, device=self.device)
        names = list(terms)
        averaged = self.average(self.parameters, [terms[name].detach() for name in names] + [flag])
        if state.scaler:
            # After the average, so that an overflow on one rank is one on all and all skip the step together.
            state.scaler.unscale_(state.optimisation.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        self.guard(dict(zip(names, averaged[:-1], strict=True)), norm, parts)
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

    def plain(self, batch: Batch, epoch: int) -> tuple[Parts, Batch, Batch]:
        """Gradients of the whole batch at once: (what can be run again, loss terms, embeddings)."""
        ready = self.prepare(batch, epoch)
        embeddings = self.embed(ready)
        terms = self.objective(embeddings, ready)
        self.scaled(terms["loss"]).backward()  # type: ignore[no-untyped-call]
        return lambda: iter([ready]), terms, embeddings

    def cached(self, batch: Batch, epoch: int) -> tuple[Parts, Batch, Batch]:
        """The same for ``plan.micro_batch`` samples at a time, by the gradient cache.

        Views and dropout are drawn anew in the second pass, from the same keys. Batch norm sees one micro-batch at a
        time; micro-batch k of K holds the samples whose place in the global batch is k modulo K, whatever the number
        of ranks.
        """
        count = self.micro_batches
        pieces = [{name: value[number::count] for name, value in batch.items()} for number in range(count)]

        def embed(number: int) -> Batch:
            distributed.seed_step(self.batches.seed, self.state.step, number)
            return self.embed(self.prepare(pieces[number], epoch))

        def objective(embeddings: Batch) -> tuple[Tensor, Batch]:
            distributed.seed_step(self.batches.seed, self.state.step, count)
            terms = self.objective(embeddings, {name: value for name, value in batch.items() if name != "images"})
            return self.scaled(terms["loss"]), terms

        terms, embeddings = gradient_cache.backward(self.method, embed, objective, count)
        return lambda: (self.prepare(piece, epoch) for piece in pieces), terms, embeddings

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the scaler's factor under fp16."""
        scaler = self.state.scaler
        scaled: Tensor = scaler.scale(loss) if scaler else loss
        return scaled

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

    def embed(self, batch: Batch) -> Batch:
        """The embeddings of a prepared batch; encoder in half precision where asked."""
        with autocast(self.plan, self.device):
            embeddings = self.method.embed(batch)  # type: ignore[operator]
        # Losses are float32 islands: exponentials of similarities overflow and cancel in half precision.
        return {k: v.float() if v.dtype in HALF.values() else v for k, v in embeddings.items()}

    def objective(self, embeddings: Batch, batch: Batch) -> Batch:
        """Loss terms of this rank. A loss that refuses embeddings that are not finite gives a NaN for the guard, which
        says where they came from."""
        try:
            terms: Batch = self.method.objective(embeddings, batch)  # type: ignore[operator]
        except ValueError:
            total = torch.stack([value.sum() for value in embeddings.values() if value.is_floating_point()]).sum()
            # Losses that look at the values gather them first, so all ranks are here.
            if bool(distributed.reduce_sum(total.detach()).isfinite()):
                raise
            terms = {"loss": total}
        if self.penalty is not None:
            extra = self.penalty(self.method)
            terms = {**terms, "loss": terms["loss"] + extra, "penalty": extra.detach()}
        return terms

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

    def guard(self, terms: Batch, norm: Tensor, parts: Parts) -> None:
        """Raise ``NonFinite`` with the step, the loss terms and the first non-finite module, before any update."""
        # fp16 meets infinite gradients by design: the scaler then skips the step, so only the loss is looked at.
        watched = terms["loss"] if self.state.scaler else terms["loss"] + norm
        if math.isfinite(float(watched)):
            return
        shown = ", ".join(f"{name}={float(value):g}" for name, value in terms.items())
        where = first_non_finite(self.method, parts(), self.plan, self.device)
        if where is None:
            where = "none, the embeddings are finite" + (" on this rank" if distributed.active() else "")
        self.state.optimisation.optimizer.zero_grad(set_to_none=True)  # nothing bad may enter a later sum
        raise NonFinite(
            f"step {self.state.step}: not finite: {shown}, gradient norm={float(norm):g}; first non-finite module: "
            f"{where}; parameters were left as before this step"
        )


def micro_batches(plan: Plan, batch: int) -> int:
    """Number of micro-batches of a global batch. ``ValueError`` where it cannot be cut evenly over all ranks."""
    if plan.micro_batch is None:
        return 1
    world = distributed.world_size()
    if batch % plan.micro_batch or plan.micro_batch % world:
        raise ValueError(
            f"plan.micro_batch: expected a divisor of the global batch {batch} and a multiple of the {world} "
            f"worker(s), got {plan.micro_batch}"
        )
    return batch // plan.micro_batch


def begin(method: nn.Module, optimisation: Optimisation, plan: Plan, steps_per_epoch: int) -> TrainState:
    """The state before the first step. ``ValueError`` where ``plan.precision`` cannot run on the method's device."""
    device = next(method.parameters()).device
    if plan.precision == "fp16" and device.type != "cuda":
        raise ValueError(
            f"plan.precision: fp16 needs a CUDA device, this is {device.type}; allowed here: float32, bf16"
        )
    scaler = GradScaler(device.type) if plan.precision == "fp16" else None
    return TrainState(optimisation, steps_per_epoch, scaler=scaler)
