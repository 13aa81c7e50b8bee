"""The hash of a set's samples: the same for the same data elsewhere, another for every kind of change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslmed_dist.data import samples
from sslmed_dist.data.dataset import ArrayDataset, Dataset, Subset
from sslmed_dist.data.exams.abdominal import Abdominal
from sslmed_dist.data.exams.episodes import Episodes
from sslmed_dist.data.exams.exam_archive import pack_episodes
from sslmed_dist.data.exams.mrnet import MRNet
from sslmed_dist.data.images.folder import image_folder
from sslmed_dist.data.images.packed import Packed
from sslmed_dist.data.joined import Joined
from sslmed_dist.data.pack import pack
from sslmed_dist.data.phantom.abdomen import write_abdomen
from sslmed_dist.data.phantom.knee import write_knee


def write_folder(root: Path) -> Path:
    """Six images in two classes, bitmaps of one size."""
    for number in range(6):
        path = root / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    return root


def folder(root: Path) -> Dataset:
    return image_folder(root, "all", size=8)


def digest(dataset: Dataset) -> str:
    return samples.describe(dataset).digest


def add(root: Path) -> None:
    shutil.copy(root / "a" / "0.bmp", root / "b" / "9.bmp")


def repaint(root: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(root / "a" / "2.bmp")  # the size stays


def relabel(root: Path) -> None:
    (root / "a" / "4.bmp").rename(root / "b" / "4.bmp")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add, "sample 6 is only in one of them"),
        (lambda root: (root / "b" / "5.bmp").unlink(), "sample 5 is only in one of them"),
        (repaint, "sample 1 has another content"),
        (relabel, "sample 2 has label 1, it had 0"),
        (
            lambda root: (root / "a" / "4.bmp").rename(root / "a" / "5.bmp"),
            "sample 2 has file 'a/5.bmp', it had 'a/4.bmp'",
        ),
    ],
)
def test_every_change_is_another_set_and_is_named(tmp_path: Path, change: Callable[[Path], None], said: str) -> None:
    before = samples.describe(folder(write_folder(tmp_path / "here")))
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "here", elsewhere)
    assert samples.describe(folder(elsewhere)) == before
    change(elsewhere)
    after = samples.describe(folder(elsewhere))
    assert after.digest != before.digest and samples.first_difference(before.lines, after.lines) == said


def test_files_are_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = folder(write_folder(tmp_path))
    size = (tmp_path / "a" / "0.bmp").stat().st_size
    monkeypatch.setattr(samples, "MOST_CONTENT", 6 * size)
    assert samples.describe(dataset).content
    monkeypatch.setattr(samples, "MOST_CONTENT", 6 * size - 1)
    by_size = samples.describe(dataset)
    assert not by_size.content and json.loads(by_size.lines[0]) == {
        "id": 0,
        "label": 0,
        "file": "a/0.bmp",
        "size": size,
    }
    assert samples.describe(dataset, content=True).digest != by_size.digest
    repaint(tmp_path)
    assert samples.describe(folder(tmp_path), by_size.content) == by_size  # what it cannot see, by its own account


def test_arrays_subsets_and_joined_splits_are_known_by_their_values() -> None:
    images = torch.arange(4 * 16, dtype=torch.uint8).view(4, 1, 4, 4)

    def array(images: torch.Tensor, ids: list[int]) -> ArrayDataset:
        labels = torch.tensor(ids) % 2
        return ArrayDataset(name="x", images=images, labels=labels, classes=("0", "1"), ids=torch.tensor(ids))

    whole = array(images, [0, 1, 2, 3])
    order = torch.tensor([2, 0, 3, 1])
    shuffled = array(images[order], order.tolist())
    assert digest(whole) == digest(shuffled) == digest(Subset(whole, order))
    assert digest(Joined([array(images[:2], [0, 1]), array(images[2:], [2, 3])])) == digest(whole)
    assert digest(Subset(whole, torch.tensor([0, 1, 2]))) != digest(whole)
    changed = images.clone()
    changed[3, 0, 0, 0] += 1
    assert digest(array(changed, [0, 1, 2, 3])) != digest(whole)


def test_a_pack_is_known_by_the_bytes_of_its_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    pack({"name": "image_folder", "root": str(tmp_path / "set")}, tmp_path / "pack", form="raw", short=16)
    shutil.copytree(tmp_path / "pack", tmp_path / "copy")
    before = digest(Packed(tmp_path / "pack", "all"))
    assert digest(Packed(tmp_path / "copy", "all")) == before
    blob = tmp_path / "copy" / "shard-00000.bin"
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    assert digest(Packed(tmp_path / "copy", "all")) != before


def test_scans_are_known_by_their_files_and_a_packed_folder_by_its_voxels(tmp_path: Path) -> None:
    write_abdomen(tmp_path / "chaos", exams=2, slices=8, size=32)
    shutil.copytree(tmp_path / "chaos", tmp_path / "copy")
    for unit in ("exam", "slice"):
        assert digest(Abdominal(tmp_path / "chaos", unit=unit)) == digest(Abdominal(tmp_path / "copy", unit=unit))  # type: ignore[arg-type]
    pack_episodes(tmp_path / "chaos", tmp_path / "exams.npz", workers=1, note=lambda line: None)
    by_folder, by_file = (Episodes(path, masks="organs") for path in (tmp_path / "chaos", tmp_path / "exams.npz"))
    assert digest(by_folder) == digest(by_file)
    image = next((tmp_path / "copy").glob("image_*"))
    other = next(path for path in sorted((tmp_path / "copy").glob("image_*")) if path != image)
    shutil.copy(other, image)
    assert digest(Abdominal(tmp_path / "copy")) != digest(Abdominal(tmp_path / "chaos"))
    assert digest(Episodes(tmp_path / "copy", masks="organs")) != digest(by_folder)


def test_a_missing_label_is_null_and_equal_to_itself() -> None:
    labels = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    arrays = {"images": torch.zeros(2, 1, 2, 2), "classes": ("a", "b"), "name": "x"}
    lines = samples.describe(ArrayDataset(labels=labels, **arrays)).lines  # type: ignore[arg-type]
    assert '"label": [1.0, null]' in lines[0] and '"label": [0.0, 1.0]' in lines[1]
    assert samples.first_difference(lines, samples.describe(ArrayDataset(labels=labels.clone(), **arrays)).lines) == ""  # type: ignore[arg-type]
    other = samples.describe(ArrayDataset(labels=labels.nan_to_num(), **arrays)).lines  # type: ignore[arg-type]
    assert samples.first_difference(lines, other) == "sample 0 has label [1.0, 0.0], it had [1.0, None]"


def test_knee_exams_are_known_by_their_files(tmp_path: Path) -> None:
    write_knee(tmp_path / "knee", train=1, valid=1, slices=(5, 7))
    shutil.copytree(tmp_path / "knee", tmp_path / "copy")
    assert digest(MRNet(tmp_path / "knee")) == digest(MRNet(tmp_path / "copy"))
    exam = MRNet(tmp_path / "copy").files[0]
    stack = np.load(exam)
    stack[0, 0, 0] ^= 1
    np.save(exam, stack)
    assert digest(MRNet(tmp_path / "knee")) != digest(MRNet(tmp_path / "copy"))
