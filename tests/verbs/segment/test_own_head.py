"""The tool with an encoder that is its own head."""

import json
from pathlib import Path

import numpy as np
import pytest

from sslmed_dist.verbs.segment.model import load_model
from tests.verbs.segment.test_tool import given, load, made, write_run

__all__ = ["given"]  # a fixture


def test_se_net_segments_and_takes_no_other_head(given: dict[str, Path], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", method="se_net", name="se_net", segmenter=4, conditioner=3)
    written = made({**given, "run": run}, tmp_path / "out")
    labels, _ = load(next(path for path in written if path.name == "image_02_labels.nii.gz"))
    assert labels.shape == load(given["query"])[0].shape and set(np.unique(labels)) <= {0, 1, 2, 3, 4}
    said = json.loads((tmp_path / "out" / "run.json").read_text())
    assert said["head"] == {"name": "se_net"}
    segmenter = load_model(run).segmenter
    assert segmenter.head is segmenter.encoder
    with pytest.raises(ValueError, match="^head: .*: its encoder .se_net. is its own head$"):
        load_model(run, head={"window": 4})
