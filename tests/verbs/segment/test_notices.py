"""``sslmed segment`` says what reading a scan changed or had to guess, and ``run.json`` keeps it."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from sslmed_dist.downstream.oneshot import reliability
from tests.verbs.segment.test_tool import given, load, made, save

__all__ = ["given"]  # a fixture

# What is said of a random encoder, and of noise beside a body; other tests look at it.
KIND = ("do not trust the masks", "unlike the training data?", "field of view?", "not calibrated")


@pytest.fixture
def mirrored(given: dict[str, Path], tmp_path: Path) -> Path:
    """The query as a DICOM series whose low values are meant bright."""
    pydicom = pytest.importorskip("pydicom")
    from sslmed_dist.data.phantom.chaos import write_series

    voxels, image = load(given["query"])
    for file in write_series(tmp_path / "dark", np.ascontiguousarray(voxels), image.affine):
        header = pydicom.dcmread(file)
        header.PhotometricInterpretation = "MONOCHROME1"
        header.save_as(file)
    return tmp_path / "dark"


def test_notices_are_printed_and_kept(
    given: dict[str, Path], mirrored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    support: Any = nibabel.load(given["support"])
    support.header["sform_code"] = support.header["qform_code"] = 0
    unknown = tmp_path / "unknown.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(support.dataobj), None, support.header), unknown)
    mask: Any = nibabel.load(given["support_mask"])
    mask_unknown = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(mask.dataobj), None, support.header), mask_unknown)
    made(given, tmp_path / "out", support=unknown, support_mask=mask_unknown, query=mirrored)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    said = [line for line in said if not any(words in line for words in KIND)]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    (query,) = record["queries"]
    assert len(query["notices"]) == 2 and query["notices"][0].startswith("MONOCHROME1: pixels were mirrored")
    assert query["notices"][1].startswith("its files do not say how many slices it has")
    assert record["support"]["notices"] == ["has neither a qform nor an sform: where left and right are is a guess"] * 2
    paths = (unknown, mask_unknown, mirrored, mirrored)
    assert said == [
        f"note: {path}: {notice}"
        for path, notice in zip(paths, [*record["support"]["notices"], *query["notices"]], strict=True)
    ]


def test_a_plain_query_has_none(given: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(given, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["support"]["notices"] == record["queries"][0]["notices"] == []
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes[0].startswith("note: Reliability of label 1, label 2, label 3, label 4: not calibrated, it was fitted")
    assert len(notes) == 3 and KIND[1] in notes[1] and KIND[0] in notes[2], "the encoder is random"
    assert record["queries"][0]["warnings"] == [notes[1].removeprefix("note: image_02: ")]


def test_padded_corners_change_no_mask(given: dict[str, Path], tmp_path: Path) -> None:
    """Of a phantom: the masks with corners of -2000 are those without, but for a voxel in a hundred."""
    image: Any = nibabel.load(given["query"])
    voxels = np.asarray(image.dataobj).astype(np.int16)
    for i in (slice(None, 9), slice(-9, None)):
        voxels[i, :9], voxels[i, -9:] = -2000, -2000
    query = save(tmp_path / "image_02.nii.gz", voxels, image.affine)
    made(given, tmp_path / "plain", labels=[1, 2])
    made(given, tmp_path / "padded", labels=[1, 2], query=query)
    plain, padded = (load(tmp_path / kind / "image_02_labels.nii.gz")[0] for kind in ("plain", "padded"))
    assert plain.any() and (plain != padded).mean() < 0.01
    record = json.loads((tmp_path / "padded" / "run.json").read_text())
    assert record["queries"][0]["notices"][0].startswith("padding, by values far below all others (-2000): 7.9 %")


def test_a_rule_that_has_no_effect_and_a_support_among_the_queries_are_said(
    given: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for name, key in (("image_01", "support"), ("mask", "support_mask"), ("image_02", "query")):
        shutil.copy(given[key], scans / f"{name}.nii.gz")
    inside = {"support": scans / "image_01.nii.gz", "support_mask": scans / "mask.nii.gz", "query": scans}
    made(given, out, labels=[1], probabilities=False, series="t2", support_series="t1", names="anonymous", **inside)
    record, said = json.loads((out / "run.json").read_text()), capsys.readouterr().err
    line = "2 of its files or folders are a support or its mask: no queries"
    assert record["notices"] == [line] and f"note: {scans}: {line}" in said
    (query,) = record["queries"]
    assert query["notices"] == ["a file of NIfTI is one series: --series 't2' chose nothing"]
    assert record["support"]["notices"] == ["a file of NIfTI is one series: --support-series 't1' chose nothing"]


def test_where_the_reliability_is_no_probability_the_result_says_so(given: dict[str, Path], tmp_path: Path) -> None:
    """Its constants were fitted to four organs; another organ, or a label without a name, is none of them. The names
    are those of the support's own files, also where the outputs hide them."""
    named = tmp_path / "imagesTr"
    layout = tmp_path / "labelsTr"
    named.mkdir()
    layout.mkdir()
    image, mask = named / "scan_01_0000.nii.gz", layout / "scan_01.nii.gz"
    shutil.copy(given["support"], image)
    shutil.copy(given["support_mask"], mask)
    labels = {"background": 0, "Liver": 1, "bladder": 2}
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"})
    )
    made(given, tmp_path / "out", support=image, support_mask=mask, labels=[1, 2], probabilities=False)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    trust = record["queries"][0]["reliability"]
    assert trust["1"]["calibrated"] is True and trust["2"]["calibrated"] is False
    with (tmp_path / "out" / "volumes.csv").open() as file:
        notes = {int(row["label"]): row["note"] for row in csv.DictReader(file)}
    assert reliability.UNCALIBRATED in notes[2] and reliability.UNCALIBRATED not in notes[1]
    line = "Reliability of bladder: not calibrated, it was fitted to right kidney, left kidney, liver, spleen."
    assert line in (tmp_path / "out" / "overlay.html").read_text()
