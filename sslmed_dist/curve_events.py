"""A run's scalars as TensorBoard events: of a finished run, or written while it trains."""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

EVENTS = "events.out.tfevents.*"  # the files that TensorBoard reads


def require(asked_by: str) -> None:
    """``ValueError`` naming who asks, where tensorboard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError(f"{asked_by} needs tensorboard: pip install 'sslmed-dist[report]'")


def open_writer(folder: Path, purge_step: int | None = None) -> Any:
    """torch's writer into ``folder``. TensorBoard forgets what older files there hold from ``purge_step`` on."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)


def add(writer: Any, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of ``metrics.jsonl``."""
    for row in rows:
        tag, step = place(row)
        writer.add_scalar(tag, row["value"], step, walltime=row.get("time"))


def place(row: Mapping[str, Any]) -> tuple[str, int]:
    """(tag, step) of a row of metrics: the step is the round of a federation, else the optimiser step, else 0."""
    tag = "/".join(str(part) for part in (row.get("split"), row.get("site"), row["name"]) if part)
    steps = (row.get("round"), row.get("step"))
    return tag, next((step for step in steps if step is not None), 0)


class LiveCurves:
    """TensorBoard events that follow ``metrics.jsonl`` while a run writes it. Each start writes all of its rows anew,
    so that after a kill no scalar is missing or there twice, and those of before ``run.tensorboard`` are there too."""

    def __init__(self, folder: Path) -> None:
        """``ValueError`` where tensorboard is not installed, or ``folder`` is a link."""
        require("run.tensorboard")
        if folder.is_symlink():
            raise ValueError(f"{folder}: is a link; nothing is written through it")
        self.folder = folder
        self.writer: Any = None

    def write(self, rows: list[dict[str, Any]], before: Iterable[Mapping[str, Any]]) -> None:
        """Add rows. ``before`` are those that ``metrics.jsonl`` has already; they are read at the first call only."""
        if self.writer is None:
            old = list(self.folder.glob(EVENTS))
            self.writer = open_writer(self.folder, purge_step=0)
            add(self.writer, before)
            self.writer.flush()
            for file in old:  # what they hold is in the new one
                file.unlink()
        add(self.writer, rows)
        self.writer.flush()

    def close(self) -> None:
        """End the file; the next ``write`` starts anew."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
