"""How a federation stands, in words."""

from collections.abc import Iterator
from pathlib import Path

from sslmed_dist import config
from sslmed_dist.json_files import read_object
from sslmed_dist.printable import plural
from sslmed_dist.verbs.watch.files import log_warnings
from sslmed_dist.verbs.watch.scalars import Read, seconds_per_step
from sslmed_dist.verbs.watch.training import State, Training


class Federation(Training):
    """A run of rounds at sites."""

    unit = "round"

    def __init__(self, folder: Path, settings: config.Config, read: Read, now: float) -> None:
        super().__init__(folder, settings, read, now)
        assert settings.federated is not None
        self.federated = settings.federated
        rounds = [point.round for point in read.points if point.round is not None]
        self.done = max([*rounds, self.saved.number if self.saved else 0], default=0)
        self.total = settings.federated.rounds
        self.ending = read_object(folder / "federation.json") if (folder / "federation.json").is_file() else {}

    def where(self) -> str:
        """The runtime and who takes part."""
        return f"federation ({self.federated.runtime}), {len(self.read.sites) or 'no'} sites heard of"

    def state(self) -> tuple[State, str]:
        """As the server wrote it down, or by the age of its last line."""
        if self.ending.get("status") == "finished" and self.done >= (self.total or 0):
            return "finished", "finished"
        if self.ending.get("status") == "failed":
            return "failed", f"failed: {self.ending.get('reason', 'no reason given')}"
        return self.alive()

    def seconds(self) -> float | None:
        """Those of the last round."""
        return self.read.newest.get("seconds")

    def lines(self, state: State) -> Iterator[tuple[str, str]]:
        """As of a training; then a line a site."""
        yield from super().lines(state)
        for name, values in sorted(self.read.sites.items()):
            behind = self.done - int(values["round"])
            said = [f"loss {values['loss']:.4g}" if "loss" in values else "no loss told"]
            said += [f"{plural(behind, 'round')} behind"] if behind else []
            missed = int(values.get("missed_rounds", 0))
            said += [f"its own state was {missed} rounds behind"] if missed else []
            yield f"  {name}", ", ".join(said)

    def progress(self) -> str:
        """Rounds."""
        sites = self.read.newest.get("sites")
        took = "" if sites is None else f", {sites:.0f} sites in the last"
        return f"{self.done} of {self.total}{took}"

    def loss(self) -> str:
        """The mean over sites; under noise what is told instead."""
        epsilon = self.read.newest.get("epsilon")
        return super().loss() if epsilon is None else f"withheld (federated.privacy); epsilon {epsilon:.3g}"

    def speed(self) -> str:
        """Images a second at a site and in all, by the last round."""
        seconds, sites = self.seconds(), self.read.newest.get("sites")
        if not seconds or not sites or not self.done or not self.read.points:
            return "not known before a round is over"
        steps = self.read.points[-1].step / (self.read.points[-1].round or 1)
        each = steps * self.settings.plan.batch_size / seconds
        return f"{seconds:.1f} s a round; {each * sites:,.0f} images/s, {each:,.1f} a site"

    def left(self) -> str:
        """At the speed of the last rounds."""
        rounds = [point._replace(step=point.round or 0) for point in self.read.points]
        each = seconds_per_step(rounds) or self.seconds()
        return "not known yet" if each is None else self.until(max((self.total or 0) - self.done, 0) * each)

    def failures(self) -> str:
        """As of a training, and the warnings in ``federation.log``."""
        warnings = log_warnings(self.folder / "federation.log")
        seen = super().failures()
        if not warnings:
            return seen
        told = f"{len(warnings)} in federation.log, the last: {warnings[-1]}"
        return told if seen == "none seen" else f"{told}; {seen}"
