"""How a run stands at a time: what can be said of it from its folder."""

from dataclasses import dataclass
from pathlib import Path

from sslmed_dist.verbs.watch.federation import Federation
from sslmed_dist.verbs.watch.files import settings_of
from sslmed_dist.verbs.watch.scalars import Read
from sslmed_dist.verbs.watch.training import State, Training


@dataclass(frozen=True)
class Situation:
    """How a run stands. ``done`` and ``total`` count steps, or rounds of a federation; ``total`` None is not known yet.
    ``lines`` are (what, in words). ``over``: nothing more is to come by itself."""

    name: str
    state: State
    done: int
    total: int | None
    lines: tuple[tuple[str, str], ...]

    @property
    def over(self) -> bool:
        """Whether the run has ended, in whatever way."""
        return self.state in ("finished", "stopped", "failed")


def look(folder: Path, read: Read, now: float) -> Situation:
    """How the run in ``folder`` stands at ``now``, seconds since 1970. ``ValueError`` for what is no run folder."""
    settings = settings_of(folder)
    if settings is None:
        words = "a start has made the folder and has not written its configuration yet"
        return Situation(folder.name, "starting", 0, None, (("state", words),))
    view = Federation(folder, settings, read, now) if settings.federated else Training(folder, settings, read, now)
    state, words = view.state()
    lines = [("run", view.title()), ("state", words), *view.lines(state)]
    return Situation(view.name, state, view.done, view.total, tuple((what, line) for what, line in lines if line))
