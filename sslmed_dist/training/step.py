"""One optimiser step, the same for every driver: views, embeddings, loss, gradients, guard, update."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sslmed_dist import distributed
from sslmed_dist.config import Plan
from sslmed_dist.methods.method import Method
from sslmed_dist.training import gradient_cache
from sslmed_dist.training.precision import HALF, Batch, NonFinite, autocast, first_non_finite
from sslmed_dist.training.state import Average, Batches, Metrics, Penalty, TrainState

Parts = Callable[[], Iterator[Batch]]  # gives the prepared batch once more, whole or by micro-batches


class Stepper:
    """One optimiser step, the same for every driver."""

    def __init__(
        self,
        method: Method,
        views: nn.Module,
        plan: Plan,
        batches: Batches,
        state: TrainState,
        average: Average,
        penalty: Penalty | None,
    ) -> None:
        self.method, self.views, self.plan, self.state = method, views, plan, state
        self.batches, self.average, self.penalty = batches, average, penalty
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.dtype = self.parameters[0].dtype
        self.total = plan.epochs * batches.steps
        self.micro_batches = micro_batches(plan, batches.global_batch)

    def step(self, batch: Batch, epoch: int, stop: bool) -> Metrics | None:
        """Forward, backward, average, guard, update. Returns the scalars when this step is to be logged.

        ``batch`` is this rank's part of the global batch. ``stop`` asks for a stop; asked by one rank, it stops all.
        """
        state, plan = self.state, self.plan
        distributed.seed_step(self.batches.seed, state.step)
        self.method.step_begin(state.step / self.batches.steps, state.step / self.total)
        parts, terms, embeddings = (self.cached if self.micro_batches > 1 else self.plain)(batch, epoch)
        # One message between ranks averages the gradients, the loss terms and the wish to stop.
        stop_flag = torch.tensor(float(stop), dtype=self.dtype, device=self.device)
        names = list(terms)
        averaged = self.average(self.parameters, [terms[name].detach() for name in names] + [stop_flag])
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
        self.method.step_end(state.step / self.total)
        state.stopped = float(averaged[-1]) > 0  # the flag's mean: above 0 if any rank asks for a stop
        # Logged are every ``log_every``-th step, the last one of an epoch, and the last one before a stop.
        if state.step % plan.log_every and state.step % self.batches.steps and not state.stopped:
            return None
        logged = dict(zip(names, (float(value) for value in averaged[:-1]), strict=True))
        with torch.no_grad():
            measures = self.method.measures(embeddings)
        logged |= {name: float(value) for name, value in measures.items()}
        return logged | {"lr": rate, "gradient_norm": float(norm)}

    def plain(self, batch: Batch, epoch: int) -> tuple[Parts, Batch, Batch]:
        """Leave the gradients of this rank's batch in ``.grad``, the batch taken at once. Returns (the prepared batch
        to run again, loss terms, embeddings)."""
        prepared = self.prepare(batch, epoch)
        embeddings = self.embed(prepared)
        terms = self.objective(embeddings, prepared)
        self.scaled(terms["loss"]).backward()  # type: ignore[no-untyped-call]
        return lambda: iter([prepared]), terms, embeddings

    def cached(self, batch: Batch, epoch: int) -> tuple[Parts, Batch, Batch]:
        """As ``plain``, with ``plan.micro_batch`` samples at a time, by the gradient cache.

        Views and dropout are drawn anew in the second pass, from the same keys. Batch norm sees one micro-batch at a
        time. Micro-batch k of K holds the samples k, k + K, k + 2 K, ... of the global batch, whatever the number of
        ranks.
        """
        count = self.micro_batches
        # A rank's block of the global batch begins at a multiple of K, so every K-th of its own rows is the same set.
        pieces = [{name: value[k::count] for name, value in batch.items()} for k in range(count)]

        def embed(k: int) -> Batch:
            distributed.seed_step(self.batches.seed, self.state.step, k)
            return self.embed(self.prepare(pieces[k], epoch))

        def objective(embeddings: Batch) -> tuple[Tensor, Batch]:
            distributed.seed_step(self.batches.seed, self.state.step, count)
            # Images were needed by the views only; labels, ids and the like go on to the loss.
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
        """The batch on the device, its images replaced by their views, in the precision and memory format to embed."""
        batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        with torch.no_grad():
            batch = self.views(batch, seed=self.batches.seed, epoch=self.batches.drawn_as(epoch))
        for name, value in batch.items():
            # Images (N, C, H, W); examinations and clips have an axis more, and no memory format of channels.
            if value.is_floating_point() and value.dim() >= 4:
                channels_last = self.plan.channels_last and value.dim() == 4
                layout = torch.channels_last if channels_last else torch.contiguous_format
                batch[name] = value.to(self.dtype, memory_format=layout)
        return batch

    def embed(self, batch: Batch) -> Batch:
        """The embeddings of a prepared batch: tensors whose first axis is the samples. The encoder runs in half
        precision where ``plan.precision`` asks for it; what comes out is float32 at least."""
        with autocast(self.plan, self.device):
            embeddings = self.method.embed(batch)
        # Losses are float32 islands: exponentials of similarities overflow and cancel in half precision.
        return {name: value.float() if value.dtype in HALF.values() else value for name, value in embeddings.items()}

    def objective(self, embeddings: Batch, batch: Batch) -> Batch:
        """Loss terms of this rank, 0-d tensors by name; ``loss`` is the one that is differentiated.

        Some losses raise ``ValueError`` for embeddings that are not finite. The loss is then NaN (or infinite), so that
        ``guard`` stops the run and says where the embeddings came from.
        """
        try:
            terms = self.method.objective(embeddings, batch)
        except ValueError:
            # Not finite if any embedding is not; 0-d, and part of the graph, so that it stands in for the loss.
            total = torch.stack([value.sum() for value in embeddings.values() if value.is_floating_point()]).sum()
            # Losses that look at the values gather them first, so all ranks are here.
            if bool(distributed.reduce_sum(total.detach()).isfinite()):
                raise
            terms = {"loss": total}
        if self.penalty is not None:
            penalty = self.penalty(self.method)
            terms = {**terms, "loss": terms["loss"] + penalty, "penalty": penalty.detach()}
        return terms

    def update(self) -> float:
        """The optimiser's step at this step's learning rate, which is returned."""
        state = self.state
        rate = state.optimisation.set_rate(state.step)
        self.method.before_update()
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
        values = ", ".join(f"{name}={float(value):g}" for name, value in terms.items())
        module = first_non_finite(self.method, parts(), self.plan, self.device)
        if module is None:
            module = "none, the embeddings are finite" + (" on this rank" if distributed.active() else "")
        self.state.optimisation.optimizer.zero_grad(set_to_none=True)  # nothing bad may enter a later sum
        raise NonFinite(
            f"step {self.state.step}: not finite: {values}, gradient norm={float(norm):g}; first non-finite module: "
            f"{module}; parameters were left as before this step"
        )


def micro_batches(plan: Plan, batch: int) -> int:
    """Number of micro-batches in a global batch of ``batch`` samples. ``ValueError`` where it cannot be cut evenly over
    all ranks."""
    if plan.micro_batch is None:
        return 1
    world = distributed.world_size()
    if batch % plan.micro_batch or plan.micro_batch % world:
        raise ValueError(
            f"plan.micro_batch: expected a divisor of the global batch {batch} and a multiple of the {world} "
            f"worker(s), got {plan.micro_batch}"
        )
    return batch // plan.micro_batch
