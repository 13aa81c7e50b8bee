"""Batches by global step: which samples form batch s of epoch e does not depend on how many workers share it."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.data.dataset import Dataset, Item

CHUNK = 2**14  # visits whose keys are computed at a time
AHEAD = 2  # batches read ahead per worker: one in work, one waiting


class Batches:
    """The global batches of a dataset, of which this rank gets one contiguous block of ``global_batch / world`` rows.

    Pass p = 0, 1, ... of epoch e visits every sample once, in the keyed order (seed, "data", e, p). The passes follow
    one another without a gap, so a batch may hold the end of one pass and the beginning of the next. The draw number
    of a sample, which its random views are keyed by, is the number of the pass. An epoch is ``draws`` passes without
    the incomplete last batch, or exactly ``steps_per_epoch`` batches when that is given.
    ``slices_per_exam`` S > 1 gives S rows in succession to each visit of a sample, with the draw numbers p S, p S + 1,
    ...: of an exam S slices, each drawn from all of its slices. ``global_batch`` counts these rows, so a batch of S is
    one exam, on any number of workers. A dataset with ``repeats`` has V = their sum visits in a pass in place of N; the
    c-th visit of a sample has the draw number p C + c, C the largest of the repeats.
    ``copies`` K: the draw numbers go through 0 ... K - 1 again and again, and all are those of epoch 0, so a sample
    comes in K ways and no more. The order of the samples is a new one in every pass all the same.
    ``workers`` > 0 fetches that many batches at a time in threads; they still come in order, and only ``AHEAD`` per
    worker are held. Attributes: ``dataset``, ``global_batch``, ``local_batch``, ``steps`` (per epoch).
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        global_batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        steps_per_epoch: int | None = None,
        draws: int = 1,
        slices_per_exam: int = 1,
        copies: int | None = None,
        workers: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        """``ValueError``: a batch that the workers cannot share evenly, or more rows than the samples give."""
        counts = {"global_batch": global_batch, "draws": draws, "slices_per_exam": slices_per_exam, "copies": copies}
        for name, value in {**counts, "steps_per_epoch": steps_per_epoch}.items():
            if value is not None and value < 1:
                raise ValueError(f"batches: {name} must be at least 1, got {value}")
        if world < 1 or global_batch % world:
            raise ValueError(f"batches: global_batch {global_batch} is not divisible by the number of workers {world}")
        if workers < 0:
            raise ValueError(f"batches: workers must be 0 or more, got {workers}")
        # The visits of a pass: sample by sample, each as often as it is to be visited, and the how manieth it is.
        # Where every sample is visited once, visit v is that of sample v, and nothing needs to be kept.
        repeats, self.visits, self.most = dataset.repeats, len(dataset), 1
        self.visited: Tensor | None = None  # (V,) positions
        self.copy: Tensor | None = None  # (V,) 0, 1, ...
        if repeats is not None:
            self.visited = torch.repeat_interleave(torch.arange(len(dataset)), repeats)
            self.copy = torch.arange(len(self.visited)) - (repeats.cumsum(0) - repeats)[self.visited]
            self.visits, self.most = len(self.visited), int(repeats.max())
        rows = self.visits * draws * slices_per_exam
        if rows < global_batch:
            each = f" x {slices_per_exam} slices" if slices_per_exam > 1 else ""
            raise ValueError(
                f"batches: {dataset.name} has {self.visits} samples x {draws} draws{each}, fewer than one batch "
                f"of {global_batch}; allowed: a global batch of at most {rows}, or more draws"
            )
        assert 0 <= rank < world
        self.dataset, self.global_batch, self.local_batch = dataset, global_batch, global_batch // world
        self.seed, self.rank, self.workers, self.device = seed, rank, workers, torch.device(device)
        self.slices_per_exam = slices_per_exam
        self.steps = steps_per_epoch or rows // global_batch
        self.copies = copies
        # Passes of an epoch, the last one perhaps in part.
        self.passes = -(-self.steps * global_batch // (self.visits * slices_per_exam))

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Item]:
        """This rank's batches ``start_step``, ``start_step + 1``, ... of an epoch; earlier ones are not even read."""
        plan = self.plan(epoch, start_step)
        if self.copies is not None:
            plan = ((positions, self.copied(epoch, draw)) for positions, draw in plan)
        fetched = self.fetch_ahead(epoch, plan) if self.workers else (self.fetch(epoch, *rows) for rows in plan)
        with closing(fetched):
            for batch in fetched:
                yield {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def plan(self, epoch: int, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(positions, draw numbers) of this rank's rows, batch after batch, each int64 (local_batch,)."""
        count, slices = self.visits, self.slices_per_exam
        orders: dict[int, Tensor] = {}  # pass -> its visiting order, (V,) visits; one pass at a time
        for step in range(start_step, self.steps):
            # this rank's rows, counted through the whole epoch: row r is slice r mod S of visit v = r // S, and visit v
            # is the (v mod V)-th visit of pass v // V
            first = step * self.global_batch + self.rank * self.local_batch
            row_numbers = torch.arange(first, first + self.local_batch)  # (local_batch,)
            visits = row_numbers // slices
            passes = visits // count  # (local_batch,), ascending
            # the end of one pass and the beginning of the next: of the former only these rows are left when the order
            # of the next is made
            parts = []
            for p in range(int(passes[0]), int(passes[-1]) + 1):
                if p not in orders:
                    orders.clear()
                    orders[p] = self.order(epoch, p)
                parts.append(orders[p][(visits % count)[passes == p]].to(torch.int64))
            chosen = torch.cat(parts)
            draws = passes * self.most + (0 if self.copy is None else self.copy[chosen])
            yield chosen if self.visited is None else self.visited[chosen], draws * slices + row_numbers % slices

    def order(self, epoch: int, pass_number: int) -> Tensor:
        """The visits of pass ``pass_number`` of an epoch, int32 (V,), in their order. The first visits are in the order
        that they have without oversampling."""
        values = torch.empty(self.visits, dtype=torch.int64)
        for start in range(0, self.visits, CHUNK):  # in parts: the arithmetic of keys takes several times their memory
            part = slice(start, start + CHUNK)
            values[part] = self.visit_keys((self.seed, "data", epoch, pass_number), part)
        # Of different ids the keys differ, for ``randomness.mix`` is a bijection: any sort gives the one order. numpy's
        # takes half the memory of torch's.
        order = np.argsort(values.numpy(), kind="quicksort" if self.visited is None else "stable")
        return torch.from_numpy(order.astype(np.int32 if self.visits < 2**31 else np.int64))

    def visit_keys(self, parts: tuple[int | str, ...], part: slice) -> Tensor:
        """The keys by which a ``part`` of the visits is sorted, int64 (v,)."""
        if self.visited is None or self.copy is None:
            return randomness.keys(*parts, self.dataset.ids[part])
        ids, copy = self.dataset.ids[self.visited[part]], self.copy[part]
        return torch.where(copy == 0, randomness.keys(*parts, ids), randomness.keys(*parts, ids, copy))

    def fetch(self, epoch: int, positions: Tensor, draw: Tensor) -> Item:
        """The batch of ``positions`` and their ``draw`` numbers, int64 (B,) each; page-locked when it goes to a GPU."""
        batch = self.dataset.fetch(positions, seed=self.seed, epoch=self.drawn_as(epoch), draw=draw)
        if self.device.type != "cuda":
            return batch
        return {name: value if value.is_cuda else value.pin_memory() for name, value in batch.items()}

    def copied(self, epoch: int, draw: Tensor) -> Tensor:
        """Which of the copies the draw numbers of an epoch are, int64 (B,): those of a sample come one after another,
        over all passes of all epochs."""
        assert self.copies is not None
        visit, row = draw // self.slices_per_exam, draw % self.slices_per_exam
        # the pass since the beginning, and the how manieth visit of it
        number = epoch * self.passes + visit // self.most + visit % self.most
        return (number * self.slices_per_exam + row) % self.copies

    def drawn_as(self, epoch: int) -> int:
        """The epoch that the draws of slices and views are keyed by."""
        return epoch if self.copies is None else 0

    def fetch_ahead(self, epoch: int, plan: Iterator[tuple[Tensor, Tensor]]) -> Generator[Item, None, None]:
        """The same batches, fetched by threads. Closing the iterator, or an error in it, ends the threads."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="sslmed-batches")
        waiting: deque[Future[Item]] = deque()
        try:
            for positions, draw in plan:
                waiting.append(pool.submit(self.fetch, epoch, positions, draw))
                # once enough are under way, hand out the oldest: the order stays, and memory is bounded
                if len(waiting) >= AHEAD * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
