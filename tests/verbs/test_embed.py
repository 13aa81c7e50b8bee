"""``sslmed embed`` says what of a folder it did not read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslmed_dist import cli
from sslmed_dist.training import job
from tests import tiny


def test_what_a_listing_left_aside_is_said_and_stands_beside_the_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = job.train(tiny.settings(tmp_path, plan={"epochs": 1, "steps_per_epoch": 1})).settings.folder
    images = tmp_path / "images"
    for name in ("a/0.png", "a/1.png", "a/.hidden/2.png", "a/3.webp"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((12, 12), 20).save(images / name)
    capsys.readouterr()
    assert cli.main(["embed", str(run), str(images), "--out", str(tmp_path / "f.npz")]) == 0
    said = [line.removeprefix("note: data: ") for line in capsys.readouterr().err.splitlines()]
    with np.load(tmp_path / "f.npz") as archive:
        assert len(archive["features"]) == 2 and archive["notices"].tolist() == said
    assert len(said) == 1 and said[0].startswith("left aside: ") and "hidden" in said[0] and "webp" in said[0]
