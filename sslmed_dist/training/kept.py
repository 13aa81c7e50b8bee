"""A set in whose place stands what frozen layers give of it, computed once: what ``feature_cache`` and ``stem_cache``
share."""

import threading
from abc import abstractmethod
from pathlib import Path

import torch
from torch import nn

from sslmed_dist.config import Plan
from sslmed_dist.data.dataset import Dataset


class Kept(Dataset):
    """What is kept of ``plan.copies`` keyed copies of each sample of ``dataset``: row = sample x ``copies`` + copy. A
    leaf says what that is (``fetch``, whose ``draw`` are copies) and how large (``bytes``, ``line``)."""

    bytes: int

    def __init__(
        self, dataset: Dataset, views: nn.Module, plan: Plan, seed: int, device: torch.device, copies_of: str
    ) -> None:
        """``ValueError``: no ``plan.copies``, which are those of ``copies_of``, in words."""
        if plan.copies is None:
            raise ValueError(f"method.cache: needs plan.copies, the number of draws of each {copies_of}")
        super().__init__(
            name=dataset.name,
            ids=dataset.ids,
            labels=dataset.labels,
            classes=dataset.classes,
            channels=dataset.channels,
            groups=dataset.groups,
        )
        self.repeats = dataset.repeats
        self.dataset, self.views, self.plan, self.seed = dataset, views, plan, seed
        self.copies, self.device, self.lock = plan.copies, device, threading.Lock()
        self.rows = len(dataset) * self.copies

    @abstractmethod
    def line(self) -> str:
        """What is kept, in words: how many, and how large."""

    def require_room(self, cache_gb: float, instead: str) -> None:
        """``ValueError`` for more to keep than ``method.cache_gb``; ``instead``: what else is allowed, in words."""
        if self.bytes > cache_gb * 1e9:
            raise ValueError(
                f"method.cache: {self.line()}, more than method.cache_gb {cache_gb:g}; allowed: a larger "
                f"method.cache_gb, {instead}, or cache: off"
            )

    def open(self, folder: Path) -> None:
        """Where training begins or goes on; nothing where all is kept in memory."""

    def close(self, folder: Path) -> None:
        """Where training has ended; nothing where all is kept in memory."""

    def value_range(self) -> tuple[float, float]:
        return self.dataset.value_range()

    def to(self, device: str | torch.device) -> "Kept":
        """Itself: what is kept goes to the device of the encoder as it is fetched."""
        return self
