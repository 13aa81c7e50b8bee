"""What earlier versions wrote loads, goes on and means the same: see ``tests/artefacts/README.md``."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import checkpoint, config
from sslmed_dist.cli import main
from sslmed_dist.data import DATASETS
from sslmed_dist.report.runs import read_run
from sslmed_dist.training import pretrained

OLD = Path(__file__).parent / "artefacts" / "v0.1.0"
CONFIGURATIONS: dict[str, Any] = json.loads((OLD / "configurations.json").read_text())


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the artefacts to write in, as the current folder: their paths are relative to it."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    monkeypatch.chdir(folder)
    return folder


def same_norms(found: Mapping[str, torch.Tensor], wanted: Mapping[str, float]) -> None:
    """Norms agree to 1e-3: another processor rounds otherwise, another method or position is far away."""
    assert found.keys() == wanted.keys()
    norms = {name: float(value.double().norm()) for name, value in found.items()}
    assert norms == pytest.approx(dict(wanted), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_resolved_configuration_is_the_same_run(name: str) -> None:
    before = CONFIGURATIONS[name]
    settings = config.from_tree(before["config"], name)
    assert config.fingerprint(settings) == before["fingerprint"]


def test_a_checkpoint_says_which_run_it_is_of() -> None:
    for file in ("run/checkpoints/step_000000002.pt", "federation/checkpoints/round_00001.pt"):
        saved = checkpoint.load(OLD / file)
        assert config.fingerprint(config.from_tree(saved["config"], file)) == saved["fingerprint"]


def test_a_run_folder_is_read_and_its_encoder_is_loaded() -> None:
    run = read_run(OLD / "run")
    assert run.name == "run" and run.seed == 3 and len(run.rows) > 10 and run.metrics
    found = pretrained.load(OLD / "run")
    assert found.file.name == "step_000000002.pt" and found.encoder.feature_dim == 16
    copy = pretrained.load(OLD / "run", part="momentum").encoder.state_dict()
    assert not torch.equal(copy["conv1.weight"], found.encoder.state_dict()["conv1.weight"])


def test_a_run_goes_on_where_it_was_and_ends_where_it_ended(old: Path) -> None:
    assert main(["train", "recipe.yaml"]) == 0
    steps = [row["step"] for row in map(json.loads, (old / "run" / "metrics.jsonl").read_text().splitlines())]
    assert sorted(set(steps)) == [1, 2, 3, 4]
    golden = json.loads((old / "golden.json").read_text())
    same_norms(checkpoint.load(old / "run/checkpoints/step_000000004.pt")["method"], golden["run"])
    before = {key(row): row["value"] for row in read_run(OLD / "run").rows}
    assert main(["evaluate", "run"]) == 0
    after = {key(row): row["value"] for row in read_run(old / "run").rows}
    assert after.keys() == before.keys()
    raw = {name: value for name, value in before.items() if name[0] == "raw_pixels"}
    assert raw and {name: after[name] for name in raw} == pytest.approx(raw, abs=0.02)


def key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a row measures."""
    return row["arm"], row["evaluator"], row["metric"]


def test_a_federation_goes_on_with_its_rounds_and_its_sites_states(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flwr")
    from server import in_process

    monkeypatch.setenv("SSLMED_DATA_ROOT", str(old / "shapes" / "shapes.npz"))
    monkeypatch.setenv("SSLMED_SITES_DIR", str(old / "federation" / "sites"))
    in_process.run(old / "federation")
    golden = json.loads((old / "golden.json").read_text())
    same_norms(checkpoint.load(old / "federation/checkpoints/round_00002.pt")["method"], golden["federation"])
    assert "rounds behind" not in (old / "federation" / "federation.log").read_text()


def test_packed_sets_are_read() -> None:
    images = DATASETS["packed"](root=OLD / "pack", split="train")
    batch = images.fetch(torch.arange(len(images)), seed=0, epoch=0, draw=torch.zeros(len(images), dtype=torch.int64))
    assert batch["images"].shape == (4, 1, 16, 16) and batch["images"].float().std() > 10
    assert main(["data", "check", str(OLD / "pack")]) == 0
    scans = DATASETS["episodes"](root=OLD / "episodes.npz", min_size=40)
    assert len(scans.exams()) == 2 and int(scans.counts.min()) > 0
    assert main(["data", "check", str(OLD / "episodes.npz")]) == 0
