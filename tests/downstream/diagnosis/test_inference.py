"""Probabilities of exams: mean over keyed draws, the same bits alone and in a set, occlusion, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sslmed_dist import config
from sslmed_dist.data.dataset import Dataset, Subset
from sslmed_dist.data.exams.exam_dataset import exams_of
from sslmed_dist.downstream.diagnosis.inference import Examiner
from sslmed_dist.downstream.diagnosis.sampling import Sampling, content_key
from sslmed_dist.training import build
from tests import knees

METHODS: dict[str, dict[str, Any]] = {
    "convlstm": {},
    "pooled": {"cache": "pooled"},
    "max": {"encoder": {"name": "resnet", "depth": 9, "stem": "cifar", "width": 4}, "head": "max", "freeze": False},
    "divfram": {"encoder": {"name": "sslacl", "width": 0.02}, "head": "divfram", "freeze": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("knee")
    knees.write_exams(place / "knees", train=5, valid=4, planes=("sagittal",))
    return place


def examiner(folder: Path, name: str, sampling: Sampling | None = None) -> tuple[Examiner, Dataset]:
    settings = config.from_tree(knees.tree(folder, method=METHODS[name]), "test")
    dataset = build.load_data(settings, "val")
    settings = build.resolve(settings, dataset)
    views = build.views_of({**settings.views, "transforms": "none"}, dataset)
    method: Any = build.build_method(settings)
    return Examiner(method, views, sampling or Sampling("normal", 3, 4), device="cpu", seed=1), dataset


@pytest.mark.parametrize("name", METHODS)
def test_an_exam_gets_the_same_bits_alone_and_in_a_set(folder: Path, name: str) -> None:
    made, dataset = examiner(folder, name)
    whole = made.examine(dataset, torch.arange(4))
    assert whole.probabilities.shape == whole.spread.shape == (4, 3) and whole.labels == knees.LABELS
    assert bool(((whole.probabilities > 0) & (whole.probabilities < 1)).all())
    alone = made.examine(Subset(dataset, torch.tensor([2])), torch.tensor([0]))
    assert torch.equal(alone.probabilities[0], whole.probabilities[2])
    assert torch.equal(alone.spread[0], whole.spread[2]) and alone.index.tolist() == [int(dataset.ids[2])]
    other = made.examine(dataset, torch.tensor([3, 2]))
    assert torch.equal(other.probabilities, whole.probabilities[[3, 2]])


@pytest.mark.parametrize("name", METHODS)
def test_the_mean_over_draws_is_that_of_one_clip_after_another(folder: Path, name: str) -> None:
    """Slow: every clip's slices through views, encoder and head by themselves."""
    made, dataset = examiner(folder, name)
    exams, _ = exams_of(dataset)
    slices = exams.slices(1, torch.arange(int(exams.counts[1])))
    outputs = []
    with torch.inference_mode():
        for row in made.sampling.numbers(len(slices), content_key(slices, 1)):
            view = made.view(slices[row])
            maps = made.method.maps(view, torch.tensor([4]))
            if name == "pooled":
                maps = maps.mean(dim=(3, 4), keepdim=True)
            outputs.append(made.method.head(maps, torch.tensor([4])).double().sigmoid()[0])
    expected = torch.stack(outputs)
    scores = made.examine(dataset, torch.tensor([1]))
    assert torch.allclose(scores.probabilities[0], expected.mean(dim=0), atol=1e-6)
    assert torch.allclose(scores.spread[0], expected.std(dim=0), atol=1e-6)


def test_the_slice_without_which_the_answer_changes_counts(folder: Path) -> None:
    made, dataset = examiner(folder, "max", Sampling("normal", 2, 3))
    exams, _ = exams_of(dataset)
    slices = exams.slices(3, torch.arange(int(exams.counts[3])))
    numbers, of_labels = made.without_each(slices)
    differences = of_labels[:, 0]
    assert len(numbers) == len(differences) == 3 and numbers[0] == 0 and numbers[-1] == len(slices) - 1
    whole = made.of_clips(slices, numbers[None])[0, 0]
    for k in range(3):
        rest = torch.tensor([n for i, n in enumerate(numbers.tolist()) if i != k])
        expected = whole - made.of_clips(slices, rest[None])[0, 0]
        assert differences[k].item() == pytest.approx(expected.item(), abs=1e-7)
    assert made.without_each(slices[:1])[1][:, 0].tolist() == [0.0]


def test_what_is_not_finite_is_named(folder: Path) -> None:
    made, dataset = examiner(folder, "convlstm")
    with torch.no_grad():
        next(made.method.head.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match=f"the diagnosis of exam {int(dataset.ids[0])} is not finite$"):
        made.examine(dataset, torch.arange(2))
