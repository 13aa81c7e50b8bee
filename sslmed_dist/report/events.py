"""A run's curves as TensorBoard events, for people who look at training there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslmed_dist.run_folder import Metrics


def write_events(runs: Sequence[Path], out: Path) -> None:
    """Write the scalars of each run's ``metrics.jsonl`` to ``out``/RUN; steps are optimiser steps, or rounds.

    ``ValueError`` where tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard needs tensorboard: pip install 'sslmed-dist[report]'") from None
    for run in runs:
        writer = SummaryWriter(str(out / run.resolve().name))
        for row in Metrics(run / "metrics.jsonl").read():
            tag, step = place(row)
            writer.add_scalar(tag, row["value"], step, walltime=row.get("time"))
        writer.close()
        for number, file in enumerate(sorted((out / run.resolve().name).glob("events.out.tfevents.*"))):
            # TensorBoard puts the host's name into that of the file
            file.rename(file.with_name(f"events.out.tfevents.{number:010d}"))


def place(row: Mapping[str, Any]) -> tuple[str, int]:
    """(tag, step) of a row of metrics: the step is the round of a federation, else the optimiser step, else 0."""
    tag = "/".join(str(part) for part in (row.get("split"), row.get("site"), row["name"]) if part)
    steps = (row.get("round"), row.get("step"))
    return tag, next((step for step in steps if step is not None), 0)
