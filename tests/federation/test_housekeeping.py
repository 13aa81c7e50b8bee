"""What a site throws away: by its rule, in its ledger, and never what the door still answers from."""

import os
from pathlib import Path

import pytest

from sslmed_dist.federation import housekeeping, ledger_page
from sslmed_dist.federation.housekeeping import DAY_S, Every, due, kept_runs, prune
from sslmed_dist.federation.ledger import Ledger, verify
from sslmed_dist.federation.site_file import SiteFile
from tests.federation import hospital, tiny

NOW = 2_000_000_000.0
NAMES = [letter * 64 for letter in "abc"]


def with_runs(folder: Path, days: list[float], size: int = 1_000_000) -> SiteFile:
    """A site with a run of ``size`` bytes for each of ``days`` since it was last written."""
    own = hospital.site(folder, folder, {"gigabytes: 20": "gigabytes: 0.0025"})
    for name, age in zip(NAMES, days, strict=False):
        run = Path(own.state) / "runs" / name
        (run / "own").mkdir(parents=True)
        (run / "own" / "state_round_00001.pt").write_bytes(b"0" * size)
        (run / "answered.json").write_text("{}")
        for path in (run / "own" / "state_round_00001.pt", run / "answered.json", run / "own"):
            os.utime(path, (NOW - age * DAY_S,) * 2)
    return own


@pytest.mark.parametrize(
    ("days", "gone"),
    [
        ([1.0, 2.0], {}),
        ([100.0, 91.0, 1.0], {"a": housekeeping.OLD, "b": housekeeping.OLD}),
        ([3.0, 2.0, 1.0], {"a": housekeeping.MANY}),
        ([1.0, 95.0, 3.0], {"b": housekeeping.OLD}),
        ([100.0], {}),
        ([], {}),
    ],
    ids=[
        "nothing is due",
        "old ones",
        "too much together, the oldest goes",
        "old, then little enough",
        "newest",
        "none",
    ],
)
def test_the_rule_of_age_and_size(tmp_path: Path, days: list[float], gone: dict[str, str]) -> None:
    own = with_runs(tmp_path, days)
    assert {run.folder.name[0]: why for run, why in due(own, NOW)} == gone
    log = Ledger(own.ledger)
    lines = prune(own, log, NOW)
    assert len(lines) == len(gone) and all("1.0 MB deleted" in line for line in lines)
    entries = [entry for entry in log.entries if entry["kind"] == "pruned"]
    assert {entry["configuration"][0]: entry["reason"] for entry in entries} == gone
    assert all("bytes" in ledger_page.line(entry) for entry in entries) and not verify(own.ledger).problems
    assert {run.folder.name[0] for run in kept_runs(own)} == set("abc"[: len(days)]) - gone.keys()
    for name in gone:
        there = {path.name for path in (Path(own.state) / "runs" / (name * 64)).iterdir()}
        assert there == {"pruned", "answered.json"}
    assert prune(own, log, NOW) == []


def test_a_run_that_was_pruned_is_over_and_says_so(tmp_path: Path) -> None:
    chosen = tiny.settings(tmp_path)
    own = hospital.site(tmp_path / "north", Path(chosen.data["root"]))
    digest = hospital.accept(own, chosen)
    door = hospital.door(own)
    assert hospital.said(door.answer(hospital.train(chosen))).kind == "update"
    run = Path(own.state) / "runs" / digest
    assert (run / "own").exists()
    later = run.parent / ("f" * 64)
    later.mkdir()
    prune(own, door.ledger, later.stat().st_mtime + 91 * DAY_S)
    assert {path.name for path in run.iterdir()} == {"pruned", "answered.json"}
    for number in (0, 1):
        reason = hospital.reason(door.answer(hospital.train(chosen, number)))
        assert reason == "this site has deleted what it kept of this run, which is over here"


def test_what_a_crash_left_half_deleted_goes_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = with_runs(tmp_path, [100.0, 1.0])
    log = Ledger(own.ledger)
    with monkeypatch.context() as crash:
        crash.setattr(housekeeping, "empty", lambda folder: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            prune(own, log, NOW)
    assert (Path(own.state) / "runs" / NAMES[0] / "own").exists()
    assert prune(own, log, NOW) == []
    assert not (Path(own.state) / "runs" / NAMES[0] / "own").exists()
    assert [entry["kind"] for entry in log.entries] == ["pruned"]


def test_once_a_day() -> None:
    times, done = iter([0.0, 5.0, DAY_S - 1, DAY_S, DAY_S + 1, 2 * DAY_S]), list[int]()
    daily = Every(DAY_S, lambda: done.append(1), lambda: next(times))
    counts = []
    for _ in range(6):
        daily()
        counts.append(len(done))
    assert counts == [1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("change", [("days: 90", "days: 0"), ("gigabytes: 20", "gigabytes: -1")])
def test_a_wrong_rule_is_named(tmp_path: Path, change: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=f"keep.{change[0].split(':')[0]}: expected a number"):
        hospital.site(tmp_path, tmp_path, dict([change]))
