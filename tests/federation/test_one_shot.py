"""The federated recipe of one-shot segmentation, on phantoms: every arm is scored at every site, and cases are kept."""

import csv
import json
from pathlib import Path

import pytest

from sslmed_dist import cli
from sslmed_dist.data.phantom import PHANTOMS

RECIPE = Path(__file__).parents[2] / "configs" / "federated" / "abdomen_cowpro.yaml"
SMALL = ("data.size=null", "views.size=48", "data.min_size=20", "data.body_threshold=20", "plan.batch_size=2")
SHORT = ("plan.steps_per_epoch=1", "federated.rounds=1", "federated.partition.count=2", "run.name=fed")


@pytest.mark.slow
@pytest.mark.flower
@pytest.mark.parametrize("terms", [(), ("method.overlap=1", "method.edge=1")])
def test_sites_are_scored_on_their_own_scans(
    terms: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = PHANTOMS["abdomen"](tmp_path / "data", exams=8, sites=2, size=48, slices=8)
    places = (f"data.root={root}", f"run.dir={tmp_path / 'runs'}", "method.encoder.width=4", "method.encoder.depth=9")
    assert cli.main(["federate", str(RECIPE), *SMALL, *SHORT, *places, *terms]) == 0, capsys.readouterr().err
    folder = tmp_path / "runs" / "fed"
    rows = json.loads((folder / "evaluate" / "sites.json").read_text())["rows"]
    dice = {(row["arm"], row["site"]): row for row in rows if row["metric"] == "dice"}
    arms = {"copy_mask", "random", "local", "pooled", "federated"}
    assert {arm for arm, _ in dice if " - " not in arm} == arms
    assert {site for arm, site in dice if arm == "federated"} == {"site-0", "site-1", "all"}
    assert dice["federated", "all"]["n"] == 4 and dice["federated", "site-0"]["groups"] == 2
    assert all(0 <= row["value"] <= 1 for (arm, _), row in dice.items() if " - " not in arm)
    with (folder / "evaluate" / "sites-cases.csv").open() as file:
        cases = list(csv.DictReader(file))
    assert len(cases) == len(arms) * 2 * 2 * 4  # arms, sites, pairs of a site, organs
    assert {case["arm"] for case in cases} == {f"{arm}, site-{n}" for arm in arms for n in (0, 1)}
    assert {path.name for path in (folder / "pictures").glob("*.png")} == {"episodes.png", "segmentation.png"}
    logged = {json.loads(line)["name"] for line in (folder / "metrics.jsonl").read_text().splitlines()}
    assert ({"overlap", "edge"} <= logged) == bool(terms)
    assert json.loads((folder / "environment.json").read_text())["phantom_data"] is True
