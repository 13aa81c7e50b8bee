"""Where a run is trained is chosen in one place, whichever verb asks for it."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest

from sslmed_dist import cli, config, interface
from sslmed_dist.config import Config
from sslmed_dist.drivers import choice, local, ray_train
from sslmed_dist.verbs.reproduce import cell
from tests import tiny


@pytest.mark.parametrize("driver", ["local", "ray"])
def test_every_verb_trains_by_the_driver_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    trained: list[tuple[str, str]] = []

    def by(name: str, settings: Config, resume: str) -> None:
        trained.append((name, resume))

    monkeypatch.setattr(local, "train", lambda settings, resume="auto": by("local", settings, resume))
    monkeypatch.setattr(ray_train, "train", lambda settings, resume="auto": by("ray", settings, resume))
    settings = config.replace(tiny.settings(tmp_path), driver=driver, ray={"num_workers": 2})
    (tmp_path / "tiny.yaml").write_text(config.dump(settings))
    words = {"config": tmp_path / "tiny.yaml", "overrides": [], "check": False, "resume": "never"}
    assert cli.train(argparse.Namespace(**words)) == 0
    interface.train(settings, resume="never")
    cell.train(SimpleNamespace(settings=settings))  # type: ignore[arg-type]
    assert choice.train(settings, "never") is None
    assert trained == [(driver, "never"), (driver, "never"), (driver, "auto"), (driver, "never")]
