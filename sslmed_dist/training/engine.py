"""``fit``: the one training loop. A driver decides where it runs and which samples it sees; nothing else differs."""

from collections.abc import Callable
from typing import Any

from torch import nn

from sslmed_dist import distributed
from sslmed_dist.config import Plan
from sslmed_dist.methods.method import Method
from sslmed_dist.training.precision import deterministic_kernels
from sslmed_dist.training.state import Average, Batches, Metrics, Penalty, TrainState
from sslmed_dist.training.step import Stepper
from sslmed_dist.training.waiting import Waiting

OnStep = Callable[[TrainState, Metrics], None]
OnState = Callable[[TrainState], None]


def ignore(*_: Any) -> None:
    """A callback that does nothing."""


def never() -> bool:
    """No request to stop."""
    return False


def fit(
    method: Method,
    batches: Batches,
    plan: Plan,
    *,
    views: nn.Module,
    state: TrainState,
    average: Average = distributed.leave_gradients,
    penalty: Penalty | None = None,
    on_step: OnStep = ignore,
    on_checkpoint: OnState = ignore,
    on_epoch: OnState = ignore,
    validate: OnState = ignore,
    stop: Callable[[], bool] = never,
    until: int | None = None,
) -> TrainState:
    """Train ``method`` from ``state`` until ``until`` epochs are done (default ``plan.epochs``); returns ``state``.

    ``average`` turns the gradients of this rank (and a few scalars) into those of the global batch. ``penalty`` is
    added to the loss (a proximal term, say). ``on_step`` gets the logged scalars. ``on_checkpoint`` is called every
    ``plan.checkpoint_every`` steps (default: every epoch), and before training stops because ``stop`` was true on any
    rank. ``state.wait_share`` says by then what part of the time since the last logged step went by waiting for data.
    ``validate`` is called at the end of an epoch, before its checkpoint, and may end training by
    ``state.watch.ended``. ``NonFinite`` is raised before an update that is not finite could reach the parameters.
    """
    method.train()
    with deterministic_kernels(plan):
        stepper = Stepper(method, views, plan, batches, state, average, penalty)
        every = plan.checkpoint_every or batches.steps
        waiting = Waiting()
        last = plan.epochs if until is None else until
        for epoch in range(state.epoch, state.epoch if state.watch.ended else last):
            # A run that was interrupted within an epoch goes on at the next step of that epoch.
            for batch in waiting.over(batches.epoch(epoch, state.step % batches.steps)):
                logged = stepper.step(batch, epoch, stop())
                if logged is not None:
                    state.wait_share = waiting.share(stepper.device)
                    on_step(state, logged)
                if state.step % batches.steps == 0:
                    validate(state)
                if state.step % every == 0 or state.stopped or state.watch.ended:
                    on_checkpoint(state)
                if state.stopped:
                    return state
            on_epoch(state)
            if state.watch.ended:
                break
    return state
