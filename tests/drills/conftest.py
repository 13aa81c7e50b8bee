"""One federation for all drills, and one long run of it."""

from collections.abc import Iterator

import pytest

from tests.drills.hospitals import Hospitals, Run, begin, long_run, three_hospitals

SEEDS = {"first": 0, "second": 1}  # federated.seed


@pytest.fixture(scope="package")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    """Three sites that have joined."""
    with three_hospitals(tmp_path_factory.mktemp("drills")) as made:
        yield made


@pytest.fixture(scope="package")
def two_runs(hospitals: Hospitals) -> dict[str, Run]:
    """Two runs that went on at once, to their ends."""
    runs = {name: begin(hospitals, name, rounds=2, seed=seed) for name, seed in SEEDS.items()}
    for name in runs:
        assert hospitals.made.programs.pop(name).wait(timeout=300) == 0, hospitals.made.said(name)
    return runs


@pytest.fixture(scope="package")
def run(hospitals: Hospitals, two_runs: dict[str, Run]) -> Run:
    """A run that goes on through all drills."""
    began = long_run(hospitals, max(run.seconds for run in two_runs.values()))
    began.wait_for("3 of 3 sites", 0)
    return began
