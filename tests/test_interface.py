"""``import sslmed_dist as sd``: what a program of one's own calls."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sslmed_dist as sd
from sslmed_dist import config
from sslmed_dist.downstream import extract
from sslmed_dist.training import build, job, pretrained
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    folder = tmp_path_factory.mktemp("run")
    return job.train(tiny.settings(folder, plan={"epochs": 1, "steps_per_epoch": 1})).settings.folder


def test_the_import_takes_no_torch_and_names_what_there_is() -> None:
    code = "import sys, sslmed_dist as sd; print(sorted({'torch', 'yaml'} & set(sys.modules)), dir(sd))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("[] ") and "'load_encoder'" in said and "'losses'" in said
    with pytest.raises(AttributeError, match=r"has no attribute 'los'; it has analysis, .*train"):
        sd.los  # noqa: B018


def test_an_encoder_gives_the_features_of_the_evaluation(run: Path) -> None:
    trained = pretrained.load(run)
    dataset = build.load_data(trained.settings, "test")
    views = build.standard_views(trained.settings, dataset)
    wanted = extract(trained.encoder, dataset, torch.arange(len(dataset)), views=views, device="cpu").x
    encoder = sd.load_encoder(run)
    images = sd.images_of(dataset)
    assert torch.equal(encoder(images), wanted) and encoder.feature_dim == wanted.shape[1]
    encoder.train()
    assert not encoder.encoder.training and torch.equal(encoder(images), wanted)
    with pytest.raises(ValueError, match=r"images: expected \(N, 1, H, W\), got \(2, 3, 12, 12\)"):
        encoder(images[:2].expand(2, 3, 12, 12))


def test_neighbours_vote_and_no_row_votes_for_itself() -> None:
    """By hand: two tight clusters and a stray row whose own label nobody else has."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 0.05]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    votes = sd.knn(features, labels, k=1)
    assert votes.argmax(1)[2:4].tolist() == [1, 1] and votes[4, 2] == 0
    assert torch.allclose(votes.sum(1), torch.ones(5, dtype=torch.float64))
    given = sd.knn(features, labels, features[:1], k=1)
    assert given.tolist() == [[1.0, 0.0, 0.0]]  # as a query of its own, the row is its nearest
    weights = torch.exp(torch.nn.functional.cosine_similarity(features[:1], features[1:]).double() / 0.1)
    three = weights[[3, 0, 2]]  # the three nearest of row 0: rows 4, 1 and 3
    assert torch.allclose(sd.knn(features, labels, k=3)[0, [2, 0, 1]], three / three.sum())


def test_equal_rows_keep_k_neighbours() -> None:
    features, labels = torch.ones(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    assert sd.knn(features, labels, k=3).shape == (6, 3)
    assert torch.allclose(sd.knn(features, labels, k=5)[0], torch.tensor([0.2, 0.4, 0.4], dtype=torch.float64))


@pytest.mark.parametrize(
    ("features", "labels", "queries", "line"),
    [
        (torch.ones(3, 2), torch.ones(2), None, r"knn: expected features \(N, D\) and labels \(N,\)"),
        (torch.ones(3, 2), torch.zeros(3).long(), torch.ones(1, 3), r"knn: expected queries \(M, 2\), got \(1, 3\)"),
        (torch.ones(3, 2), torch.zeros(3).long(), None, r"knn\.k: 3 neighbours asked of n = 2 training samples"),
        (
            torch.ones(3, 2),
            torch.full((3,), 1.5),
            None,
            r"knn: expected labels that are class numbers",
        ),
        (torch.ones(3, 2), torch.tensor([0, -1, 1]), None, r"knn: expected labels .*from -1"),
        (torch.full((3, 2), torch.nan), torch.zeros(3).long(), None, r"knn: expected finite features"),
        (torch.ones(3, 2), [0, 0, 1], None, r"knn: expected labels as a tensor, got list"),
    ],
)
def test_what_does_not_fit_is_said(
    features: torch.Tensor, labels: Any, queries: torch.Tensor | None, line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        sd.knn(features, labels, queries, k=3)


def test_training_takes_a_configuration_a_file_or_a_recipe(tmp_path: Path, run: Path) -> None:
    settings = tiny.settings(tmp_path, plan={"epochs": 1, "steps_per_epoch": 1})
    folder = sd.train(settings)
    assert folder == settings.folder and (folder / "checkpoints").is_dir()
    file = tmp_path / "mine.yaml"
    file.write_text(config.dump(settings), encoding="utf-8")
    assert sd.train(file, ["run.name=other"]) == folder.with_name("other")
    assert torch.equal(*(next(iter(sd.load_encoder(path).state_dict().values())) for path in (folder, run)))
    with pytest.raises(ValueError, match=r"overrides belong to a file or a recipe"):
        sd.train(settings, ["plan.epochs=2"])
    with pytest.raises(ValueError, match=r"cifar11: no such file, and no recipe of this program"):
        sd.train("cifar11")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda bytes_: bytes_ / 255,
            r"values from .* to .*: they were scaled to \[0, 1\]; .*value_range=\(0, 1\)\) takes these",
        ),
        (lambda bytes_: (bytes_ / 255 - 0.5) / 0.25, "they were normalised, or are of another scale"),
        (lambda bytes_: bytes_ * 257, "they were normalised, or are of another scale"),
        (lambda bytes_: bytes_ * torch.nan, "some are NaN or infinite"),
    ],
)
def test_images_of_another_scale_are_refused(run: Path, change: Any, line: str) -> None:
    """Their features would be others, without a word."""
    encoder = sd.load_encoder(run)
    images = torch.arange(2 * 144).view(2, 1, 12, 12).remainder(256).float()
    assert encoder(images.to(torch.uint8)).equal(encoder(images)), "the same values in another type"
    with pytest.raises(ValueError, match=rf"^images: .*{line}; expected \(N, 1, H, W\), 0 black to 255 white"):
        encoder(change(images))


def test_what_an_encoder_expects_is_said_and_may_be_changed(run: Path) -> None:
    encoder, scaled = sd.load_encoder(run), sd.load_encoder(run, value_range=(0.0, 1.0))
    images = torch.arange(2 * 144).view(2, 1, 12, 12).remainder(256).float()
    assert torch.allclose(scaled(images / 255), encoder(images), atol=1e-5)
    assert "0 black to 1 white, not normalised" in str(scaled) and encoder.expects in str(encoder)
    with pytest.raises(ValueError, match="of another scale; expected .*0 black to 1 white"):
        scaled(images)
    scaled(images / 255 * 1.3)  # a window cuts what lies beyond it
    black = torch.zeros(1, 1, 12, 12)
    assert encoder(black).equal(encoder(black.to(torch.uint8))), "black images are black at any scale"
