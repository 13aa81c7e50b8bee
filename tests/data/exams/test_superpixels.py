"""Pseudo-masks: the body, what a superpixel is, the cache, and processes that compute it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslmed_dist.data import workers
from sslmed_dist.data.exams import superpixels
from sslmed_dist.data.exams.superpixels import Recipe, body_mask, relabel, superpixel_maps
from sslmed_dist.data.exams.superpixels import superpixels as segment
from sslmed_dist.data.scans.nifti import axial_slices, read_canonical
from tests.real_data import real_data
from tests.views.scenes import scene

pytest.importorskip("skimage")
SMALL = Recipe(min_size=24)


def volume(count: int = 3, side: int = 40, first: int = 0) -> np.ndarray:
    """Slices of a bright square body with texture on a dark ground."""
    slices = np.zeros((count, side, side), np.float32)
    texture = scene(first + count, 1, side - 10, side - 8, torch.float32)[first:, 0].numpy()
    slices[:, 5:-5, 4:-4] = 100 + 900 * texture
    return slices


def maps_of(volumes: list[np.ndarray], cache: Path | None, recipe: Recipe = SMALL, workers: int = 1) -> list[Any]:
    names = [f"volume {i}" for i in range(len(volumes))]
    return superpixel_maps(volumes, recipe, names=names, cache=cache, workers=workers)


def test_body_is_the_largest_bright_component_without_holes() -> None:
    image = np.zeros((12, 14), np.float32)
    image[2:9, 2:8] = 60
    image[4:6, 4:6] = 10  # a hole
    image[9, 8] = 60  # touches at a corner
    image[2:5, 10:13] = 900  # a smaller component
    expected = np.zeros((12, 14), bool)
    expected[2:9, 2:8] = expected[9, 8] = True
    assert np.array_equal(body_mask(image), expected)
    assert np.array_equal(body_mask(image, 100.0), image > 100)
    assert not body_mask(np.full((4, 4), 50.0, np.float32)).any()  # not brighter than 50
    assert body_mask(np.full((4, 4), 50.1, np.float32)).all()


def test_superpixels_tile_the_body_and_none_is_a_sliver() -> None:
    for image in volume(4):
        labels, body = segment(image, SMALL), body_mask(image)
        sizes = np.bincount(labels.ravel())
        assert labels.dtype == np.uint16 and len(sizes) > 5 and sizes[1:].min() >= 24 // 4
        assert not labels[~body].any() and (labels[body] > 0).mean() > 0.9
    assert not segment(np.full((20, 20), 3.0, np.float32), SMALL).any()
    flat = segment(np.full((20, 20), 300.0, np.float32), SMALL)
    assert np.array_equal(flat, np.ones((20, 20)))  # one body, one superpixel


def test_relabel_leaves_no_gap_and_no_small_label() -> None:
    labels = np.array([[0, 7, 7, 7], [0, 2, 9, 9], [4, 4, 9, 0]])
    assert relabel(labels, 2).tolist() == [[0, 2, 2, 2], [0, 0, 3, 3], [1, 1, 3, 0]]
    assert relabel(labels, 1).max() == 4 and relabel(labels, 9).max() == 0
    assert relabel(np.zeros((2, 2), int), 1).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match="min_size: 40000 superpixels in a slice"):
        relabel(np.arange(40001), 1)


def test_raw_whole_numbers_are_not_rescaled() -> None:
    image = volume(1)[0].round()
    assert np.array_equal(segment(image.astype(np.int16), SMALL), segment(image, SMALL))  # type: ignore[arg-type]


def test_a_warm_cache_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = [volume(3), volume(2, 36, 3)]
    cold = maps_of(volumes, tmp_path / "deep" / "cache")
    files = sorted((tmp_path / "deep" / "cache").iterdir())
    assert len(files) == 2 and all(len(f.stem) == 40 and set(f.stem) <= set("0123456789abcdef") for f in files)
    assert [one.shape for one in cold] == [(3, 40, 40), (2, 36, 36)]
    assert all(np.array_equal(a, b) for a, b in zip(cold, maps_of(volumes, None), strict=True))
    monkeypatch.setattr(superpixels, "volume_superpixels", lambda *a, **k: pytest.fail("computed"))
    warm = maps_of(volumes[::-1], tmp_path / "deep" / "cache")[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(cold, warm, strict=True))
    assert sorted((tmp_path / "deep" / "cache").iterdir()) == files


def test_another_voxel_or_parameter_is_another_file(tmp_path: Path) -> None:
    one = volume(1)
    other = one.copy()
    other[0, 0, 0] = 1
    for recipe in (SMALL, Recipe(2.0, min_size=24), Recipe(sigma=0.5, min_size=24), Recipe(min_size=25),
                   Recipe(min_size=24, body_threshold=60)):  # fmt: skip
        maps_of([one], tmp_path, recipe)
    maps_of([other], tmp_path)
    maps_of([one[:, :20], one[:, 20:]], tmp_path)
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("damage", ["torn", "empty", "bits", "shape", "other"])
def test_a_damaged_file_is_written_anew(tmp_path: Path, damage: str) -> None:
    expected = maps_of([volume()], tmp_path)[0]
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "shape":
        np.savez_compressed(path, maps=expected[:1])
    elif damage == "other":
        np.savez_compressed(path, nothing=expected)
    else:
        bits = bytearray(content)
        bits[len(bits) // 2] ^= 0x55
        path.write_bytes({"torn": content[: len(content) // 2], "empty": b"", "bits": bytes(bits)}[damage])
    assert np.array_equal(maps_of([volume()], tmp_path)[0], expected)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with np.load(path) as archive:
        assert np.array_equal(archive["maps"], expected)


def test_processes_give_the_same_maps_also_from_a_thread(tmp_path: Path) -> None:
    volumes = [volume(2, first=i) for i in range(3)]
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.extend(maps_of(volumes, tmp_path, workers=2)))
    thread.start()
    thread.join()
    assert len(made) == 3 and len(list(tmp_path.iterdir())) == 3
    assert all(np.array_equal(a, b) for a, b in zip(made, maps_of(volumes, None), strict=True))


class Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return os._exit, (1,)


def test_a_process_that_ends_is_one_line() -> None:
    with pytest.raises(ValueError, match="workers: a process ended early"):
        list(superpixels.compute([volume(1), volume(1)], Deadly(), 2))  # type: ignore[arg-type]


def test_a_daemonic_process_computes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Daemon:
        daemon = True

    monkeypatch.setattr(workers.multiprocessing, "current_process", Daemon)
    monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda *a, **k: pytest.fail("started processes"))
    assert len(maps_of([volume(1), volume(1)], None, workers=2)) == 2


def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    message = "data.cache: cannot write to .*; name a folder that can be written"
    with pytest.raises(ValueError, match=message):
        maps_of([volume(1)], tmp_path / "file")
    with pytest.raises(ValueError, match=message):
        maps_of([volume(1)], tmp_path / "file" / "below")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match=message):
        maps_of([volume(1)], tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr(superpixels.os, "access", lambda *_: False)
    monkeypatch.setattr(superpixels, "volume_superpixels", lambda *a, **k: pytest.fail("computed before it looked"))
    with pytest.raises(ValueError, match=message):
        maps_of([volume(1)], tmp_path / "cache")


def test_wrong_arguments_and_volumes_without_a_body() -> None:
    for arguments, message in (
        ({"scale": -1.0}, "scale: expected 0 or more"),
        ({"sigma": float("nan")}, "sigma: expected 0 or more, got nan"),
        ({"min_size": 0}, "min_size: expected at least 1 pixel, got 0"),
        ({"body_threshold": float("inf")}, "body_threshold: expected an intensity"),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data.workers: expected at least 1 process, got 0"):
        maps_of([volume(1)], None, workers=0)
    with pytest.raises(
        ValueError, match="volume 1: no superpixel in it: .* body_threshold 50; set data.body_threshold"
    ):
        maps_of([volume(1), volume(1) / 100], None)


def test_a_warm_cache_needs_no_extra(tmp_path: Path) -> None:
    np.save(tmp_path / "volume.npy", volume())
    maps_of([volume()], tmp_path / "cache")
    code = (
        "import sys, numpy; from pathlib import Path\n"
        "from sslmed_dist.data.exams.superpixels import Recipe, superpixel_maps\n"
        f"v = numpy.load({str(tmp_path / 'volume.npy')!r})\n"
        f"superpixel_maps([v], Recipe(min_size=24), names=['v'], cache=Path({str(tmp_path / 'cache')!r}))\n"
        "print([m for m in ('skimage', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_real_slices_have_superpixels() -> None:
    voxels = read_canonical(real_data("chaos-t2spir/image_01.nii.gz")).voxels
    slices = axial_slices(voxels)[4:28:6]
    for image in slices:
        sizes = np.bincount(segment(image, Recipe()).ravel())[1:]
        assert 10 <= len(sizes) <= 60 and sizes.min() >= 100
        assert 0.2 < body_mask(image).mean() < 0.8
