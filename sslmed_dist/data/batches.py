"""Batches by global step: which samples form batch s of epoch e does not depend on how many workers share it."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import torch
from torch import Tensor

from sslmed_dist import randomness
from sslmed_dist.data.dataset import Dataset, Item

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
        repeats = torch.ones(len(dataset), dtype=torch.int64) if dataset.repeats is None else dataset.repeats
        self.visited = torch.repeat_interleave(torch.arange(len(dataset)), repeats)  # (V,) positions
        self.copy = torch.arange(len(self.visited)) - (repeats.cumsum(0) - repeats)[self.visited]  # (V,) 0, 1, ...
        self.most = int(repeats.max())
        rows = len(self.visited) * draws * slices_per_exam
        if rows < global_batch:
            each = f" x {slices_per_exam} slices" if slices_per_exam > 1 else ""
            raise ValueError(
                f"batches: {dataset.name} has {len(self.visited)} samples x {draws} draws{each}, fewer than one batch "
                f"of {global_batch}; allowed: a global batch of at most {rows}, or more draws"
            )
        assert 0 <= rank < world
        self.dataset, self.global_batch, self.local_batch = dataset, global_batch, global_batch // world
        self.seed, self.rank, self.workers, self.device = seed, rank, workers, torch.device(device)
        self.slices_per_exam = slices_per_exam
        self.steps = steps_per_epoch or rows // global_batch
        self.copies = copies
        # Passes of an epoch, the last one perhaps in part.
        self.passes = -(-self.steps * global_batch // (len(self.visited) * slices_per_exam))

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
        count, slices = len(self.visited), self.slices_per_exam
        orders: dict[int, Tensor] = {}  # pass -> its visiting order, (N,) positions
        for step in range(start_step, self.steps):
            # this rank's rows, counted through the whole epoch: row r is slice r mod S of visit v = r // S, and visit v
            # is the (v mod V)-th visit of pass v // V
            first = step * self.global_batch + self.rank * self.local_batch
            row_numbers = torch.arange(first, first + self.local_batch)  # (local_batch,)
            visits = row_numbers // slices
            passes = visits // count  # (local_batch,), ascending
            # keep the orders of the passes that this batch touches, and forget those that are over
            current_passes = range(int(passes[0]), int(passes[-1]) + 1)
            orders = {p: orders[p] if p in orders else self.order(epoch, p) for p in current_passes}
            # within each pass, look the rows up in its order
            chosen = torch.cat([orders[p][(visits % count)[passes == p]] for p in current_passes])
            draws = passes * self.most + self.copy[chosen]
            yield self.visited[chosen], draws * slices + row_numbers % slices

    def order(self, epoch: int, pass_number: int) -> Tensor:
        """The visits of pass ``pass_number`` of an epoch, int64 (V,), in their order. The first visits are in the order
        that they have without oversampling."""
        ids = self.dataset.ids[self.visited]
        first = randomness.keys(self.seed, "data", epoch, pass_number, ids)
        further = randomness.keys(self.seed, "data", epoch, pass_number, ids, self.copy) if self.most > 1 else first
        return torch.argsort(torch.where(self.copy == 0, first, further), stable=True)

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
