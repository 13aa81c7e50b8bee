"""What a person sees while training: a bar on a terminal (where rich is installed), a line now and then elsewhere."""

import sys
import time
from typing import Any

from sslmed_dist.training.waiting import WAIT_SHARE


class Progress:
    """Shows step, share done, throughput and the logged scalars. ``total`` steps; ``batch`` images per step."""

    def __init__(self, title: str, total: int, batch: int, start: int = 0, every_s: float = 10.0) -> None:
        self.title, self.total, self.batch, self.every_s = title, total, batch, every_s
        self.first_step, self.started, self.last = start, time.monotonic(), 0.0
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
                from rich.progress import Progress as Bar
            except ImportError:
                return self
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.first_step, note="")
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show that ``step`` steps are done."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = (step - self.first_step) * self.batch / seconds  # images a second since this start of the run
        note = f"loss {values['loss']:.4f}  {rate:.0f} images/s" if "loss" in values else f"{rate:.0f} images/s"
        if WAIT_SHARE in values:
            note += f"  {100 * values[WAIT_SHARE]:.0f} % waiting for data"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, note=note)
        elif step == self.total or time.monotonic() - self.last >= self.every_s:
            self.last = time.monotonic()
            left = (self.total - step) * seconds / max(step - self.first_step, 1)
            print(f"{self.title}  step {step}/{self.total}  {note}  {left:.0f} s left", file=sys.stderr, flush=True)
