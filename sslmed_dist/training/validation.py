"""The loss of validation samples after each epoch: what early stopping watches.

All ranks share the work as they share a training batch, so the values do not depend on how many there are. The samples,
the slices of exams and what the views draw (which arrangement, say) are the same after every epoch.
"""

import math
from typing import Self

import torch
from torch import nn

from sslmed_dist import distributed, randomness
from sslmed_dist.config import Config
from sslmed_dist.data.batches import Batches
from sslmed_dist.methods import METHODS, Method
from sslmed_dist.printable import plural
from sslmed_dist.training import build
from sslmed_dist.training.state import Metrics, TrainState
from sslmed_dist.training.step import Stepper

AT_LOWEST = "_at_lowest_loss"  # ends the names of what is measured then


class Validation:
    """Measures a method's loss terms on the split ``plan.validate``.

    Encoder and views are in evaluation mode: no augmentation, running statistics of batch norm. Every sample is seen
    once, and as many slices of it as in training. Where the last batch is not full, it is filled up with further draws
    of the first samples. No metric of this is a result: the split chose when to stop.
    """

    def __init__(self, settings: Config, method: Method, views: nn.Module) -> None:
        """``ValueError``: no such split, or a method whose loss cannot be asked for without changing it."""
        plan = settings.plan
        assert plan.validate is not None
        self.split = plan.validate
        if not method.validates:
            able = ", ".join(sorted(name for name, kind in METHODS.items() if getattr(kind, "validates", False)))
            raise ValueError(f"plan.validate: not with the method {settings.method['name']}; allowed: {able}, or null")
        device = next(method.parameters()).device
        dataset = build.load_data(settings, self.split)
        if dataset.channels != settings.method["channels"]:
            raise ValueError(
                f"plan.validate: {dataset.name} has images of {plural(dataset.channels, 'channel')}, the method takes "
                f"{settings.method['channels']}"
            )
        rows = len(dataset) * plan.slices_per_exam
        # Enough passes over the samples for the last batch to be full.
        steps = math.ceil(rows / plan.batch_size)
        self.batches = Batches(
            dataset.to(device) if plan.resident else dataset,
            global_batch=plan.batch_size,
            seed=randomness.key(settings.run.seed, "validation"),
            rank=distributed.rank(),
            world=distributed.world_size(),
            steps_per_epoch=steps,
            draws=math.ceil(steps * plan.batch_size / rows),
            slices_per_exam=plan.slices_per_exam,
            device=device,
        )
        self.method, self.views, self.plan = method, views, plan

    @classmethod
    def of(cls, settings: Config, method: Method, views: nn.Module) -> Self | None:
        """The validation that the plan asks for, if any."""
        return None if settings.plan.validate is None else cls(settings, method, views)

    def measure(self, state: TrainState, patience: int | None) -> tuple[Metrics, bool]:
        """The means of the loss terms over the split, called ``val_loss``, ``val_accuracy``, ..., and whether the loss
        is the lowest so far. ``state.watch`` takes note of it. At the lowest loss also ``val_accuracy_at_lowest_loss``
        and the like: the accuracy that Table 3.12 prints."""
        terms = self.terms(state)
        lowest = state.watch.see(terms["loss"], state.epoch, patience)
        values = {f"{self.split}_{name}": value for name, value in terms.items()}
        if lowest:
            values |= {f"{self.split}_{name}{AT_LOWEST}": value for name, value in terms.items()}
        return values, lowest

    @torch.no_grad()
    def terms(self, state: TrainState) -> Metrics:
        """The mean of each loss term over all batches and ranks."""
        stepper = Stepper(self.method, self.views, self.plan, self.batches, state, distributed.leave_gradients, None)
        self.method.eval()
        self.views.eval()
        try:
            sums: dict[str, torch.Tensor] = {}
            for batch in self.batches.epoch(0):
                prepared = stepper.prepare(batch, 0)
                for name, value in stepper.objective(stepper.embed(prepared), prepared).items():
                    sums[name] = sums.get(name, 0.0) + value.detach().double()
        finally:
            self.method.train()
            self.views.train()
        names = list(sums)
        totals = distributed.reduce_sum(torch.stack([sums[name] for name in names])) / distributed.world_size()
        return {name: float(total) / self.batches.steps for name, total in zip(names, totals, strict=True)}

    def line(self, state: TrainState, values: Metrics) -> str:
        """What is printed after an epoch."""
        own = ", ".join(f"{name} {value:.4f}" for name, value in values.items() if not name.endswith(AT_LOWEST))
        watch = state.watch
        ended = f"; ends here: no lower loss for {state.epoch - watch.lowest_epoch} epochs" if watch.ended else ""
        return f"epoch {state.epoch}: {own} (lowest loss after epoch {watch.lowest_epoch}){ended}"
