"""A run's curves as TensorBoard events, for people who look at training there."""

from collections.abc import Sequence
from pathlib import Path

from sslmed_dist import curve_events, outputs
from sslmed_dist.report.runs import distinct
from sslmed_dist.run_folder import Metrics


def events_folders(runs: Sequence[Path], out: Path, *, force: bool) -> list[Path]:
    """The folder below ``out`` for the events of each run: what tells it apart from the others
    (``runs.distinct``).

    ``ValueError`` where tensorboard is not installed, for a run that is named twice, and for a folder that holds
    anything but events of an earlier report, or these without ``force``. Nothing is written.
    """
    curve_events.require("--tensorboard")
    folders = [out / name for name in distinct(runs)]
    for folder in folders:
        require_own(folder, force=force)
    return folders


def require_own(folder: Path, *, force: bool) -> None:
    """``ValueError`` naming what is in ``folder`` and must stay (``outputs.require_writable``)."""
    outputs.require_folders(folder)
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    outputs.require_writable([(path, curve_events.is_ours) for path in inside], force=force)


def write_events(runs: Sequence[Path], folders: Sequence[Path]) -> None:
    """Write the scalars of each run's ``metrics.jsonl`` to its folder (``events_folders``); those of an earlier report
    are replaced. Steps are optimiser steps, or rounds."""
    for run, folder in zip(runs, folders, strict=True):
        old = list(curve_events.ours_in(folder))
        file = curve_events.EventFile(folder)
        file.add(Metrics(run / "metrics.jsonl").read())
        file.close()
        for path in old:
            path.unlink()
