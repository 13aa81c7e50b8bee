"""Pictures of a run: the right images in the right order, the same bytes every time, and only when asked."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sslmed_dist import cli, config, randomness
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import ArrayDataset
from sslmed_dist.training import build, job, pretrained
from sslmed_dist.training.evaluation_data import evaluation_splits
from sslmed_dist.verbs import pictures
from sslmed_dist.verbs.pictures import Samples
from sslmed_dist.verbs.report_pictures import make_for_report
from tests import knees, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = tiny.settings(tmp_path_factory.mktemp("pictures"), plan={"steps_per_epoch": 1, "epochs": 1})
    job.train(settings)
    return settings.folder


def drawn(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "pictures").iterdir()}


def settings_of(tmp_path: Path, views: Mapping[str, Any]) -> Config:
    return tiny.settings(tmp_path, views=dict(views), method={"channels": 1})


def test_pictures_are_drawn_when_asked_and_repeat(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(run)]) == 0
    assert not (run / "pictures").exists() and "Pictures: not run." in (run / "report.html").read_text()
    assert cli.main(["report", str(run), "--pictures"]) == 0
    first = drawn(run)
    assert sorted(first) == ["captions.json", "gradcam.png", "neighbours.png", "views.png"]
    assert (run / "report.html").read_text().count("<figure class='sheet'>") == 3
    captions = json.loads(first["captions.json"])
    assert captions["neighbours.png"].startswith("Test images (left) and their nearest among 43 training images")
    make_for_report([run])
    assert drawn(run) == first
    assert cli.main(["report", str(run)]) == 0
    page, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    for document in (page, text):
        assert "3 left out: they hold image pixels" in document and "folder pictures/ of the run" in document
    assert "class='sheet'" not in page


def test_neighbours_are_the_nearest_training_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(pictures, "neighbours_picture", lambda *images, **words: seen.update(words, images=images))
    trained = pretrained.load(run)
    dataset, parts = evaluation_splits(trained.settings)
    queries, candidates = Samples(dataset, parts["test"][:3]), Samples(dataset, parts["train"])
    pictures.neighbours_sheet(trained.settings, trained.encoder, queries, candidates)
    views = build.standard_views(trained.settings, dataset)

    def feature(position: Tensor) -> Tensor:
        batch = dataset.fetch(position[None], seed=0, epoch=0, draw=torch.zeros(1, dtype=torch.int64))
        with torch.no_grad():
            return torch.nn.functional.normalize(trained.encoder(views(batch, seed=0, epoch=0)["views_0"])[0], dim=0)

    for row, query in enumerate(queries.positions):
        near = torch.stack([feature(query) @ feature(other) for other in candidates.positions])
        torch.testing.assert_close(seen["similarity"][row], near.topk(pictures.NEAREST).values, rtol=0, atol=1e-5)
        best = candidates.positions[near.argmax()]
        stored = Samples(dataset, best[None]).images(0)[0]
        assert torch.equal(seen["images"][1][row, 0], stored)
        assert seen["neighbour_labels"][row][0] == f"class {int(dataset.labels[best])}"
        assert seen["query_labels"][row] == f"class {int(dataset.labels[query])}"


@pytest.mark.parametrize("kind", ["uint8 grey", "uint8 colour", "uint8 two channels", "float grey"])
def test_views_are_shown_on_the_scale_of_the_stored_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    channels = {"grey": 1, "colour": 3}.get(kind.split(" ", 1)[1], 2)
    images = torch.randint(0, 200, (4, channels, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    stored = images.float() / 255 if kind.startswith("float") else images
    data = ArrayDataset(name="made-up", images=stored, labels=torch.zeros(4, dtype=torch.int64), classes=("a",))
    normalisation = {"mean": [0.4] * channels, "std": [0.2] * channels}
    settings = settings_of(tmp_path, {"name": "standard", "size": 12, **normalisation})
    seen: list[Any] = []
    monkeypatch.setattr(pictures, "views_picture", lambda *shown: seen.extend(shown))
    pictures.views_sheet(settings, Samples(data, torch.arange(4)))
    original, views = seen
    assert list(views) == ["views_0"] and original.dtype == torch.uint8
    assert original.shape[1] == (channels if channels != 2 else 1)
    assert (views["views_0"].int() - original.int()).abs().max() <= 1
    if kind.startswith("uint8"):
        assert torch.equal(original, images if channels != 2 else images[:, 1:])
    else:  # stretched between the image's own extremes
        assert (original.amin(dim=(1, 2, 3)) == 0).all() and (original.amax(dim=(1, 2, 3)) == 255).all()


def test_a_puzzle_is_put_together_row_by_row() -> None:
    patches = torch.arange(9.0).repeat_interleave(2)[None, :, None, None].expand(1, 18, 2, 2)  # nine of two channels
    whole = pictures.puzzle(patches, 2)
    assert whole.shape == (1, 2, 6, 6)
    assert whole[0, 1, ::2, ::2].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize(("task", "expected"), [("single", ["a", "class 7", "a"]), ("multi", ["a, 7", "none", "7"])])
def test_labels_in_words(task: Any, expected: list[str]) -> None:
    labels = torch.tensor([0, 1, 0]) if task == "single" else torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    data = ArrayDataset(name="made-up", images=images, labels=labels, classes=("a", "7"))
    assert pictures.label_names(Samples(data, torch.arange(3))) == expected


def test_a_run_without_test_images_shows_training_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = build.replace(
        pretrained.load(run).settings, evaluate={"data": {"name": "image_folder", "root": "/none"}}
    )
    train = build.load_data(settings, "train")
    queries, candidates, words = pictures.neighbour_samples(settings, train, torch.arange(len(train)))
    assert words == "Training images" and queries.positions.tolist() == list(range(6))
    assert candidates.positions.tolist() == list(range(6, len(train)))
    assert "neighbours of training images" in capsys.readouterr().err


def test_a_run_whose_data_is_gone_keeps_its_report(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.parents[1] / "tiny.npz").rename(tmp_path / "tiny.npz")
    try:
        assert cli.main(["report", str(run), "--pictures"]) == 0
    finally:
        (tmp_path / "tiny.npz").rename(run.parents[1] / "tiny.npz")
    assert "tiny: no new pictures: " in capsys.readouterr().err


def test_the_data_is_looked_for_where_the_run_folder_says(tmp_path: Path, run: Path) -> None:
    moved = tmp_path / "moved.npz"
    shutil.copy(run.parents[1] / "tiny.npz", moved)
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    settings = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(settings.replace(str(run.parents[1] / "tiny.npz"), str(moved)))
    assert pictures.with_data_of(folder, pretrained.load(run).settings).data["root"] == str(moved)
    (folder / "config.yaml").unlink()
    unchanged = pretrained.load(run).settings
    assert pictures.with_data_of(folder, unchanged) == unchanged


def test_a_federation_shows_the_images_of_its_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(__file__).parents[1] / "artefacts" / "v0.1.0", tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")  # its paths are relative
    pictures.make(Path("federation"))
    first = drawn(Path("federation"))
    assert sorted(first) == ["captions.json", "neighbours.png", "views.png"]
    assert json.loads(first["captions.json"])["neighbours.png"].startswith("Images (left)")
    (Path("federation") / "pictures" / "views.png").write_bytes(b"drawn by federate")
    pictures.make(Path("federation"))  # what is there stays
    assert drawn(Path("federation"))["views.png"] == b"drawn by federate"


def test_exams_are_drawn_by_their_middle_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    knees.write_exams(tmp_path / "knees", train=8, valid=4, planes=("sagittal",))
    settings = config.from_tree(knees.tree(tmp_path, plan={"epochs": 1}), "test")
    job.train(settings)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(pictures, "views_picture", lambda *images, **words: seen.update(images=images) or b"")
    pictures.make(settings.folder)
    stored, views = seen["images"]
    train = build.load_data(settings, "train")
    order = randomness.order(train.ids, settings.run.seed, "pictures")[: pictures.SHOWN]
    batch = train.fetch(order, seed=settings.run.seed, epoch=0, draw=torch.zeros_like(order))
    rows = [int(length) // 2 for length in batch["length"]]
    assert {2, 1} & set(rows) and torch.equal(stored, torch.stack([batch["images"][i, k] for i, k in enumerate(rows)]))
    assert views["views_0"].shape == (6, 1, 32, 32)
    captions = json.loads((settings.folder / "pictures" / "captions.json").read_text())
    assert captions["neighbours.png"].startswith("Test images (left) and their nearest among 6 training images")
    # Measured are whole exams, by what the encoder says of their slices.
    assert cli.main(["evaluate", str(settings.folder), "evaluate.protocols=[{name: knn, k: 2}]"]) == 0
    assert "4 test samples" in capsys.readouterr().out
