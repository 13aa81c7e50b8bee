"""``sslmed federate`` end to end in one process: four arms, per-site rows, pictures, a report, and going on."""

import json
from pathlib import Path

import pytest

from sslmed_dist import config
from sslmed_dist.federation import accountant
from sslmed_dist.report import write_report
from sslmed_dist.training import pretrained
from sslmed_dist.verbs import federate
from tests import tiny

FEDERATED = {
    "rounds": 2,
    "partition": {"name": "iid", "count": 2},
    "runtime": "in_process",
    "compare": ["raw_pixels", "random", "local", "pooled"],
}


def recipe(folder: Path) -> config.Config:
    """Two sites, two rounds of two steps."""
    tiny.write_images(folder / "tiny.npz", train=120, val=20, test=20)
    return tiny.settings(folder, plan={"steps_per_epoch": 2}, federated=FEDERATED)


def test_every_arm_is_measured_at_every_site(tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    settings = recipe(tmp_path)
    folder = federate.run(settings)
    written = json.loads((folder / "evaluate" / "sites.json").read_text())
    arms = {"raw_pixels", "random", "local", "pooled", "federated"}
    found = {(row["arm"], row["site"]) for row in written["rows"] if not row.get("difference")}
    assert found == {(arm, site) for arm in arms for site in ("site-0", "site-1", "all")}
    differences = {row["arm"] for row in written["rows"] if row.get("difference")}
    assert differences == {f"federated - {arm}" for arm in arms - {"federated"}}
    steps = {
        name: pretrained.load(folder / "arms" / name).file.name for name in ("local-site-0", "local-site-1", "pooled")
    }
    assert set(steps.values()) == {"step_000000004.pt"}  # the same four optimiser steps as the federation's sites
    assert pretrained.load(folder).file.name == "round_00002.pt"

    before = (folder / "evaluate" / "sites.json").read_bytes()
    federate.run(settings)  # everything is done: only the measuring is repeated, with the same figures
    assert (folder / "evaluate" / "sites.json").read_bytes() == before

    page, markdown = write_report([folder], pictures=True)
    html = page.read_text()
    assert "data:image/png;base64" in html and "Research use only" in html and "site-1" in html.lower()
    assert "federated" in markdown.read_text()
    assert str(tmp_path) not in html


def test_noise_is_described_before_a_run_and_refused_where_it_makes_no_sense(tmp_path: Path) -> None:
    noise = {"privacy": {"clip": 1.0, "noise_multiplier": 10.0, "delta": 1e-5}}
    settings = config.replace(recipe(tmp_path), federated=noise)
    with pytest.raises(ValueError, match="federated.privacy: encoder.*stay as before the first round"):
        federate.run(settings)
    assert not settings.folder.exists()
    settings = config.replace(settings, federated={"strategy": {"name": "fedbn"}})
    [line] = [line for line in federate.check(settings) if line.startswith("privacy")]
    epsilon = accountant.epsilon(2 * accountant.rho(10.0), 1e-5)
    assert line.startswith(
        f"privacy   epsilon {epsilon:.3g} at delta 1e-05, for a site's whole data set against any other"
    )


def test_sites_are_dealt_once_for_all_seeds(tmp_path: Path) -> None:
    settings = recipe(tmp_path)
    other = config.replace(settings, run={"seed": 5})
    for one, two in zip(federate.prepare(settings)[1], federate.prepare(other)[1], strict=True):
        assert one.dataset.ids.equal(two.dataset.ids) and one.test.equal(two.test)


def test_steps_of_an_epoch_must_be_stated(tmp_path: Path) -> None:
    settings = config.replace(recipe(tmp_path), plan={"steps_per_epoch": None})
    with pytest.raises(ValueError, match="plan.steps_per_epoch: missing"):
        federate.check(settings)
