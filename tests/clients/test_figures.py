"""What encoders are worth at each site: one table, the same to the bit, wherever the sites live."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslmed_dist import config
from sslmed_dist.config import Config
from sslmed_dist.drivers.launcher import figures_wanted
from sslmed_dist.federation import ledger_page
from sslmed_dist.federation.ledger import Ledger, verify
from sslmed_dist.federation.sites import everything, resolve_for_all, simulated_sites, training_settings
from sslmed_dist.json_files import read_object
from sslmed_dist.run_folder import read_metrics
from tests import tiny as images
from tests.clients.test_relay import NAMES, federate, open_doors
from tests.federation import hospital, tiny

HEALTH = "[loss, missed_rounds, health_embedding_std, health_effective_rank, health_uniformity, health_alignment]"
RULES = {"    patients: 50": "    patients: 10", "scalars: [loss, missed_rounds]": f"scalars: {HEALTH}"}
ARMS = ("raw_pixels", "random", "local", "federated")


def recipe(folder: Path, name: str, **federated: Any) -> Config:
    """Two sites with data of their own, two rounds, then figures."""
    for number, site in enumerate(NAMES):
        if not (folder / f"{site}.npz").exists():
            images.write_images(folder / f"{site}.npz", train=90 + 20 * number, val=10, test=20)
    asked = {"site_names": list(NAMES), "partition": {"name": "iid", "count": 2}, "evaluate": True, "health": 64}
    asked |= {"compare": ["raw_pixels", "random", "local", "pooled"], "rounds": 2, "runtime": "in_process"}
    tree = images.tree(
        folder,
        run={"name": name},
        data={"root": str(folder / "{site}.npz")},
        plan={"steps_per_epoch": 2, "checkpoint_every": None},
        evaluate={"protocols": [{"name": "knn", "k": 5}, {"name": "linear", "epochs": 5}]},
        federated={**asked, **federated},
    )
    chosen = training_settings(config.from_tree(tree, "test"))
    return resolve_for_all(chosen, simulated_sites(chosen))


def hospitals(folder: Path, chosen: Config, rules: dict[str, str] | None = None) -> list[Any]:
    """Two sites of two processes that have accepted the run."""
    sites = [
        hospital.site(folder / name, Path(str(chosen.data["root"]).replace("{site}", name)), rules or RULES, name=name)
        for name in NAMES
    ]
    for own in sites:
        hospital.accept(own, chosen)
    return sites


def table(folder: Path) -> dict[tuple[str, str, str, str], tuple[Any, ...]]:
    """The rows of single sites: value, interval and counts by arm, site, evaluator and metric."""
    rows = read_object(folder / "evaluate" / "sites.json")["rows"]
    single = [row for row in rows if row["site"] != "all" and row["arm"] in ARMS]
    keys = ("value", "low", "high", "n", "groups")
    return {(r["arm"], r["site"], r["evaluator"], r["metric"]): tuple(r[key] for key in keys) for r in single}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, list[Any]]:
    """A federation of two hospitals to its end: its settings, its run folder, its sites."""
    folder = tmp_path_factory.mktemp("hospitals")
    chosen = recipe(folder, "hospitals")
    sites = hospitals(folder, chosen)
    with open_doors(sites):
        return chosen, federate(chosen, [{"socket": own.socket} for own in sites]), sites


@pytest.mark.parametrize(
    "runtime",
    [
        "in_process",
        *(pytest.param(r, marks=[pytest.mark.slow, pytest.mark.flower]) for r in ("simulation", "deployment")),
    ],
)
def test_the_table_is_the_same_from_hospitals_and_from_research(
    deployed: tuple[Config, Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    from sslmed_dist.verbs import federate as verb

    chosen, folder, _ = deployed
    found = table(folder)
    assert {key[:2] for key in found} == {(arm, site) for arm in ARMS for site in NAMES}
    assert {key[2:] for key in found} >= {("knn", "auc"), ("linear", "accuracy")}
    # The whole command on the same sites: asked by messages, then measured once more with all arms.
    run, asked = {"name": "research", "dir": str(tmp_path)}, {"runtime": runtime}
    research = config.replace(chosen, run=run, federated=asked, evaluate={"pictures": False})
    if runtime == "in_process":
        tiny.federate(
            research, monkeypatch
        )  # as the launcher's subprocess does, and faster; then nothing is left to do
        assert not figures_wanted(research.folder, research)
    research_folder = verb.run(research)
    assert tiny.same(tiny.arrays(folder, 2), tiny.arrays(research_folder, 2))
    assert table(research_folder) == found
    assert json.loads((research_folder / "federation.json").read_text()) == {
        "status": "finished",
        "rounds": 2,
        "figures": 2,
    }
    assert not (research_folder / "arms" / "local-north").exists()  # the site trained it
    rows = read_object(research_folder / "evaluate" / "sites.json")["rows"]
    # 30 and 35 images are held out, each of a patient of its own.
    assert {(row["n"], row["groups"]) for row in rows if row["site"] == "all"} == {(65, 65)}
    arms = {row["arm"] for row in rows}
    assert {"pooled", "federated - local"} <= arms


def test_health_is_told_of_every_round_and_chooses_the_best(deployed: tuple[Config, Path, list[Any]]) -> None:
    _, folder, _ = deployed
    rows = [row for _, row in read_metrics(folder / "metrics.jsonl") if row["name"].startswith("health_")]
    assert {(row["site"], row["round"]) for row in rows} == {(site, n) for site in NAMES for n in (0, 1, 2)}
    assert len(rows) == 4 * 2 * 3
    sums: dict[int, dict[str, float]] = {n: dict.fromkeys(NAMES, 0.0) for n in (0, 1, 2)}
    for row in rows:
        if row["name"] in ("health_alignment", "health_uniformity"):
            sums[row["round"]][row["site"]] += row["value"]
    written = read_object(folder / "evaluate" / "sites.json")
    samples = {"north": 90, "east": 105}  # three quarters of 120 and of 140 images
    means = {n: sum(sums[n][s] * samples[s] for s in NAMES) for n in (1, 2)}
    best = min(means, key=lambda n: (means[n], -n))
    assert written["best_round"] == best
    assert f"round {best} is the best" in tiny.log_of(folder)
    assert any(row["arm"] == "best_round" for row in written["rows"]) == (best == 1)


def test_figures_stand_in_the_ledger_in_full(deployed: tuple[Config, Path, list[Any]]) -> None:
    _, folder, sites = deployed
    for own in sites:
        ledger = Ledger(own.ledger)
        (first, *_) = [entry for entry in ledger.entries if entry.get("message") == "figures"]
        assert verify(own.ledger).problems == () and first["tensors"] == []
        titles = ["knn", "linear"]
        told = {(f[0], own.site, titles[f[1]], f[2]): tuple(f[3:]) for f in first["figures"]}
        assert told == {key: value for key, value in table(folder).items() if key[1] == own.site}
        page = ledger_page.page(own.site, ledger.entries, verify(own.ledger))
        assert page.count("| federated | 0 | auc |") == page.count("| raw_pixels | 0 | auc |") >= 1
        assert set(first["scalars"]) == {
            f"health_{n}" for n in ("embedding_std", "effective_rank", "uniformity", "alignment")
        }


def test_a_site_may_withhold_and_refuse(tmp_path: Path) -> None:
    chosen = recipe(tmp_path, "strict", compare=["random"], rounds=1, health=None)
    sites = hospitals(tmp_path, chosen, {"    patients: 50": "    patients: 33"})  # 30 and 35 are held out
    with open_doors(sites):
        folder = federate(chosen, [{"socket": own.socket} for own in sites])
    line = "north gives no figures: its rules refuse: this site's held-out part has fewer patients"
    assert line in tiny.log_of(folder)
    written = read_object(folder / "evaluate" / "sites.json")
    assert {row["site"] for row in written["rows"]} == {"east"} and written["left_out"] == ["north"]
    assert np.isfinite(written["rows"][0]["value"])


def test_sites_with_data_of_their_own(tmp_path: Path) -> None:
    chosen = recipe(tmp_path, "own")
    sites = simulated_sites(chosen)
    assert [site.name for site in sites] == list(NAMES)
    together = everything(sites)
    assert len(together) == sum(len(site.pretrain) for site in sites) == len(torch.unique(together.ids))
    with pytest.raises(ValueError, match="data.oversample: the data of sites that have their own"):
        everything(simulated_sites(config.replace(chosen, data={"oversample": {}})))
    with pytest.raises(ValueError, match="federated.evaluate: evaluate.protocols is empty"):
        training_settings(config.replace(chosen, evaluate={"protocols": []}))
    with pytest.raises(ValueError, match="federated.evaluate: sites do not measure by one_shot; allowed: exam_probe"):
        training_settings(config.replace(chosen, evaluate={"protocols": [{"name": "one_shot"}]}))
