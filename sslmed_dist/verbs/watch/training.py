"""How a training stands, in words."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from sslmed_dist import config
from sslmed_dist.json_files import read_object
from sslmed_dist.printable import duration, plural
from sslmed_dist.sections import is_phantom
from sslmed_dist.verbs.watch.files import held, newest_checkpoint
from sslmed_dist.verbs.watch.scalars import Read, pauses, seconds_per_step, usual_interval

State = Literal["starting", "running", "silent", "stopped", "failed", "finished"]
SILENT_S, SILENT = 60.0, 10.0  # a run is silent after these seconds and so many times the usual interval


class Training:
    """A run of one driver."""

    unit = "step"

    def __init__(self, folder: Path, settings: config.Config, read: Read, now: float) -> None:
        self.folder, self.settings, self.read, self.now = folder, settings, read, now
        self.name = str(settings.run.name)
        self.per_step = seconds_per_step(read.points)
        self.steps = self.steps_per_epoch()
        self.saved = newest_checkpoint(folder / "checkpoints")
        self.done = max(read.points[-1].step if read.points else 0, self.saved.number if self.saved else 0)
        self.total = None if self.steps is None else settings.plan.epochs * self.steps

    def steps_per_epoch(self) -> int | None:
        """Those of the plan, or that the run has written down; of one of before, as many as its first epoch had."""
        if self.settings.plan.steps_per_epoch is not None:
            return self.settings.plan.steps_per_epoch
        written = self.environment().get("steps_per_epoch")
        if isinstance(written, int) and written > 0:
            return written
        whole = sorted(self.read.steps_in)[:-1]
        return None if not whole else self.read.steps_in[whole[-1]] // (whole[-1] + 1)

    def environment(self) -> Mapping[str, Any]:
        """What the run has written of the machine and the data; empty where it has not yet."""
        written = self.folder / "environment.json"
        return read_object(written) if written.is_file() else {}

    def title(self) -> str:
        """What trains on what, where."""
        settings = self.settings
        phantom = " (phantoms)" if is_phantom(config.to_tree(settings), self.environment()) else ""
        return f"{self.name}: {settings.method['name']} on {settings.data['name']}{phantom}, {self.where()}"

    def where(self) -> str:
        """The driver."""
        asked: Any = self.settings.ray.num_workers
        if self.settings.driver == "local":
            return "driver local"
        if not isinstance(asked, int):
            return f"driver ray, {' to '.join(map(str, asked))} workers"
        return f"driver ray, {plural(asked, 'worker')}" if asked else "driver ray, in one process"

    def workers(self) -> int | None:
        """How many share the batch; None where the folder does not say: that of an elastic run changes, and torchrun's
        ranks leave no trace."""
        asked: Any = self.settings.ray.num_workers
        return asked if self.settings.driver == "ray" and isinstance(asked, int) and asked > 0 else None

    def ray(self) -> Mapping[str, Any]:
        """What Ray's workers last said of themselves."""
        file = self.folder / "ray.json"
        return read_object(file) if self.settings.driver == "ray" and file.is_file() else {}

    def state(self) -> tuple[State, str]:
        """The state, and why."""
        told, plan = self.ray(), self.settings.plan
        if self.total is not None and self.done >= self.total:
            return "finished", "finished"
        if self.read.lowest and plan.patience and self.read.validated is not None:
            since = self.read.validated - self.read.lowest[1]
            if since >= plan.patience:
                return "finished", f"finished early: no lower validation loss for {since} epochs"
        if told.get("state") == "not finite":
            return "failed", f"failed: {told.get('line', 'not finite')}"
        if told.get("state") == "stopped" and told.get("step") == self.done:
            return "stopped", f"stopped at step {self.done}; the same command goes on"
        return self.alive()

    def alive(self) -> tuple[State, str]:
        """Whether it is going on, by the age of the last line and, on this machine, the folder's lock."""
        if held(self.folder / ".lock"):
            held_by = "a process of this machine is writing it"
            return ("running", f"running: {held_by}") if self.read.points else ("starting", f"starting: {held_by}")
        last = self.last_sign()
        age, limit = self.now - last, max(SILENT_S, SILENT * (usual_interval(self.read.points) or 0.0))
        ahead = f"; the clock of the machine that writes is {-age:.0f} s ahead" if age < -1 else ""
        if age <= limit:
            state: State = "running" if self.read.points else "starting"
            return state, f"{state}: last sign {duration(max(age, 0))} ago{ahead}"
        return "silent", (
            f"silent for {duration(age)}: stopped, killed or waiting; the same command goes on from the last checkpoint"
        )

    def last_sign(self) -> float:
        """When something was last written, seconds since 1970."""
        files = [file for name in ("config.yaml", "ray.json") if (file := self.folder / name).exists()]
        signs = [file.stat().st_mtime for file in files] + ([self.saved.time] if self.saved else [])
        return max([self.read.points[-1].time] if self.read.points else signs, default=0.0)

    def lines(self, state: State) -> Iterator[tuple[str, str]]:
        """(what, in words), most important first."""
        yield self.unit, self.progress()
        yield "loss", self.loss()
        yield "speed", self.speed()
        yield "waiting", self.waiting()
        yield "left", self.left() if state in ("running", "silent") else ""
        yield "saved", self.checkpoint(state)
        yield "failures", self.failures()

    def progress(self) -> str:
        """Steps and epochs."""
        epochs = self.settings.plan.epochs
        if self.total is None or self.steps is None:
            return f"{self.done:,}; how many an epoch has is known when the first is over; {plural(epochs, 'epoch')}"
        epoch = min(self.done // self.steps + 1, epochs)
        return f"{self.done:,} of {self.total:,} ({100 * self.done / self.total:.0f} %), epoch {epoch} of {epochs}"

    def loss(self) -> str:
        """The newest loss, and beside it the rate and the gradient's norm."""
        names = {"loss": "", "lr": "learning rate ", "gradient_norm": "gradient norm "}
        values = [f"{word}{self.read.newest[name]:.4g}" for name, word in names.items() if name in self.read.newest]
        return ", ".join(values) or "none yet"

    def speed(self) -> str:
        """Images a second, of all and of each worker."""
        if self.per_step is None:
            return "not known before two lines are written"
        rate, workers = self.settings.plan.batch_size / self.per_step, self.workers()
        if workers is None or workers == 1:
            return f"{rate:,.3g} images/s" if rate < 100 else f"{rate:,.0f} images/s"
        return f"{rate:,.0f} images/s, {rate / workers:,.1f} a worker"

    def waiting(self) -> str:
        """The share of a step that waits for data, where the run measures it."""
        share = self.read.newest.get("wait_share")
        return "" if share is None else f"{100 * share:.0f} % of a step for data"

    def left(self) -> str:
        """How long it will still take at this speed."""
        if self.per_step is None or self.total is None:
            return "not known yet"
        return self.until((self.total - self.done) * self.per_step)

    def until(self, seconds: float) -> str:
        """A span, and when it ends."""
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.now + seconds))
        return f"about {duration(seconds)}, till {end}"

    def checkpoint(self, state: State) -> str:
        """The newest checkpoint, its age, and what a failure now would cost."""
        if self.saved is None and state in ("finished", "stopped"):
            return "no checkpoint is left: nothing can be measured, exported or gone on with"
        if self.saved is None:
            return "no checkpoint yet: a failure now costs everything"
        age = max(self.now - self.saved.time, 0.0)
        since = self.done - self.saved.number
        cost = f", {since:,} {self.unit}{'s' * (since != 1)} since" if since > 0 else ""
        return f"{self.unit} {self.saved.number:,}, {duration(age)} ago{cost}"

    def failures(self) -> str:
        """What the folder shows of failures: starts of the driver, long pauses, lines that cannot be read."""
        said = []
        starts = len([entry for entry in self.folder.glob("ray/*") if entry.is_dir()])
        if starts > 1:
            said.append(f"started {starts} times")
        stopped = pauses(self.read.points)
        if stopped:
            longest = max(stopped, key=lambda pause: pause.seconds)
            said.append(
                f"{plural(len(stopped), 'pause')} (a restart, an evaluation or a stop), the longest "
                f"{duration(longest.seconds)} before step {longest.step:,}"
            )
        if self.read.unreadable:
            said.append(f"{self.read.unreadable} lines of metrics.jsonl cannot be read")
        return "; ".join(said) or "none seen"
