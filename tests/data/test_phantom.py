"""Phantoms: same seed same bytes, the layouts' facts, site differences, and that pixels alone give no class away."""

import csv
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from sslmed_dist.data.phantom import PHANTOMS, write_abdomen, write_knee, write_shapes
from sslmed_dist.data.phantom.knee_anatomy import PLANES, Knee, draw_knee
from sslmed_dist.data.phantom.layouts import LAYOUTS
from sslmed_dist.data.phantom.publish import publish
from sslmed_dist.data.phantom.scanner import acquire, axis, scanner, smooth_field
from sslmed_dist.data.phantom.shapes import SHAPES, coverage, shape_set
from sslmed_dist.randomness import key, keys

Knobs = dict[str, Any]
SMALL: dict[str, Knobs] = {
    "shapes": {"train": 40, "val": 8, "test": 8},
    "knee": {"train": 3, "valid": 2, "size": 48, "slices": (5, 7)},
    "knee_exams": {"exams": 2, "scanners": 2, "size": 16, "slices": (2, 3)},
    "kneemri": {"exams": 2, "size": 16, "slices": (2, 3)},
    "abdomen": {"exams": 3, "size": 48, "slices": 10},
    "chaos": {"exams": 2, "size": 48, "slices": 10},
    "btcv": {"exams": 2, "size": 112, "slices": 10},
    "flare22": {"exams": 2, "size": 112, "slices": 10},
    "mogambo": {"exams": 2, "size": 48, "slices": 10},
    **{kind: {} if kind == "stl10" else {"size": 16} for kind in LAYOUTS},
}
IMAGES = (".pck", ".npz", ".npy", ".nii.gz", ".dcm", "X.bin", ".png", ".jpg", ".JPG", ".JPEG")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the small phantom of each kind with seed 1, made once."""

    @functools.cache
    def made(kind: str) -> Path:
        return PHANTOMS[kind](tmp_path_factory.mktemp(kind) / "set", **SMALL[kind], seed=1)

    return made


@pytest.mark.parametrize("kind", sorted(PHANTOMS))
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    kind: str, phantom: Callable[[str], Path], tmp_path: Path
) -> None:
    again, other = (PHANTOMS[kind](tmp_path / str(seed), **SMALL[kind], seed=seed) for seed in (1, 2))
    first, second = contents(phantom(kind)), contents(other)
    assert first == contents(again)
    images = [name for name in first if name.endswith(IMAGES) and "Ground" not in name]  # a mask may be empty
    assert images and all(first[name] != second.get(name) for name in images)


@pytest.mark.parametrize("kind", sorted(PHANTOMS))
def test_an_existing_phantom_is_kept_and_anything_else_is_refused(kind: str, phantom: Callable[[str], Path]) -> None:
    folder = phantom(kind)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert PHANTOMS[kind](folder, **SMALL[kind], seed=1) == folder
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match="not empty and not this phantom"):
        PHANTOMS[kind](folder, **SMALL[kind], seed=9)
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_an_empty_folder_is_filled_and_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (write_shapes(tmp_path / "empty", **SMALL["shapes"]) / "shapes.npz").is_file()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is not a folder"):
        write_shapes(tmp_path / "file", **SMALL["shapes"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        write_shapes(tmp_path / "mine", **SMALL["shapes"])


def test_until_it_is_whole_only_a_hidden_folder_is_there(tmp_path: Path) -> None:
    target = tmp_path / "set"

    def fill(folder: Path) -> None:
        (folder / "half").write_text("half")
        assert not target.exists()
        assert [path.name for path in tmp_path.iterdir()] == [folder.name] and folder.name.startswith(".set.")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(target, {"kind": "nothing"}, fill)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("write", "wrong", "message"),
    [
        (write_shapes, {"channels": 2}, "channels: expected 1 or 3"),
        (write_shapes, {"size": 8}, "size: expected at least 16"),
        (write_shapes, {"train": -1}, "train: expected a number from 0"),
        (write_shapes, {"sites": 0}, "sites: expected at least 1"),
        (write_knee, {"acl": 0.9}, "acl: 0.9 exceeds abnormal"),
        (write_knee, {"abnormal": 1.5}, "abnormal: expected a share"),
        (write_knee, {"slices": (9, 3)}, "slices: expected lowest"),
        (write_abdomen, {"slices": 2}, "at least 32 pixels and 8 slices"),
        (PHANTOMS["mhist"], {"test": -1}, "test: expected a number from 0"),
        (PHANTOMS["flowers17"], {"train": 9}, "train: this layout has exactly 1360, got 9"),
        (PHANTOMS["stl10"], {"size": 32}, "size: this layout has exactly 96 pixels, got 32"),
    ],
)
def test_impossible_requests_are_refused_and_leave_nothing(
    write: Callable[..., Path], wrong: Knobs, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "set", **wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_have_medmnist_keys(channels: int, tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "set", train=80, val=16, test=24, sites=3, channels=channels)
    with np.load(folder / "shapes.npz", allow_pickle=False) as arrays:
        for split, count in (("train", 80), ("val", 16), ("test", 24)):
            images, labels, sites = (arrays[f"{split}_{what}"] for what in ("images", "labels", "sites"))
            assert images.shape == (count, 32, 32, 3)[: 4 if channels == 3 else 3] and images.dtype == np.uint8
            assert labels.shape == (count, 1) and labels.dtype == np.uint8 and sites.dtype == np.int64
            assert np.bincount(labels[:, 0], minlength=8).tolist() == [count // 8] * 8
            assert set(sites.tolist()) == {0, 1, 2}
    spec = json.loads((folder / "phantom.json").read_text())
    assert spec["classes"] == list(SHAPES) and len(spec["scanners"]) == 3


def nearest(bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, k: int) -> float:
    """Accuracy of a majority vote of the k nearest by cosine similarity."""
    bank, queries = (torch.nn.functional.normalize(x.flatten(1).double(), dim=1) for x in (bank, queries))
    found = labels[(queries @ bank.T).topk(k, dim=1).indices]
    votes = torch.zeros(len(truth), len(SHAPES)).scatter_add_(1, found, torch.ones(found.shape))
    return float((votes.argmax(1) == truth).double().mean())


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_do_not_give_the_shape_away_and_an_invariant_does(channels: int) -> None:
    """Chance is 0.125. Raw 1- and 20-nearest neighbours stay below 0.40; with colour, texture and polarity removed
    (the shape's silhouette) and with place, size and rotation removed too (its moments), the class comes out."""
    bank, labels, _ = shape_set(0, 1600, sites=3, size=32, channels=channels, seed=0)
    queries, truth, _ = shape_set(1600, 400, sites=3, size=32, channels=channels, seed=0)
    mean = bank.double().mean(0)
    for k in (1, 20):
        assert nearest(bank, labels, queries, truth, k) < 0.40
        assert nearest(bank - mean, labels, queries - mean, truth, k) < 0.40
    silhouettes = [
        moments(coverage(keys(keys(0, "shapes", ids), "coverage"), classes, 32))
        for ids, classes in ((torch.arange(1600), labels), (torch.arange(1600, 2000), truth))
    ]
    spread = silhouettes[0].std(0)
    gaps = torch.cdist(silhouettes[1] / spread, silhouettes[0] / spread)
    assert float((labels[gaps.argmin(1)] == truth).double().mean()) > 0.8


def moments(silhouette: Tensor) -> Tensor:
    """Central moments of an image that do not change under shift, rotation and scale, (N, 5)."""
    place = axis(silhouette.shape[-1]).double()
    mass = silhouette.double()
    total = mass.sum((1, 2))
    x = place - ((mass.sum(1) @ place) / total)[:, None]
    y = place - ((mass.sum(2) @ place) / total)[:, None]
    radius2 = x[:, None, :] ** 2 + y[:, :, None] ** 2
    spread = (mass * radius2).sum((1, 2)) / total
    radius = (radius2 / spread[:, None, None]).sqrt()
    angle = torch.atan2(y[:, :, None].expand_as(mass), x[:, None, :].expand_as(mass))
    columns = [spread / total, (mass * radius**4).sum((1, 2)) / total]
    for turns in (2, 3, 4):
        wave = (mass * radius**turns * torch.exp(1j * turns * angle)).sum((1, 2)) / total
        columns.append(wave.abs())
    return torch.stack(columns, dim=1)


def test_sites_differ_in_intensity_and_a_scanner_depends_on_nothing_else() -> None:
    images, _, sites = shape_set(0, 600, sites=3, size=32, channels=1, seed=0)
    means = [float(images[sites == site].float().mean()) for site in range(3)]
    assert min(abs(a - b) for i, a in enumerate(means) for b in means[:i]) > 5.0
    assert scanner(1, 7) == scanner(1, 7) != scanner(1, 8)
    noises = sorted(scanner(site, 7).noise for site in range(4))
    assert min(b - a for a, b in zip(noises, noises[1:], strict=False)) > 0.003


def test_acquisition_is_per_volume_and_its_noise_is_rician_in_air() -> None:
    machine, volumes, subjects = scanner(0, 3), torch.zeros(3, 4, 32, 32), torch.tensor([11, 12, 13])
    together = acquire(volumes, machine, subjects)
    assert torch.equal(together[1:2], acquire(volumes[1:2], machine, subjects[1:2]))
    assert not torch.equal(together[0], together[1])
    # Modulus of a complex normal: mean sigma sqrt(pi/2).
    assert float(together.mean()) == pytest.approx(machine.noise * (torch.pi / 2) ** 0.5, rel=0.03)


def test_a_smooth_field_is_a_function_of_position() -> None:
    subjects, axes = torch.tensor([5, 6]), (axis(4), axis(6), axis(9))
    field = smooth_field(subjects, axes, (3, 5, 2))
    assert field.shape == (2, 4, 6, 9)
    one = smooth_field(subjects[1:], (axes[0][2:3], axes[1][4:5], axes[2][7:8]), (3, 5, 2))
    torch.testing.assert_close(one.flatten(), field[1, 2, 4, 7].view(1))
    many = smooth_field(torch.arange(400), axes, (3, 5, 2))
    assert float(many.mean()) == pytest.approx(0.0, abs=0.1) and float(many.std()) == pytest.approx(1.0, abs=0.1)


def read_rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_knees_have_the_layout_and_the_prevalences_of_mrnet(tmp_path: Path) -> None:
    folder = write_knee(tmp_path / "set", train=20, valid=5, size=16, slices=(2, 4))
    for split, first, count in (("train", 0, 20), ("valid", 20, 5)):
        names = [f"{number:04d}" for number in range(first, first + count)]
        labels = {}
        for label, share in (("abnormal", 0.81), ("acl", 0.18), ("meniscus", 0.35)):
            rows = read_rows(folder / f"{split}-{label}.csv")
            assert [row[0] for row in rows] == names
            labels[label] = np.array([int(row[1]) for row in rows])
            assert labels[label].sum() == round(share * count)
        assert np.all(labels["abnormal"] >= np.maximum(labels["acl"], labels["meniscus"]))
        for plane in PLANES:
            assert sorted(path.stem for path in (folder / split / plane).iterdir()) == names
            volumes = [np.load(folder / split / plane / f"{name}.npy") for name in names]
            assert all(v.dtype == np.uint8 and v.shape[1:] == (16, 16) and 2 <= len(v) <= 4 for v in volumes)
    rows = read_rows(folder / "sites.csv")
    assert rows[0] == ["id", "site"] and len(rows) == 26 and {row[1] for row in rows[1:]} == {"0", "1", "2"}


def test_the_planes_show_one_anatomy() -> None:
    """Lines through the middle of the leg, read from two planes each: tissue where there is tissue, air where air."""
    knee = Knee(key(0, "knee", 1), abnormal=False, acl=False, meniscus=False)
    volumes = {plane: draw_knee(knee, plane, 33, 33) for plane in PLANES}
    body = {plane: (volume > 0.05).float() for plane, volume in volumes.items()}
    sagittal, coronal = body["sagittal"][16].mean(1), body["coronal"][16].mean(1)
    assert sagittal.min() > 0.4 and coronal.min() > 0.4
    across_axial, across_coronal = body["axial"][16, 16], body["coronal"][16, 16]
    assert float((across_axial != across_coronal).float().sum()) <= 2


def test_lesions_change_the_picture_where_they_should() -> None:
    subject = key(0, "knee", 3)
    healthy = draw_knee(Knee(subject, True, False, False), "sagittal", 24, 96)
    torn = draw_knee(Knee(subject, True, True, False), "sagittal", 24, 96)
    changed = (healthy - torn).abs().amax((1, 2)) > 0.3
    assert changed[10:14].any() and not changed[:4].any() and not changed[20:].any()


def test_abdomens_have_every_organ_and_the_axes_of_the_real_set(tmp_path: Path) -> None:
    folder = write_abdomen(tmp_path / "set", exams=8, sites=4, size=48, slices=12)
    means = []
    for number in range(1, 9):
        image, label = (nibabel.load(folder / f"{kind}_{number:02d}.nii.gz") for kind in ("image", "label"))
        voxels, mask = np.asarray(image.dataobj), np.asarray(label.dataobj)
        assert voxels.dtype == np.int16 and mask.dtype == np.uint8 and voxels.shape == mask.shape == (48, 48, 12)
        assert nibabel.aff2axcodes(image.affine) == ("L", "A", "S")
        assert np.allclose(image.header.get_zooms(), (1.25, 1.25, 7.7)) and np.array_equal(image.affine, label.affine)
        assert set(np.unique(mask)) == {0, 1, 2, 3, 4}
        centres = {organ: np.argwhere(mask == organ).mean(0) for organ in range(1, 5)}
        assert centres[1][0] < 24 < centres[4][0] and centres[2][0] < 24 < centres[3][0]  # right organs have low x
        assert max(centres[2][2], centres[3][2]) < min(centres[1][2], centres[4][2])  # kidneys lie lowest
        means.append(voxels.mean())
    assert len(set(means)) == 8
    rows = read_rows(folder / "sites.csv")
    assert rows[0] == ["id", "site"] and sorted(row[1] for row in rows[1:]) == sorted("01230123")


def test_brightness_alone_does_not_segment_an_abdomen(tmp_path: Path) -> None:
    """For every organ, at least as many voxels outside it fall into the middle 80 % of its own intensities."""
    folder = write_abdomen(tmp_path / "set", exams=4, size=64, slices=12)
    for number in range(1, 5):
        voxels, mask = (
            np.asarray(nibabel.load(folder / f"{kind}_{number:02d}.nii.gz").dataobj) for kind in ("image", "label")
        )
        for organ in range(2, 5):
            low, high = np.percentile(voxels[mask == organ], [10, 90])
            outside = (mask != organ) & (voxels >= low) & (voxels <= high)
            assert outside.sum() >= (mask == organ).sum()
