"""A table whose cells are federations: their figures are those over the held-out samples of all sites."""

import json
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import cli, plain_yaml
from sslmed_dist.drivers import launcher
from tests import tiny
from tests.federation import tiny as federation

FEDERATED = {
    "rounds": 1,
    "partition": {"name": "iid", "count": 3},
    "runtime": "in_process",
    "quorum": 3,
    "compare": [],
}
TABLE: dict[str, Any] = {
    "title": "two strategies on a tiny set",
    "base": "tiny.yaml",
    "rows": {"fedavg": {"federated.compare": ["random"]}, "median": {"federated.strategy": {"name": "median"}}},
    "columns": {"tiny": {}},
    "metric": {"kNN": {"evaluator": {"name": "knn", "k": 5}, "name": "accuracy"}},
}


def test_cells_are_federations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_images(tmp_path / "tiny.npz", train=180, val=20, test=20)
    recipe = tiny.tree(tmp_path, plan={"steps_per_epoch": 1}, federated=FEDERATED)
    del recipe["run"]["name"]
    (tmp_path / "tiny.yaml").write_text(plain_yaml.write(recipe))
    (tmp_path / "table-9.2.yaml").write_text(plain_yaml.write(TABLE))
    begun: list[str] = []

    def in_this_process(settings: Any, resume: str) -> None:
        begun.append(settings.federated.strategy["name"])
        federation.federate(settings, monkeypatch)

    monkeypatch.setattr(launcher, "run", in_this_process)
    command = ["reproduce", str(tmp_path / "table-9.2.yaml")]
    assert cli.main(command) == 0 and begun == ["fedavg", "median"]
    said = capsys.readouterr().out
    top = tmp_path / "runs" / "table-9.2"
    for row in TABLE["rows"]:
        rows = json.loads((top / row / "tiny" / "seed-0" / "evaluate" / "sites.json").read_text())["rows"]
        own = [r for r in rows if (r["arm"], r["metric"]) == ("federated", "accuracy")]
        assert [r["site"] for r in own] == ["site-0", "site-1", "site-2", "all"]
        assert f"| {row} | tiny | kNN | {100 * own[-1]['value']:.2f} (1 seed) |" in said

    assert cli.main(command) == 0 and len(begun) == 2  # nothing is run twice
    assert capsys.readouterr().out == said
    (top / "median" / "tiny" / "seed-0" / "evaluate" / "sites.json").unlink()
    assert cli.main([*command, "--dry-run"]) == 0
    assert "median / tiny / seed-0: begun, not finished: " in capsys.readouterr().out
