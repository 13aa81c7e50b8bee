"""The same run in another table: it is copied, not trained again, for on one machine it would be the same bits."""

import dataclasses
import os
import shutil
from pathlib import Path

from sslmed_dist import config
from sslmed_dist.atomic_files import appearing, refuse_links, write_atomically
from sslmed_dist.verbs.reproduce.cell import Cell, changes, complete

MEASURED = ("evaluate", "analysis", "report.html", ".lock")  # a cell is measured anew, as its own table asks


def find(cell: Cell) -> Path | None:
    """A run folder of another table, or of another cell of this one, that holds the cell's run, trained to its end.
    None where there is none, where the cell was begun, and for a federation or a diagnosis."""
    settings = cell.settings
    own = settings.folder
    if (own / "config.yaml").is_file() or settings.federated is not None or settings.diagnose is not None:
        return None
    depth = 3 if cell.fold is None else 4  # TABLE/ROW/COLUMN/[fold-K/]seed-N
    runs = own.parents[depth]
    for file in sorted(runs.glob(f"{'*/' * depth}{own.name}/config.yaml")):
        if file.parent != own and complete(file.parent) and same(cell, config.load(file)):
            return file.parent
    return None


def same(cell: Cell, before: config.Config) -> bool:
    """Whether ``before`` is the cell's run: seed, start, driver and device too, on which its bits depend."""
    now = cell.settings
    keys = ("seed", "start_from", "continue_from", "device")
    alike = all(getattr(before.run, key) == getattr(now.run, key) for key in keys) and before.driver == now.driver
    return alike and before.data.get("root") == now.data.get("root") and not changes(before, now)


def copy(cell: Cell, source: Path) -> None:
    """Copy the run ``source`` into the cell's folder, all at once; its configuration says the cell's own name, folder
    and protocols, and ``notices.txt`` whence it came. What was measured of it stays behind."""
    refuse_links(source)
    run = cell.settings.run
    settings = config.replace(config.load(source / "config.yaml"), run={"dir": run.dir, "name": run.name})
    settings = dataclasses.replace(settings, evaluate=cell.settings.evaluate)
    with appearing(cell.settings.folder) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*MEASURED))
        write_atomically(folder / "config.yaml", config.dump(settings).encode())
        notices = folder / "notices.txt"
        before = notices.read_text(encoding="utf-8") if notices.is_file() else ""
        place = os.path.relpath(source, cell.settings.folder)
        write_atomically(notices, f"{before}not trained here: a copy of the same run, {place}\n".encode())
