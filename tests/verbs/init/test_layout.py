"""What init says of a folder of images agrees with what a dataset reads in it."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from sslmed_dist.data import DATASETS
from sslmed_dist.verbs.init import layout
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
