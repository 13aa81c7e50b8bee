"""Pieces of work that know nothing of each other as Ray tasks, so many at a time: the parts of a diagnosis.

Each piece saves what it does in a folder of its own and goes on from there when it is begun again: by Ray after its
process was lost (``ray.max_failures`` times), or by the user. One that fails leaves the others alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sslmed_dist import config
from sslmed_dist.drivers.ray_cluster import cluster, require_ray, require_room, set_environment
from sslmed_dist.drivers.ray_log import apart
from sslmed_dist.drivers.ray_room import bundle
from sslmed_dist.endings import USER_ERROR, Stopped, line_of
from sslmed_dist.printable import say
from sslmed_dist.training.allocation import ONE_ARENA
from sslmed_dist.training.stopping import Stop

Work = Callable[[], Any]
LOOK_S = 0.2  # how often it is asked whether a task has ended, or a stop is asked for


@dataclass(frozen=True)
class Outcome:
    """How one piece of work ended: with its ``value``, or, where that is None, with a ``line`` and an exit code of
    ``endings``; ``stopped`` where it was asked to."""

    value: Any = None
    line: str = ""
    code: int = 0
    stopped: bool = False


class Tasks(Protocol):
    """Where work runs, as ``run_all`` uses it; a handle stands for a piece of work that was begun."""

    def begin(self, work: Work) -> Any:
        """Start it; returns at once."""
        ...

    def ended(self, handles: Sequence[Any]) -> list[Any]:
        """Those that have ended, after ``LOOK_S`` seconds at most."""
        ...

    def outcome(self, handle: Any) -> Outcome:
        """How an ended one ended."""
        ...

    def interrupt(self, handle: Any) -> None:
        """What Ctrl-C is to a process of its own: it saves and stops. One that has not begun never does."""
        ...


def outcome_of(work: Work, verb: str) -> Outcome:
    """Do the work in this process. What goes wrong is the line that ``sslmed VERB`` would end with."""
    try:
        return Outcome(work())
    except (Stopped, KeyboardInterrupt):
        return Outcome(stopped=True)
    except Exception as error:
        line, code = line_of(error, verb)
        return Outcome(line=line.removeprefix(f"sslmed {verb}: "), code=code)


def run_all(works: Mapping[str, Work], tasks: Tasks, most: int, stop: Callable[[], bool]) -> dict[str, Any]:
    """The value of each of the ``works`` by its name, ``most`` of them at a time, begun in their order.

    A failure is said when it happens, and the others go on. Then ``ValueError`` or ``RuntimeError``, by the first one's
    exit code, names all that failed. ``Stopped`` after ``stop``, when all that had begun have saved."""
    waiting, stopped = list(works), False
    running: dict[Any, str] = {}
    outcomes: dict[str, Outcome] = {}
    while running or (waiting and not stopped):
        while waiting and len(running) < most and not stopped:
            name = waiting.pop(0)
            running[tasks.begin(works[name])] = name
        for handle in tasks.ended(list(running)):
            name = running.pop(handle)
            outcomes[name] = tasks.outcome(handle)
            if outcomes[name].line:
                say(f"{name}: failed; the others go on: {outcomes[name].line}")
        if stop() and not stopped:
            stopped = True
            for handle in running:
                tasks.interrupt(handle)
    failed = {name: outcomes[name] for name in works if name in outcomes and outcomes[name].line}
    if failed:
        said = "; ".join(f"{name}: {outcome.line}" for name, outcome in failed.items())
        kept = "" if len(failed) == len(works) else " (what the others did is kept; run again to go on)"
        kind = ValueError if next(iter(failed.values())).code == USER_ERROR else RuntimeError
        raise kind(f"{said}{kept}")
    if stopped or any(outcome.stopped for outcome in outcomes.values()):
        raise Stopped("stopped; run the same command again to go on")
    return {name: outcomes[name].value for name in works}


class RayTasks:
    """``Tasks`` of a Ray cluster that this process has joined; each has the CPUs and GPUs of a worker of ``ray``."""

    def __init__(self, options: config.Ray, verb: str) -> None:
        import ray

        asked = bundle(options)
        self.ray, self.verb = ray, verb
        self.kept = False  # whether one has done its work, so that the run folder is its own
        self.remote = ray.remote(
            num_cpus=asked.get("CPU", 0),
            num_gpus=asked.get("GPU", 0),
            max_retries=options.max_failures,
            runtime_env={"env_vars": ONE_ARENA},
        )(outcome_of)

    def begin(self, work: Work) -> Any:
        return self.remote.remote(work, self.verb)

    def ended(self, handles: Sequence[Any]) -> list[Any]:
        done: list[Any] = self.ray.wait(list(handles), num_returns=len(handles), timeout=LOOK_S)[0]
        return done

    def outcome(self, handle: Any) -> Outcome:
        from ray.exceptions import RayError, TaskCancelledError

        try:
            found: Outcome = self.ray.get(handle)
            self.kept |= found.value is not None or found.stopped
            return found
        except TaskCancelledError:  # before it had begun
            return Outcome(stopped=True)
        except RayError as error:  # its process was lost more often than ``ray.max_failures``, or it has no node
            line, code = line_of(RuntimeError(str(error).strip().split("\n")[0]), self.verb)
            return Outcome(line=line.removeprefix(f"sslmed {self.verb}: "), code=code)

    def interrupt(self, handle: Any) -> None:
        self.ray.cancel(handle)


def run(works: Mapping[str, Work], settings: config.Config, verb: str) -> dict[str, Any]:
    """``run_all`` of picklable ``works`` on the cluster of ``settings.ray``, joined or started here, at most
    ``ray.num_workers`` at a time. A stop is asked for by a signal, or the file ``stop`` in the run folder.
    ``ValueError`` where Ray is missing or the cluster cannot have that many workers."""
    require_ray()
    set_environment(settings.ray)
    number = min(settings.ray.most, len(works))
    options = config.replace(settings, ray={"num_workers": number, "placement": "pack"}).ray
    if settings.ray.placement != "pack":
        say(f"ray.placement: {settings.ray.placement}: not for these tasks; each goes where there is room")
    begun: list[RayTasks] = []  # empty until Ray may be imported: its log goes where it finds stderr then
    with (
        apart(settings, lambda: any(tasks.kept for tasks in begun)),
        Stop.anew(settings.folder) as stop,
        cluster(options, stop),
    ):
        require_room(options, stop)
        begun.append(RayTasks(options, verb))
        return run_all(works, begun[0], options.most, stop)
