"""A federation is the same training elsewhere: one site equals a local run, and a repeated run has the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import checkpoint, run_folder
from sslmed_dist.federation.replies import Reply
from sslmed_dist.federation.shared import shared_keys
from sslmed_dist.federation.sites import own_site, simulated_sites
from sslmed_dist.training import job
from tests.federation import tiny

ONE_SITE = {"rounds": 3, "local_epochs": 2, "quorum": 1, "partition": {"name": "iid", "count": 1}}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("share", ["encoder", "all"])
def test_one_site_over_three_rounds_is_a_local_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: str, precision: str
) -> None:
    chosen = tiny.settings(tmp_path, federated={**ONE_SITE, "share": share}, plan={"precision": precision})
    folder = tiny.federate(chosen, monkeypatch)
    site = simulated_sites(chosen)[0]
    local = job.train(chosen, dataset=site.pretrain, folder=tmp_path / "local")
    expected = local.method.state_dict()
    own = checkpoint.load(folder / "sites" / "site-0" / "state_round_00003.pt")
    assert local.state.step == 3 * 2 * 2
    assert tiny.same(own["method"], expected)
    shared = tiny.arrays(folder, 3)
    assert tiny.same(shared, {key: expected[key] for key in shared_keys(local.method, share)})
    assert next(iter(shared.values())).dtype == getattr(torch, precision)
    assert not tiny.same(shared, tiny.arrays(folder, 2))


def test_runs_repeat_bit_for_bit_whatever_the_order_of_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from server import in_process

    first = tiny.federate(tiny.settings(tmp_path, "first"), monkeypatch)

    def backwards(grid: in_process.InProcessGrid) -> list[int]:
        return sorted(grid.contexts, reverse=True)

    received = in_process.InProcessGrid.send_and_receive
    monkeypatch.setattr(in_process.InProcessGrid, "get_node_ids", backwards)
    monkeypatch.setattr(in_process.InProcessGrid, "send_and_receive", lambda *a, **k: list(received(*a, **k))[::-1])
    second = tiny.federate(tiny.settings(tmp_path, "second"), monkeypatch)
    assert tiny.same(tiny.arrays(first, 2), tiny.arrays(second, 2))
    values = [[(r["name"], r["value"]) for r in rows(f) if r["name"] != "seconds"] for f in (first, second)]
    assert values[0] == values[1]


def test_metrics_have_every_site_and_the_weighted_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.federate(tiny.settings(tmp_path), monkeypatch)
    losses = [row for row in rows(folder) if row["name"] == "loss" and row["round"] == 2]
    sites = {row["site"]: row["value"] for row in losses if "site" in row}
    mean = [row["value"] for row in losses if "site" not in row]
    sizes = {site.name: len(site.pretrain) for site in simulated_sites(tiny.settings(tmp_path))}
    assert sites.keys() == sizes.keys()
    expected = sum(sites[name] * size for name, size in sizes.items()) / sum(sizes.values())
    assert mean == [pytest.approx(expected, rel=1e-12)]
    assert {row["step"] for row in rows(folder)} == {2, 4}


def test_without_kept_state_the_sites_start_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tiny.federate(tiny.settings(tmp_path, "kept"), monkeypatch)
    reset = tiny.federate(tiny.settings(tmp_path, "reset", federated={"keep_state": False}), monkeypatch)
    assert tiny.same(tiny.arrays(kept, 1), tiny.arrays(reset, 1))
    assert not tiny.same(tiny.arrays(kept, 2), tiny.arrays(reset, 2))
    assert not (reset / "sites").exists()


def test_the_average_is_weighted_and_keeps_the_type() -> None:
    replies = [
        Reply("b", {"w": torch.tensor([4.0])}, 1),
        Reply("a", {"w": torch.tensor([1.0])}, 3),
    ]
    average = tiny.averaged(replies)["w"]
    assert average.dtype == torch.float32
    assert average.item() == 1.75


def test_a_hospital_has_ids_of_its_own(tmp_path: Path) -> None:
    chosen = tiny.settings(tmp_path)
    north, south = own_site(chosen, "north"), own_site(chosen, "south")
    assert len(north.dataset) == 128
    assert not set(north.pretrain.ids.tolist()) & set(south.pretrain.ids.tolist())
    draw = torch.zeros(1, dtype=torch.int64)
    batch = north.pretrain.fetch(torch.tensor([0]), seed=0, epoch=0, draw=draw)
    assert batch["index"][0] == north.pretrain.ids[0]


def rows(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run."""
    return list(run_folder.Metrics(folder / "metrics.jsonl").read())
