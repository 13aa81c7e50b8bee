"""A run's curves as TensorBoard events, for people who look at training there."""

from collections.abc import Sequence
from pathlib import Path

from sslmed_dist import curve_events
from sslmed_dist.run_folder import Metrics


def write_events(runs: Sequence[Path], out: Path) -> None:
    """Write the scalars of each run's ``metrics.jsonl`` to ``out``/RUN; steps are optimiser steps, or rounds.

    ``ValueError`` where tensorboard is not installed.
    """
    curve_events.require("--tensorboard")
    for run in runs:
        folder = out / run.resolve().name
        writer = curve_events.open_writer(folder)
        curve_events.add(writer, Metrics(run / "metrics.jsonl").read())
        writer.close()
        for number, file in enumerate(sorted(folder.glob(curve_events.EVENTS))):
            # TensorBoard puts the host's name into that of the file
            file.rename(file.with_name(f"{curve_events.EVENTS[:-1]}{number:010d}"))
