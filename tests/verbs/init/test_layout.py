"""What init says of a folder of images agrees with what a dataset reads in it, and with what is measured on it."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from sslmed_dist.cli import main
from sslmed_dist.data import DATASETS
from sslmed_dist.data.images.synthetic import Synthetic
from sslmed_dist.verbs.init import lacking, layout
from tests.verbs.init import sets

PLAIN = [f"{kind}/{n:02d}.png" for kind in "ab" for n in range(12)]  # equal names in both classes, none of any patient
SEVERAL = [f"{'ab'[n % 2]}/p{n}_{image}.png" for n in range(10) for image in range(3)]


def folder(root: Path, names: Sequence[str], side: int = 12) -> Path:
    """Images of these names."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sets.pixels(number, side, side)).save(root / name)
    return root


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (PLAIN, None),
        ([f"train/{name}" for name in PLAIN] + [f"test/{name}" for name in PLAIN], None),
        ([*PLAIN, *SEVERAL[:9]], None),  # too few patients to be sure
        (SEVERAL, "of 10 patients with 30 images: kept together"),
        ([*PLAIN[:4], *SEVERAL], "of 10 patients with 30 images (4 other images each taken for a patient of its own)"),
    ],
)
def test_patients_are_those_that_the_dataset_finds(names: list[str], words: str | None, tmp_path: Path) -> None:
    root = folder(tmp_path, names)
    seen = layout.look(root, 96)
    assert ("patient" in seen.data) == (words is not None)
    assert any((words or "no patients are known: where one has several images") in remark for remark in seen.remarks)
    dataset = DATASETS["image_folder"](root, "all", size=12, patient=layout.PATIENT)
    matched = {name.rpartition("_")[0] for name in names if "_" in name}
    assert len(set(dataset.groups.tolist())) == len(matched) + sum("_" not in name for name in names)


@pytest.mark.parametrize(
    ("train", "test", "options", "said"),
    [
        ({"a": 12, "b": 12}, {"a": 6, "b": 6}, [], None),
        ({"a": 12, "b": 12, "c": 4}, {"a": 6, "b": 6}, [], "classes only in train, not scored: c"),
        ({"a": 12, "b": 12}, {"a": 6, "b": 5, "d": 1}, [], "only in test, always scored as wrong: d (1 of 12 test"),
        ({"a": 12, "b": 12, "c": 1}, {"a": 6, "b": 1}, [], "classes without samples in train and in test: c; "),
        (
            {"a": 20, "b": 20, "c": 1},
            {},
            [],
            "classes only in train, not scored: c; classes with one training sample: c",
        ),
        ({"a": 60, "b": 59, "c": 1}, {}, ["--federated", "2"], "at 1 of 2 sites: classes "),
    ],
)
def test_classes_that_the_figures_say_little_of_are_named(
    train: dict[str, int], test: dict[str, int], options: list[str], said: str | None, tmp_path: Path
) -> None:
    root, recipe = tmp_path / "set", tmp_path / "recipe.yaml"
    parts = {"train/": train, "test/": test} if test else {"": train}
    folder(root, [f"{s}{kind}/{n}x.png" for s, of in parts.items() for kind, count in of.items() for n in range(count)])
    assert main(["init", str(root), "--out", str(recipe), "--minutes", "0.001", *options]) == 0
    comments = " ".join(line[2:] for line in recipe.read_text().splitlines() if line.startswith("# "))
    assert ("not every class is measured" in comments) == (said is not None)
    assert (said or "on the split test, beside a random encoder") in comments


def test_a_label_of_one_value_has_no_auc() -> None:
    of = Synthetic(images=8, size=8, classes=3)
    of.task, labels = "multi", torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, torch.nan]])
    train = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    [said] = lacking.remarks(of, train, labels, train)
    assert said.endswith(f"so without an AUC: {of.classes[2]}")
    assert lacking.words([said], "val")[0].startswith(
        "not every class is measured, or measured well (test is the split val)"
    )
