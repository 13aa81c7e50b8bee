"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no state of them."""

import math
from collections.abc import Callable, Mapping
from typing import Any


class Schedule:
    """A factor on the learning rate of the configuration: it rises linearly for ``warmup`` steps, then follows
    ``shape``.

    ``factor(step)`` is defined for 0 <= step < total. Steps are optimiser steps of the whole run; ``per_epoch`` of them
    are an epoch. ``ValueError`` for a warm-up as long as the run.
    """

    def __init__(self, warmup: int, total: int, per_epoch: int) -> None:
        if not 0 <= warmup < max(total, 1):
            raise ValueError(f"optim.schedule.warmup_epochs: {warmup} steps of warm-up, the run has only {total}")
        self.warmup, self.total, self.per_epoch = warmup, total, per_epoch

    def factor(self, step: int) -> float:
        """Multiplier of the base learning rate at ``step``."""
        if step < self.warmup:
            return (step + 1) / self.warmup  # the last step of the warm-up has the full rate
        return self.shape(step)

    def shape(self, step: int) -> float:
        """The factor after the warm-up: constant here."""
        return 1.0


class Constant(Schedule):
    """The base learning rate throughout, after an optional warm-up."""

    def __init__(self, warmup_epochs: float = 0.0, *, total: int, per_epoch: int) -> None:
        super().__init__(round(warmup_epochs * per_epoch), total, per_epoch)


class Cosine(Schedule):
    """Half a cosine from 1 to ``final`` (Loshchilov and Hutter 2017), per optimiser step."""

    def __init__(self, warmup_epochs: float = 0.0, final: float = 0.0, *, total: int, per_epoch: int) -> None:
        super().__init__(round(warmup_epochs * per_epoch), total, per_epoch)
        self.final = final

    def shape(self, step: int) -> float:
        """Cosine of the progress since the end of the warm-up."""
        progress = (step - self.warmup) / max(self.total - self.warmup, 1)  # 0 to just below 1
        return self.final + 0.5 * (1.0 - self.final) * (1.0 + math.cos(math.pi * progress))


class Step(Schedule):
    """Multiply by ``gamma`` at each of the ``milestones`` (epochs)."""

    def __init__(
        self,
        milestones: tuple[int, ...],
        gamma: float = 0.1,
        warmup_epochs: float = 0.0,
        *,
        total: int,
        per_epoch: int,
    ) -> None:
        super().__init__(round(warmup_epochs * per_epoch), total, per_epoch)
        self.milestones, self.gamma = tuple(milestones), gamma

    def shape(self, step: int) -> float:
        """``gamma`` to the number of milestones passed."""
        epoch = step // self.per_epoch  # counted from 0
        return float(self.gamma ** sum(epoch >= milestone for milestone in self.milestones))


class Exponential(Schedule):
    """Multiply by ``gamma`` after every epoch."""

    def __init__(self, gamma: float = 0.95, warmup_epochs: float = 0.0, *, total: int, per_epoch: int) -> None:
        super().__init__(round(warmup_epochs * per_epoch), total, per_epoch)
        self.gamma = gamma

    def shape(self, step: int) -> float:
        """``gamma`` to the number of epochs done."""
        return float(self.gamma ** (step // self.per_epoch))


SCHEDULES: Mapping[str, Callable[..., Any]] = {
    "constant": Constant,
    "cosine": Cosine,
    "step": Step,
    "exponential": Exponential,
}
