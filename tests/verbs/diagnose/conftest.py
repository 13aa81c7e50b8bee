"""A tiny diagnosis by two planes that the tests of this folder share; they change nothing that they do not restore."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sslmed_dist import cli, config
from tests import knees

PLANES = ("axial", "sagittal")


def recipe(folder: Path, **sections: Any) -> Path:
    """The file of a tiny diagnosis by two planes."""
    tree = knees.tree(folder, plan={"epochs": 1}, data={"plane": "sagittal"})
    tree["diagnose"] = {
        "parts": {plane: {"data": {"plane": plane}} for plane in PLANES},
        "draws": 2,
        "slices": 4,
        "published": True,
    }
    path = folder / "knee.yaml"
    path.write_text(yaml.safe_dump(config.merge(tree, sections)))
    return path


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a diagnosis; exam 26 has no axial series."""
    folder = tmp_path_factory.mktemp("diagnosis")
    knees.write_exams(folder / "knees", train=12, valid=8, planes=PLANES)
    (folder / "knees" / "valid" / "axial" / "0014.npy").unlink()
    assert cli.main(["diagnose", str(recipe(folder))]) == 0
    return folder / "runs" / "knee"
