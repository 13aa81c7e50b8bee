"""``sslmed embed`` says what of a folder it did not read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslmed_dist import cli
from sslmed_dist.data.images import decode
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


def test_folders_are_no_classes_and_an_animation_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One folder is empty, one image lies beside folders, one is an animated PNG, of which the first picture counts."""
    run = job.train(tiny.settings(tmp_path, plan={"epochs": 1, "steps_per_epoch": 1})).settings.folder
    images = tmp_path / "images"
    (images / "empty").mkdir(parents=True)
    (images / "a").mkdir()
    first, second = (Image.effect_noise((12, 12), spread) for spread in (20, 90))
    first.save(images / "a" / "0.png")
    first.save(images / "moving.png", save_all=True, append_images=[second])
    decode.tell_of_frames.cache_clear()
    capsys.readouterr()
    assert cli.main(["embed", str(run), str(images), "--out", str(tmp_path / "f.npz")]) == 0
    assert capsys.readouterr().err.count("note: some images hold several pictures") == 1
    with np.load(tmp_path / "f.npz") as archive:
        assert np.array_equal(archive["features"][0], archive["features"][1])
    (images / "moving.png").unlink()
    (images / "a" / "0.png").unlink()
    assert cli.main(["embed", str(run), str(images), "--out", str(tmp_path / "g.npz")]) == 2
    assert "no image in it" in capsys.readouterr().err
