"""Sites of two processes behind Flower's own programs: a process for each message, arrays in chunks."""

from pathlib import Path

import pytest

from sslmed_dist.drivers import flower_programs, launcher
from sslmed_dist.federation import payload
from sslmed_dist.federation.local_round import initial_arrays
from tests.clients.test_relay import NAMES, federate, open_doors, two_sites
from tests.federation import tiny

pytestmark = [pytest.mark.flower, pytest.mark.slow]
LARGE = {"encoder": {"name": "resnet", "depth": 9, "width": 64, "stem": "cifar"}}
TWO = {"partition": {"name": "iid", "count": 2}}
CHUNK = 5_000_000  # bytes, Flower's


def test_flowers_own_programs_carry_the_payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deployed"
    folder.mkdir()
    chosen = tiny.settings(
        folder,
        method=LARGE,
        federated={**TWO, "rounds": 1, "runtime": "deployment", "timeout_s": 240.0, "site_names": list(NAMES)},
    )
    model = initial_arrays(chosen)
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in model.values())
    size = len(payload.pack("train", {"protocol": 1, "version": "1", "config": "", "round": 0}, model))
    assert numbers > CHUNK and size < 1.02 * numbers
    sites = two_sites(folder, chosen)
    nodes = [{"socket": own.socket} for own in sites]
    monkeypatch.setattr(flower_programs, "node_config", lambda _, number, name: f'socket="{nodes[number]["socket"]}"')
    with open_doors(sites):
        launcher.run(chosen)
    assert "round 1 of 1: 2 of 2 sites" in tiny.log_of(chosen.folder)
    again = tiny.settings(tmp_path, "one_process", method=LARGE, federated={**TWO, "rounds": 1})
    sites = two_sites(tmp_path, again)
    with open_doors(sites):
        federate(again, [{"socket": own.socket} for own in sites])
    assert tiny.same(tiny.arrays(chosen.folder, 1), tiny.arrays(again.folder, 1))
