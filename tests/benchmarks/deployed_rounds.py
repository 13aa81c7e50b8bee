"""How long a round of three hospitals on this machine takes with next to no training: TLS, registered keys, two
processes a site, two optimiser steps on random images. ``python -m tests.benchmarks.deployed_rounds [ROUNDS]``."""

import re
import statistics
import sys
import tempfile
from pathlib import Path
from unittest import mock

from sslmed_dist.drivers import flower_programs, launcher
from sslmed_dist.drivers.flower_programs import Workplace
from tests.clients.test_relay import open_doors
from tests.federation import hospital, tiny

NAMES = ("north", "east", "south")


def seconds(rounds: int, folder: Path) -> list[float]:
    """What each round took, from the orders that leave the server to the last reply."""
    federated = {"partition": {"name": "iid", "count": 3}, "rounds": rounds, "quorum": 3, "runtime": "deployment"}
    chosen = tiny.settings(folder, federated={**federated, "timeout_s": 240.0, "site_names": list(NAMES)})
    sites = [hospital.site(folder / name, Path(str(chosen.data["root"])), name=name) for name in NAMES]
    for own in sites:
        hospital.accept(own, chosen)

    def socket(workplace: Workplace, number: int, name: str) -> str:
        return f'socket="{sites[number].socket}"'

    with mock.patch.object(flower_programs, "node_config", socket), open_doors(sites):
        launcher.run(chosen)
    return [float(took) for took in re.findall(r"3 of 3 sites, .* ([0-9.]+) s", tiny.log_of(chosen.folder))]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        took = seconds(int(sys.argv[1]) if len(sys.argv) > 1 else 10, Path(place))
    print(f"{len(took)} rounds, median {statistics.median(took):.1f} s, from {min(took):.1f} to {max(took):.1f} s")
