"""Trackers that people already run, by the names that ``run.track`` gives them: one table, one leaf each."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sslmed_dist import registry
from sslmed_dist.config import Config
from sslmed_dist.curve_events import LiveCurves
from sslmed_dist.trackers.mlflow_store import Mlflow
from sslmed_dist.trackers.offline_wandb import OfflineWandb
from sslmed_dist.trackers.tracker import Follower, Tracked


def tensorboard(*, run: Tracked) -> LiveCurves:
    """Events in ``tensorboard/`` of the run folder, which each start writes anew."""
    return LiveCurves(run.folder / "tensorboard")


TRACKERS: Mapping[str, Callable[..., Any]] = {"tensorboard": tensorboard, "mlflow": Mlflow, "wandb": OfflineWandb}


def followers(settings: Config, folder: Path) -> list[Follower]:
    """The trackers that ``run.track`` asks for, and ``run.tensorboard``, which is the same as ``[tensorboard]``.
    Nothing is written before the first row. ``ValueError``: a name that the table has not, a wrong argument, one that
    stands there twice, or a library that is not installed."""
    run = Tracked(folder, settings)
    leaves = list(settings.run.track or ())
    names = [str(leaf.get("name")) for leaf in leaves]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"run.track: {name} stands there {names.count(name)} times; give it once")
    made: list[Follower] = [
        registry.build(TRACKERS, leaf, f"run.track[{number}]", run=run) for number, leaf in enumerate(leaves)
    ]
    if settings.run.tensorboard and "tensorboard" not in names:
        made.append(tensorboard(run=run))
    return made
