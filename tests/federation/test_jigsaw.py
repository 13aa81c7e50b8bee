"""Jigsaw pretraining among sites: they agree on the arrangements by the recipe's seed, and one site is a local run."""

from pathlib import Path

import pytest
import torch

from sslmed_dist import checkpoint
from sslmed_dist.federation.sites import simulated_sites
from sslmed_dist.training import build, job
from tests.federation import tiny

JIGSAW = {
    "views": {"name": "jumbled", "size": 12, "patch": 4, "arrangements": {"rule": "uniform", "classes": 6, "seed": 5}},
    "method": {
        "name": "jigsaw",
        "encoder": {"name": "skid", "width": 1 / 128},
        "head": {"name": "projection", "hidden": 8, "layers": 2},
    },
    "optim": {"name": "rmsprop", "lr": 1e-3, "alpha": 0.9, "eps": 1e-7},
    "plan": {"slices_per_exam": 4},
}


def test_three_sites_train_one_jigsaw_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tiny.settings(tmp_path, **JIGSAW)
    assert chosen.method["pretext_classes"] == 6
    tables = [build.build_views(chosen, site.pretrain).arrangements for site in simulated_sites(chosen)]
    assert len(tables) == 3 and all(torch.equal(table, tables[0]) for table in tables)  # type: ignore[arg-type]
    folder = tiny.federate(chosen, monkeypatch)
    shared = tiny.arrays(folder, 2)
    assert {key.split(".")[0] for key in shared} == {"encoder"}
    assert any(not torch.equal(shared[key], value) for key, value in tiny.arrays(folder, 1).items())


def test_one_site_is_a_local_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"rounds": 2, "quorum": 1, "partition": {"name": "iid", "count": 1}, "share": "all"}
    chosen = tiny.settings(tmp_path, **JIGSAW, federated=one)
    folder = tiny.federate(chosen, monkeypatch)
    local = job.train(chosen, dataset=simulated_sites(chosen)[0].pretrain, folder=tmp_path / "local")
    own = checkpoint.load(folder / "sites" / "site-0" / "state_round_00002.pt")
    assert tiny.same(own["method"], local.method.state_dict())
