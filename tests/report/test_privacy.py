"""What is handed on holds no path: neither the report nor an export tells where a site keeps its images."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch

from sslmed_dist import cli
from sslmed_dist.training import job, pretrained
from tests import tiny

SECRET = "St-Elsewhere-Radiology"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that ``report`` and ``export`` write of a run, all of whose files lie below a folder with a telling
    name."""
    home = tmp_path_factory.mktemp("home") / SECRET / "alice"
    home.mkdir(parents=True)
    source = tiny.settings(home, run={"name": "first"}, plan={"epochs": 1, "steps_per_epoch": 1})
    job.train(source)
    weights = home / "weights.pt"
    torch.save(pretrained.load(source.folder).encoder.state_dict(), weights)
    settings = tiny.settings(
        home,
        run={"name": "second", "start_from": str(source.folder)},
        method={"encoder": {"weights": str(weights)}},
        plan={"epochs": 1, "steps_per_epoch": 1},
    )
    job.train(settings)
    out = tmp_path_factory.mktemp("out")
    assert cli.main(["evaluate", str(settings.folder), "--histogram"]) == 0
    words = ["--pictures", "--tensorboard", str(out / "events"), "--out", str(out / "report.html")]
    assert cli.main(["report", str(settings.folder), *words]) == 0
    assert cli.main(["export", str(settings.folder), str(out / "encoder")]) == 0
    shutil.copytree(settings.folder / "pictures", out / "pictures")
    shutil.copytree(settings.folder / "evaluate", out / "evaluate")
    return out


def test_no_file_that_is_handed_on_holds_a_folder_or_a_name(written: Path) -> None:
    files = [path for path in written.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"report.html", "report.md", "encoder.json", "encoder.safetensors"}
    assert any("tfevents" in path.name for path in files)
    for path in files:
        assert socket.gethostname() not in path.name
        content = path.read_bytes()
        for word in (SECRET, "alice", str(written.parent)):
            assert word.encode() not in content, f"{path.name} holds {word}"


def test_what_stays_is_the_last_part(written: Path) -> None:
    assert json.loads((written / "encoder.json").read_text())["architecture"]["weights"] == "…/weights.pt"
    assert "root: …/tiny.npz" in (written / "report.html").read_text()
