"""The per-site table of the PneumoniaMNIST recipe: from hospitals of two processes as from research, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sslmed_dist import config
from sslmed_dist.config import Config
from sslmed_dist.federation.sites import federated_section, resolve_for_all, simulated_sites, training_settings
from sslmed_dist.verbs import federate as verb
from tests.clients.test_figures import table
from tests.clients.test_relay import federate, open_doors
from tests.federation import hospital, tiny
from tests.real_data import real_data

pytestmark = pytest.mark.slow
RECIPE = Path(__file__).parents[2] / "configs" / "federated" / "pneumonia_mio_v3.yaml"
SHORT = ["federated.rounds=2", "plan.steps_per_epoch=5", "federated.evaluate=true", "evaluate.pictures=false"]
SHORT += ["evaluate.protocols=[{name: knn, k: 20}, {name: linear, epochs: 10}]"]
NAMES = ("north", "east", "south", "west")


def recipe(folder: Path, name: str) -> Config:
    """The recipe, shortened, in which each site has a file of its own: the images that its partition gives the site."""
    places = [f"run.dir={folder}", f"run.name={name}"]
    whole = config.load(RECIPE, [*SHORT, *places, f"data.root={real_data('pneumoniamnist.npz')}"])
    for site, own in zip(simulated_sites(training_settings(whole)), NAMES, strict=True):
        everything = torch.arange(len(site.dataset))
        batch = site.dataset.fetch(everything, seed=0, epoch=0, draw=torch.zeros_like(everything))
        labels = batch["labels"].numpy().astype(np.uint8)
        np.savez(folder / f"{own}.npz", train_images=batch["images"][:, 0].numpy(), train_labels=labels[:, None])
    own_data = config.replace(whole, data={"root": str(folder / "{site}.npz")}, federated={"site_names": list(NAMES)})
    chosen = training_settings(own_data)
    return resolve_for_all(chosen, simulated_sites(chosen))


def test_the_table_of_the_recipe_is_the_same(tmp_path: Path) -> None:
    chosen = recipe(tmp_path, "hospitals")
    sites = []
    for name in NAMES:
        own = hospital.site(tmp_path / name, tmp_path / f"{name}.npz", name=name)
        hospital.accept(own, chosen)
        sites.append(own)
    with open_doors(sites):
        folder = federate(chosen, [{"socket": own.socket} for own in sites])
    found = table(folder)
    fed = federated_section(chosen)
    assert {key[:2] for key in found} == {(a, s) for a in (*fed.compare, "federated") if a != "pooled" for s in NAMES}
    assert len(found) == 4 * 4 * 2 * 3  # arms, sites, kNN and linear, three measures
    research = verb.run(config.replace(chosen, run={"name": "research"}))
    assert tiny.same(tiny.arrays(folder, 2), tiny.arrays(research, 2))
    assert table(research) == found
