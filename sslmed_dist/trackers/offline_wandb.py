"""A run in Weights & Biases' offline format. Nothing is sent: `wandb sync` does that, when a person calls it."""

import importlib.util
import shutil
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from sslmed_dist.curve_events import place
from sslmed_dist.trackers.tracker import Row, Tracked, Tracker, new_identity, setting

STEP = "step"  # the axis of all curves


class OfflineWandb(Tracker):
    """``{name: wandb, project: ...}``. Writes ``wandb/offline-run-DATE-ID`` in ``run.dir``, always offline.

    A resumed run keeps its id. Each start writes all rows of ``metrics.jsonl`` anew and then removes the folders that
    earlier starts wrote under this id, so no step is there twice. Host, user, command line, code, git and the machine's
    load, which wandb records by itself, are switched off. ``ValueError`` where wandb is not installed.
    """

    name = "wandb"

    def __init__(self, project: str = "sslmed-dist", *, run: Tracked) -> None:
        super().__init__(run)
        if importlib.util.find_spec("wandb") is None:
            raise ValueError("run.track: wandb needs wandb: pip install 'sslmed-dist[wandb]'")
        self.project = project
        self.live: Any = None
        self.old: list[Path] = []

    def open(self) -> None:
        """Begin a folder under the run's id; the older ones go when the new one has their rows."""
        setting("WANDB_ERROR_REPORTING", "false")
        import wandb

        identity = self.run.known_as(self.name)
        if identity is None:
            identity = new_identity()
            self.run.remember(self.name, identity)
        folder = self.run.folder.parent
        self.old = [path for path in (folder / "wandb").glob(f"offline-run-*-{identity}") if not path.is_symlink()]
        settings = wandb.Settings(
            mode="offline",
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            host="-",
            username="-",
            email="",
            program="",
            program_relpath="",
        )
        self.live = wandb.init(
            dir=str(folder),
            project=self.project,
            id=identity,
            name=self.run.settings.run.name,
            config=self.run.parameters(),
            settings=settings,
            reinit="create_new",
        )
        self.old = [path for path in self.old if path != Path(self.live.settings.sync_dir)]
        self.live.define_metric("*", step_metric=STEP)

    def add(self, rows: Iterable[Row]) -> None:
        """One entry a step; the first call holds what earlier starts wrote, so their folders can go."""
        placed = ((*place(row), float(row["value"])) for row in rows)
        for step, group in groupby(placed, key=lambda entry: entry[1]):
            self.live.log({**{tag: value for tag, _, value in group}, STEP: step})
        for path in self.old:
            shutil.rmtree(path, ignore_errors=True)
        self.old = []

    def end(self) -> None:
        """Close the file."""
        self.live.finish()
