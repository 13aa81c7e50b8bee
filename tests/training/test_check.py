"""What ``--check`` measures: the parts of a step, each by itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist.training import check, job
from tests import tiny


def test_check_says_which_part_of_a_step_is_slowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a part moves on by itself: 3 s of reading, 2 in the views, 4 in the encoder, 1 for the rest."""
    clock = [0.0]
    monkeypatch.setattr(check.time, "perf_counter", lambda: clock[0])
    work = job.assemble(tiny.settings(tmp_path))

    def slow(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slowed(*arguments: Any, **keywords: Any) -> Any:
            clock[0] += seconds
            return function(*arguments, **keywords)

        return slowed

    monkeypatch.setattr(type(work.dataset), "fetch", slow(type(work.dataset).fetch, 3.0))
    monkeypatch.setattr(work.views, "forward", slow(work.views.forward, 2.0))
    monkeypatch.setattr(work.method.encoder, "forward", slow(work.method.encoder.forward, 4.0))  # both views at once
    monkeypatch.setattr(check.Stepper, "update", slow(check.Stepper.update, 1.0))
    parts = check.seconds_per_step(work)
    assert parts == {"data": 3.0, "views": 2.0, "encoder": 4.0, "loss, backward and optimiser": 1.0}
    assert check.shares(parts) == "encoder 40 %, data 30 %, views 20 %, loss, backward and optimiser 10 %"
    assert not work.method.encoder._forward_hooks and not work.views._forward_pre_hooks
    assert [check.duration(seconds) for seconds in (7.4, 119, 600, 7200)] == ["7 s", "119 s", "10 min", "2.0 h"]
