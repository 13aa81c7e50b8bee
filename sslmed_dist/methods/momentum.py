"""What methods with a momentum encoder share: the copies, their schedule, and a queue of earlier keys.

Batch norm in the copies runs in training mode and keeps running statistics of its own, as in the papers. MoCo shuffles
its batch over the workers: with batch norm per worker, the statistics would give away which key belongs to which query.
Here a run on several workers synchronises every batch norm (``models.normalization``), so nothing has to be shuffled.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslmed_dist import distributed, registry
from sslmed_dist.arguments import require_least, require_share
from sslmed_dist.methods.method import Method
from sslmed_dist.models import ENCODERS, HEADS
from sslmed_dist.models.interfaces import Encoder, Head

Part = TypeVar("Part", bound=nn.Module)


def frozen_copy(module: Part) -> Part:
    """A copy of ``module`` whose parameters require no gradient, so that no optimiser moves them."""
    return copy.deepcopy(module).requires_grad_(False)


class MomentumMethod(Method):
    """An encoder and a head with slow copies: ``encoder``, ``head``, ``momentum_encoder``, ``momentum_head``.

    After every optimiser step a copy's parameters become m times themselves plus 1 - m times the original's. m is
    ``momentum``, or goes from ``momentum`` to ``momentum_end`` with the share of the run's steps done:
    m = end - (end - start)(cos(pi progress) + 1) / 2 (Grill et al. 2020, Sec. 3.3). The copies are made at the first
    step, so they start from an encoder that was loaded after construction (``run.start_from``, or a federation without
    kept state). A federation that averages encoders leaves the copies at the site.
    """

    momentum_encoder: Encoder
    momentum_head: Head
    head: Head
    started: Tensor
    site_only = ("momentum_", "queue.", "centre")

    def __init__(
        self,
        encoder: Mapping[str, Any] | str,
        head: Mapping[str, Any] | str,
        channels: int,
        momentum: float,
        momentum_end: float | None,
    ) -> None:
        """``encoder`` and ``head`` are entries of ENCODERS and HEADS. ``ValueError`` for a momentum outside [0, 1]."""
        super().__init__()
        self.momentum = require_share("method.momentum", momentum)
        self.momentum_end = momentum if momentum_end is None else require_share("method.momentum_end", momentum_end)
        self.encoder = registry.build(ENCODERS, encoder, "method.encoder", channels=channels)
        self.head: Head = registry.build(HEADS, head, "method.head", in_dim=self.encoder.feature_dim)
        self.momentum_encoder, self.momentum_head = frozen_copy(self.encoder), frozen_copy(self.head)
        self.register_buffer("started", torch.tensor(0))  # 1 once the copies were made; saved with a checkpoint
        self.epoch = self.progress = 0.0

    def momentum_at(self, progress: float) -> float:
        """The momentum m when the share ``progress`` of the run's steps is done."""
        return self.momentum_end - (self.momentum_end - self.momentum) * (math.cos(math.pi * progress) + 1) / 2

    def step_begin(self, epoch: float, progress: float) -> None:
        """Remember ``epoch`` and ``progress``. At a method's first step, copy the encoder and the head."""
        self.epoch, self.progress = epoch, progress
        if not self.started:
            self.momentum_encoder.load_state_dict(self.encoder.state_dict())
            self.momentum_head.load_state_dict(self.head.state_dict())
            self.started.fill_(1)

    @torch.no_grad()
    def step_end(self, progress: float) -> None:
        """Move the copies, with the momentum of the step that was just taken; then ``remember``."""
        copies: list[Tensor] = [*self.momentum_encoder.parameters(), *self.momentum_head.parameters()]
        originals: list[Tensor] = [*self.encoder.parameters(), *self.head.parameters()]
        # copy + (1 - m)(original - copy), for all parameters at once.
        torch._foreach_lerp_(copies, originals, 1.0 - self.momentum_at(self.progress))
        self.remember()

    def remember(self) -> None:
        """Store what ``objective`` put aside (keys, a centre), after the optimiser's step. Nothing by default."""
        return None


class Queue(nn.Module):
    """The last ``size`` keys, unit vectors of ``dim`` numbers; random unit vectors at first.

    Call ``put_aside`` during the objective and ``write`` after the optimiser's step: until then the backward pass needs
    the rows unchanged. All ranks' keys enter in the order of the global batch, the keys of one sample beside each
    other, so ``rows`` (size, dim) does not depend on how many ranks share a batch. ``ids`` (size,) are the ids of the
    samples whose keys they are, -1 for none; ``pointer`` is the row that is overwritten next.
    """

    rows: Tensor
    ids: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int) -> None:
        """``ValueError`` for a size below 1."""
        super().__init__()
        require_least("method.queue", size, 1)
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("ids", torch.full((size,), -1))
        self.register_buffer("pointer", torch.tensor(0))
        self.waiting: tuple[Tensor, Tensor | None] | None = None  # keys and ids between ``put_aside`` and ``write``

    def put_aside(self, keys: Tensor, ids: Tensor | None = None) -> None:
        """Keep ``keys`` (n, V, D) for ``write``: V unit vectors of each sample of this rank. ``ids`` int64 (n,) are the
        samples' ids.

        ``ValueError`` when all ranks' keys of one step are more than the queue holds."""
        count = keys.shape[0] * keys.shape[1] * distributed.world_size()
        if count > len(self.rows):
            raise ValueError(f"method.queue: expected at least {count}, the keys of one step, got {len(self.rows)}")
        self.waiting = (keys.detach(), ids)

    @torch.no_grad()
    def write(self) -> None:
        """Write the keys of the step over the oldest ones."""
        if self.waiting is None:
            return
        keys, ids = self.waiting
        self.waiting = None
        # From the pointer on, around the end of the queue to its start.
        rows = distributed.gather(keys).flatten(0, 1)  # (W n V, D)
        positions = (self.pointer + torch.arange(len(rows), device=rows.device)) % len(self.rows)
        self.rows.index_copy_(0, positions, rows.to(self.rows.dtype))
        if ids is not None:
            self.ids.index_copy_(0, positions, distributed.gather(ids).repeat_interleave(keys.shape[1]))
        self.pointer.add_(len(rows)).remainder_(len(self.rows))
