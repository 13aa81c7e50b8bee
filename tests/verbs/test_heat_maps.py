"""The sheet of ``sslmed report --pictures`` that says where a network looks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import cli, config
from sslmed_dist.report.contact_sheets import overlaid
from sslmed_dist.training import build, job, pretrained
from sslmed_dist.verbs import heat_maps
from tests import knees, tiny
from tests.methods import test_jigsaw


def captions(folder: Path) -> dict[str, str]:
    read: dict[str, str] = json.loads((folder / "pictures" / "captions.json").read_text())
    return read


@pytest.mark.parametrize("phantom", [False, True])
def test_a_jigsaw_run_shows_its_puzzles(
    tmp_path: Path, phantom: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config.from_tree(test_jigsaw.tree(tmp_path, "skid"), "test")
    if phantom:
        (tmp_path / "phantom.json").write_text("{}")
    job.train(settings)
    seen: dict[str, Any] = {}

    def keep(images: Any, views: Any, first: str) -> bytes:
        seen.update({first: images, **views})
        return b""

    monkeypatch.setattr(heat_maps, "views_picture", keep)
    method, resolved = pretrained.load_method(settings.folder)
    dataset = build.load_data(resolved, "train")
    _, said = heat_maps.sheet(resolved, method, dataset, torch.arange(4), None)
    assert list(seen) == ["input", "Grad-CAM"]
    assert seen["input"].shape[:2] == (4, 1) and seen["Grad-CAM"].shape == (4, 3, *seen["input"].shape[2:])
    assert said.startswith("Phantoms, no patients. Grad-CAM" if phantom else "Grad-CAM at encoder.stem.layers.3")
    assert "the label that it finds" in said
    monkeypatch.undo()
    assert cli.main(["report", str(settings.folder), "--pictures", "--layer", "encoder.nowhere"]) == 2
    assert "layer: no 'encoder.nowhere'; allowed: any submodule, such as encoder" in capsys.readouterr().err
    assert not (settings.folder / "pictures" / "gradcam.png").exists()
    assert cli.main(["report", str(settings.folder), "--layer", "encoder"]) == 2
    assert "--layer: says where the pictures look; it needs --pictures" in capsys.readouterr().err
    assert cli.main(["report", str(settings.folder), "--pictures"]) == 0
    assert captions(settings.folder)["gradcam.png"] == said
    assert (settings.folder / "pictures" / "gradcam.png").read_bytes().startswith(b"\x89PNG")


def test_a_diagnosis_shows_the_middle_slices_of_its_exams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knees.write_exams(tmp_path / "knees", train=8, valid=4, planes=("sagittal",))
    settings = config.from_tree(knees.tree(tmp_path, plan={"epochs": 1}), "test")
    job.train(settings)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        heat_maps, "views_picture", lambda images, views, first: seen.update({first: images, **views}) or b""
    )
    method, resolved = pretrained.load_method(settings.folder)
    dataset = build.load_data(resolved, "train")
    heat_maps.sheet(resolved, method, dataset, torch.arange(4), None)
    assert list(seen) == ["input", *knees.LABELS]
    positions = torch.arange(4)
    batch = dataset.fetch(positions, seed=resolved.run.seed, epoch=0, draw=torch.zeros_like(positions))
    views = build.build_views(resolved, dataset)(batch, seed=resolved.run.seed, epoch=0)["views_0"]
    expected = torch.stack([views[n, int(length) // 2] for n, length in enumerate(batch["length"])])
    assert torch.equal(seen["input"], heat_maps.scaled(expected))


def test_a_federation_without_its_queues_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tiny.settings(tmp_path, plan={"steps_per_epoch": 1, "epochs": 1})
    job.train(settings)
    file = pretrained.find(settings.folder)
    saved = torch.load(file, weights_only=True)
    del saved["method"]["head.layers.0.weight"]
    torch.save(saved, file)
    with pytest.raises(ValueError, match="does not fit this architecture"):
        pretrained.load_method(settings.folder)


def test_a_round_of_a_federation_says_what_stays_at_the_sites(tmp_path: Path) -> None:
    settings = tiny.settings(tmp_path, plan={"steps_per_epoch": 1, "epochs": 1})
    job.train(settings)
    file = pretrained.find(settings.folder)
    saved = torch.load(file, weights_only=True)
    shared = {key: value for key, value in saved["method"].items() if key.startswith("encoder.")}
    lost = len(saved["method"]) - len(shared)
    torch.save({**saved, "kind": "encoder", "method": shared}, file)
    line = rf"holds what its sites share; the rest of the method \(head: {lost} tensors\) stays at each site"
    with pytest.raises(ValueError, match=line):
        pretrained.load_method(settings.folder)


def test_no_heat_leaves_the_image_as_it_is() -> None:
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    assert torch.equal(overlaid(image, torch.zeros(1, 4, 4)), image.expand(1, 3, 4, 4))
    full = overlaid(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.ones(1, 1, 1))[0, :, 0, 0]
    assert full.tolist() == [round(255 * 0.6 * part) for part in (0.988362, 0.998364, 0.644924)]  # inferno's last
