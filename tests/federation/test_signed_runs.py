"""Flower's own programs and the signature of the app: a site runs what a trusted key has signed, and nothing else."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from sslmed_dist.drivers import flower_programs, launcher
from sslmed_dist.federation import app_signature
from tests.federation import tiny

pytestmark = [pytest.mark.flower, pytest.mark.slow]
SITES = {"partition": {"name": "iid", "count": 2}, "quorum": 1, "rounds": 1, "timeout_s": 150.0}


def test_a_site_that_trusts_another_key_runs_nothing_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other site does: it trusts the key of this start."""
    signing = flower_programs.sign_app
    starting = flower_programs.Workplace.start

    def distrusted(workplace: flower_programs.Workplace) -> tuple[Mapping[str, str], Path]:
        signed, trusted = signing(workplace)
        (trusted.parent / "other.yaml").write_text(app_signature.trusted(["ab" * 32]))
        return signed, trusted

    def start(workplace: flower_programs.Workplace, name: str, command: list[str], *more: Mapping[str, str]) -> object:
        if name == "supernode-1":
            command = [*command[:-1], str(Path(command[-1]).parent / "other.yaml")]
        return starting(workplace, name, command, *more)

    monkeypatch.setattr(flower_programs, "sign_app", distrusted)
    monkeypatch.setattr(flower_programs.Workplace, "start", start)
    chosen = tiny.settings(tmp_path, federated={**SITES, "runtime": "deployment"})
    launcher.run(chosen)
    log = tiny.log_of(chosen.folder)
    assert "the app is signed" in log and "round 1 of 1: 1 of 2 sites" in log
    assert "its node does not run this app: no key that it trusts has signed it" in log
    assert not (chosen.folder / "sites" / "site-1").exists(), "no code of the app ran there"
