"""A diagnosis among sites, head included: what is shared, and one site is a local run."""

from pathlib import Path

import pytest
import torch

from sslmed_dist import checkpoint, config
from sslmed_dist.federation.sites import resolve_for_all, simulated_sites, training_settings
from sslmed_dist.training import job
from tests import knees
from tests.federation import tiny


def settings(folder: Path, count: int) -> config.Config:
    """A frozen encoder with kept features, and a head that ``count`` sites train in two rounds."""
    federated = {
        "rounds": 2,
        "quorum": count,
        "partition": {"name": "iid", "count": count},
        "runtime": "in_process",
        "share": "all",
    }
    tree = knees.tree(
        folder,
        method={"cache": "float16", "weights": "balanced"},
        plan={"batch_size": 2, "copies": 2, "steps_per_epoch": 2},
        federated=federated,
    )
    chosen = training_settings(config.from_tree(tree, "test"))
    return resolve_for_all(chosen, simulated_sites(chosen))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("knee")
    knees.write_exams(place / "knees", train=16, valid=4, planes=("sagittal",))
    return place


def test_two_sites_train_one_head(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config.replace(settings(folder, 2), run={"name": "two"})
    run = tiny.federate(chosen, monkeypatch)
    first, second = tiny.arrays(run, 1), tiny.arrays(run, 2)
    assert {key.split(".")[0] for key in second} == {"encoder", "head"}
    moved = {key.split(".")[0] for key in second if not torch.equal(first[key], second[key])}
    assert moved == {"head"}


def test_one_site_is_a_local_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config.replace(settings(folder, 1), run={"name": "one"})
    run = tiny.federate(chosen, monkeypatch)
    local = job.train(chosen, dataset=simulated_sites(chosen)[0].pretrain, folder=folder / "local")
    own = checkpoint.load(run / "sites" / "site-0" / "state_round_00002.pt")
    assert tiny.same(own["method"], local.method.state_dict())
