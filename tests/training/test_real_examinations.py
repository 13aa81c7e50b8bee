"""Pretraining on real examinations without any label: three of the PROSTATEx set, as exported from a scanner."""

import json
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import config
from sslmed_dist.data import DATASETS
from sslmed_dist.data.exams.exams import Exams, pack_exams
from sslmed_dist.drivers import local
from tests.real_data import real_data

PLANES = ("sagittal", "coronal", "axial")
JIGSAW = {
    "views": {"name": "jumbled", "size": 96, "noise": 0.02, "arrangements": {"rule": "uniform", "classes": 4}},
    "method": {
        "name": "jigsaw",
        "streams": "single",
        "encoder": {"name": "resnet", "depth": 9, "stem": "imagenet", "width": 8},
        "head": {"name": "projection", "hidden": 32, "layers": 2},
    },
}
CONTRASTIVE = {
    "views": {
        "name": "contrastive",
        "size": 96,
        "rotation": 10,
        "flip": 0.0,
        "grey": 0.0,
        "jitter": [0.4, 0.4, 0.0, 0.0],
    },
    "method": {
        "name": "contrastive",
        "encoder": {"name": "resnet", "depth": 9, "stem": "imagenet", "width": 8},
        "head": {"name": "projection", "hidden": 32, "out": 16, "batch_norm": True},
        "loss": {"name": "mio_v3", "temperature": 0.2},
    },
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of the three examinations whose table names them and holds no label."""
    root, out = real_data("prostatex-dicom"), tmp_path_factory.mktemp("prostatex")
    studies = sorted(str(path.relative_to(root)) for path in root.glob("*/*") if path.is_dir())
    (out / "labels.csv").write_text("\n".join(["exam", *studies]) + "\n")
    table = str(out / "labels.csv")
    return pack_exams(str(root), out=out / "pack", workers=1, note=lambda line: None, labels=table, size=96, mm=1.6)


def trained(pack: Path, folder: Path, plane: str, recipe: dict[str, Any]) -> list[float]:
    """The losses of fifteen steps, in order."""
    tree = recipe | {
        "run": {"dir": str(folder), "name": "run", "seed": 0, "threads": 1},
        "data": {"name": "exams", "root": str(pack), "plane": plane},
        "optim": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "plan": {
            "epochs": 1,
            "batch_size": 12,
            "slices_per_exam": 4,
            "steps_per_epoch": 15,
            "draws": 15,
            "log_every": 1,
        },
        "evaluate": {"protocols": []},
    }
    assert local.train(config.from_tree(tree, "test")) is None
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if line["name"] == "loss"]


def test_the_series_of_every_plane_are_chosen_without_labels(pack: Path) -> None:
    for plane in PLANES:
        data = DATASETS["exams"](root=str(pack), plane=plane)
        assert isinstance(data, Exams) and len(data) == 3 and data.classes == () and data.labels.tolist() == [-1] * 3
        assert all("t2" in str(record["description"]).lower() for record in data.records)
        assert min(data.counts.tolist()) >= 15 and data.slices(0, data.counts[:1] // 2).float().std() > 10


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("recipe", [JIGSAW, CONTRASTIVE], ids=["jigsaw", "contrastive"])
def test_pretraining_on_real_series_lowers_the_loss(
    pack: Path, tmp_path: Path, plane: str, recipe: dict[str, Any]
) -> None:
    losses = trained(pack, tmp_path, plane, recipe)
    assert len(losses) == 15 and sum(losses[-3:]) < sum(losses[:3])
