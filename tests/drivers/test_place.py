"""A program that is started again where it ends by itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from sslmed_dist.drivers import place

LASTS = [sys.executable, "-c", "import time; time.sleep(600)"]
ENDS = [sys.executable, "-c", "raise SystemExit(3)"]


class Clock:
    """Stands for ``time`` in the module: moves only when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_it_is_started_again_after_growing_pauses_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, commands = Clock(), [ENDS] * place.MOST_RENEWED + [LASTS] + [ENDS] * 2
    monkeypatch.setattr(place, "time", clock)
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(commands[len(started)]))
        return started[-1]

    def end() -> None:
        if commands[len(started) - 1] is LASTS:
            started[-1].kill()
        started[-1].wait()

    program = place.Renewed("one", tmp_path / "one.log", begin)
    for pause in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0):
        end()
        count = len(started)
        assert program.poll() is None and len(started) == count, "not at once"
        clock.now += pause - 0.01
        assert program.poll() is None and len(started) == count
        clock.now += 0.01
        assert program.poll() is None and len(started) == count + 1
    line = f"one has ended by itself (exit code 3) and is started again; see {tmp_path / 'one.log'}"
    assert capsys.readouterr().err.splitlines() == [line] * place.MOST_RENEWED
    assert program.poll() is None, "the last one lasts"
    clock.now += place.RENEWED_WITHIN_S  # what was before is forgotten
    end()
    assert program.poll() is None
    assert "(exit code -9)" in capsys.readouterr().err
    clock.now += 0.5
    assert program.poll() is None and len(started) == 8
    end()
    program.ends = [clock.now] * place.MOST_RENEWED
    assert program.poll() == 3, "too often within the hour"
