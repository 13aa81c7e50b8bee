"""How the driver of Ray's workers ends: when a stop is obeyed, and what begins again where a process was lost."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import pytest

from sslmed_dist.drivers import ray_train
from sslmed_dist.endings import Stopped


@dataclass
class Watched:
    """What ``leave`` asks of a watch."""

    workers: int
    idles: bool

    def idle(self) -> bool:
        return self.idles


@pytest.mark.parametrize(
    ("state", "workers", "idles", "line"),
    [
        (None, 0, True, "before the workers had started"),
        (None, 2, False, "before the workers had started"),
        ("working", 0, True, None),  # the ledger has not heard of them: work is saved that may be none
        ("working", 2, False, None),
        ("working", 2, True, "while no worker was training"),
        ("stopped", 2, True, None),  # they have saved, are silent since, and Ray takes its time to end them
        ("finished", 2, True, None),
        ("not finite", 2, True, None),
    ],
)
def test_a_stop_waits_for_workers_that_have_saved(
    state: str | None, workers: int, idles: bool, line: str | None
) -> None:
    with pytest.raises(Stopped, match=line) if line else nullcontext():
        ray_train.leave(state, Watched(workers, idles))  # type: ignore[arg-type]


def lost() -> Exception:
    """What Ray's trainer raises where a process was lost while it was starting workers."""
    import ray.train
    from ray.exceptions import ActorDiedError

    return ray.train.ControllerError(ActorDiedError())


@pytest.mark.parametrize(("most", "losses", "starts"), [(2, 2, 3), (2, 5, 3), (0, 1, 1), (-1, 7, 8)])
def test_a_process_that_is_lost_while_workers_start_begins_all_again(
    capsys: pytest.CaptureFixture[str], most: int, losses: int, starts: int
) -> None:
    """Ray itself ends its trainer then, whatever it may restart: seen in a soak of SIGKILLs."""
    pytest.importorskip("ray")
    turns: list[int] = []

    def fit(turn: int) -> None:
        turns.append(turn)
        if turn < losses:
            raise lost()

    with nullcontext() if starts > losses else pytest.raises(RuntimeError, match="could not be started: The actor"):
        try:
            ray_train.again(fit, most, lambda: False)
        except Exception as error:
            ray_train.raise_failure(error, most)
    assert turns == list(range(starts)) and capsys.readouterr().err.count("all start again (") == starts - 1


@pytest.mark.parametrize(("error", "stopped"), [(lost, True), (lambda: ValueError("a backend's mistake"), False)])
def test_nothing_else_begins_again(error: Callable[[], Exception], stopped: bool) -> None:
    """Nor does anything after a stop was asked for."""
    ray = pytest.importorskip("ray.train")
    raised = error() if stopped else ray.ControllerError(error())
    turns: list[int] = []

    def fit(turn: int) -> None:
        turns.append(turn)
        raise raised

    with pytest.raises(ray.ControllerError):
        ray_train.again(fit, -1, lambda: stopped)
    assert turns == [0]
