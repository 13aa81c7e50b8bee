"""Many labels: one that is too small does not refuse the others, and the files are the same however they are made."""

import csv
import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from sslmed_dist.data.scans.grid import from_model, place, slab, to_model
from sslmed_dist.data.scans.masks import of_label_map
from sslmed_dist.data.scans.nifti_writing import nifti_like, nifti_stream
from sslmed_dist.data.scans.scan import read_scan
from sslmed_dist.verbs.segment.model import load_model, placed, standardised
from sslmed_dist.verbs.segment.search import OUTSIDE, encode, example, kind_of, learn, search
from sslmed_dist.verbs.segment.settings import Settings
from tests.verbs.segment.test_tool import ENDINGS, ONCE, given, load, made, save

__all__ = ["given"]  # a fixture


def test_a_tiny_label_is_left_out_and_said(
    given: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels, image = load(given["support_mask"])
    voxels = voxels.copy()
    voxels[0, 0, 0] = 9
    mask = save(tmp_path / "mask.nii.gz", voxels, image.affine)
    made(given, tmp_path / "all", labels=[1, 3])
    made(given, tmp_path / "out", support_mask=mask, labels=[1, 3, 9], pixel_mm=2.5)
    made(given, tmp_path / "without", labels=[1, 3], pixel_mm=2.5)
    why = "label 9 fills no pixel of the 64 x 64 slices of 2.5 mm about the middle of the support; "
    assert [line for line in capsys.readouterr().err.splitlines() if "left out" in line] == [
        f"note: {mask}: {why}it is too small or lies outside them: left out"
    ]
    rows = list(csv.DictReader((tmp_path / "out" / "volumes.csv").open()))
    assert [row["label"] for row in rows] == ["1", "3", "9"]
    assert rows[2]["note"].startswith(f"not looked for: {why}") and rows[2]["voxels"] == rows[2]["volume_ml"] == ""
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["support"]
    assert list(facts["left_out"]) == ["9"] and facts["labels"] == {"1": "label 1", "3": "label 3"}
    name = "image_02_labels.nii.gz"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert load(tmp_path / "out" / name)[0].any()


def test_without_probabilities_the_other_files_are_the_same(given: dict[str, Path], tmp_path: Path) -> None:
    made(given, tmp_path / "with", labels=[1, 2])
    made(given, tmp_path / "without", labels=[1, 2], probabilities=False)
    left = {path.name for path in (tmp_path / "without").iterdir()}
    assert left == {f"image_02{end}" for end in ENDINGS - {"_probability.nii.gz"}} | ONCE
    for name in left - {"run.json", "volumes.csv"}:
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes(), name
    one, other = (
        [{**row, "call": ""} for row in csv.DictReader((tmp_path / kind / "volumes.csv").open())]
        for kind in ("with", "without")
    )
    assert one == other and one
    facts = json.loads((tmp_path / "without" / "run.json").read_text())
    assert facts["probability"] == "not written (--no-probabilities)"


def test_label_by_label_is_as_all_at_once(given: dict[str, Path], tmp_path: Path) -> None:
    """The label map and the probabilities against those of all margins in memory."""
    made(given, tmp_path / "out")
    scan, mask = read_scan(given["support"]), read_scan(given["support_mask"])
    model = load_model(given["run"], pixel_mm=1.25)
    settings = Settings("auto", None, False, False)
    stack, _ = standardised(scan, placed(model, scan), settings.intensity)
    organs, _ = learn(model, [example(model, of_label_map(mask), stack)], [1, 2, 3, 4])
    kind, query = kind_of(scan, stack), read_scan(given["query"])
    stack, _ = standardised(query, placed(model, query), settings.intensity)
    encoded = encode(model, query, stack, placed(model, query), kind)
    margins = np.stack(
        [from_model(found.margins, found.placement, outside=OUTSIDE) for found in search(model, organs, encoded)]
    )
    wanted = np.where(margins.max(0) > 0, margins.argmax(0) + 1, 0)
    assert np.array_equal(load(tmp_path / "out" / "image_02_labels.nii.gz")[0], wanted) and wanted.any()
    probability = load(tmp_path / "out" / "image_02_probability.nii.gz")[0]
    assert np.allclose(probability, np.moveaxis(1 / (1 + np.exp(-margins.clip(-80))), 0, 3), atol=1e-6)
    for row in csv.DictReader((tmp_path / "out" / "volumes.csv").open()):
        inside = wanted == int(row["label"])
        assert float(row["mean_margin"]) == pytest.approx(margins.max(0)[inside].mean(), abs=1e-3)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("up", [1, -1])
def test_a_slab_lies_where_it_lay(axes: tuple[int, int, int], up: int) -> None:
    """Slices 2 to 4 by themselves: the same voxels, model pixels and millimetres, whatever the array order."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag([1.0, 1.5, 4.0 * up])[:, np.argsort(axes)]
    affine[:3, 3] = [3.0, -7.0, 11.0]
    volume = np.random.default_rng(0).normal(size=np.array([9, 10, 7])[np.argsort(axes)]).astype(np.float32)
    placement = place(volume.shape, affine, pixel=1.0, size=8)
    index, part = slab(placement, 2, 4)
    low = float(volume.min())
    whole = to_model(volume, placement)
    assert torch.equal(to_model(volume[index], part, outside=low), whole[2:5])
    back = from_model(whole[:, 0], placement)
    assert np.array_equal(from_model(whole[2:5, 0], part), back[index])
    corner = [piece.indices(side)[0] for piece, side in zip(index, volume.shape, strict=True)]
    assert np.allclose(part.affine[:3, 3], affine[:3, :3] @ corner + affine[:3, 3])


def test_a_file_written_in_parts_is_read_as_one(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(4, 5, 3, 2)).astype(np.float32)
    affine = np.diag([2.0, -1.0, 3.0, 1.0])
    for header in (
        None,
        nibabel.Nifti1Image(values[..., 0], affine).header,
        nibabel.Nifti2Image(values, affine).header,
    ):
        with (
            (tmp_path / "parts.nii.gz").open("wb") as file,
            nifti_stream(file, values.shape, values.dtype, affine, header) as write,
        ):
            write(values[..., 0])
            write(np.asfortranarray(values[..., 1]))
        content, image = load(tmp_path / "parts.nii.gz")
        assert np.array_equal(content, values) and content.dtype == np.float32
        assert header is None or image.header["sizeof_hdr"] == header["sizeof_hdr"]
        whole = nifti_like(values, affine, header)
        assert gzip.decompress(whole) == gzip.decompress((tmp_path / "parts.nii.gz").read_bytes())
