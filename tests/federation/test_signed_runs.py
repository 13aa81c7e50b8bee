"""Flower's own programs and the signature of the app: a site runs what a trusted key has signed, and nothing else."""

from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from sslmed_dist.drivers import launcher, superlink
from sslmed_dist.federation import app_signature
from tests.federation import tiny

pytestmark = [pytest.mark.flower, pytest.mark.slow]
SITES = {"partition": {"name": "iid", "count": 2}, "quorum": 1, "rounds": 1, "timeout_s": 150.0}


def test_a_site_that_trusts_another_key_runs_nothing_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other site does: it trusts the key of this start."""
    starting = superlink.supernode
    other = tmp_path / "other.yaml"
    other.write_text(app_signature.trusted(["ab" * 32]))

    def start(place: Any, name: str, *, trusted: Path, **more: Any) -> tuple[Popen[bytes], int]:
        return starting(place, name, trusted=other if name == "supernode-1" else trusted, **more)

    monkeypatch.setattr(superlink, "supernode", start)
    chosen = tiny.settings(tmp_path, federated={**SITES, "runtime": "deployment"})
    launcher.run(chosen)
    log = tiny.log_of(chosen.folder)
    assert "the app is signed" in log and "round 1 of 1: 1 of 2 sites" in log
    assert "its node does not run this app: no key that it trusts has signed it" in log
    assert not (chosen.folder / "sites" / "site-1").exists(), "no code of the app ran there"
