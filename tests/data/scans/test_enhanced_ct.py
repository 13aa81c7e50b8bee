"""An enhanced multi-frame CT: one file, frames in any order, Hounsfield units and places in mm as of plain files."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from sslmed_dist.data.check import inspect
from sslmed_dist.data.exams.one_series import read_image
from sslmed_dist.data.exams.series import read_examination
from sslmed_dist.data.exams.series_stack import read_stack
from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.verbs.segment.files import find_queries
from tests.data.exams.dicom_series import enhance

AFFINE = np.diag([-0.8, -0.7, 2.5, 1.0])
HOUNSFIELD = np.random.default_rng(2).integers(-1000, 1500, (9, 7, 5)).astype(np.int16)
TAGS: dict[str, Any] = {"Modality": "CT", "RescaleType": "HU", "SeriesDescription": "abdomen venous"}


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same CT as plain files and as one enhanced file."""
    root = tmp_path_factory.mktemp("ct")
    files = write_series(root / "plain", HOUNSFIELD + 1024, AFFINE, intercept=-1024.0, tags=TAGS)
    (root / "enhanced").mkdir()
    path = enhance(files, root / "enhanced" / "all.dcm", [3, 0, 4, 1, 2])
    header: Any = pydicom.dcmread(path)
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    for groups in header.PerFrameFunctionalGroupsSequence:
        groups.PixelValueTransformationSequence[0].RescaleType = "HU"
    header.save_as(path)
    return {"plain": root / "plain", "enhanced": root / "enhanced", "file": path}


@pytest.mark.parametrize("kind", ["plain", "enhanced", "file"])
def test_values_and_places_are_those_of_the_scanner(ct: dict[str, Path], kind: str) -> None:
    (source,) = find_queries(ct[kind], ())
    scan, _ = read_image(source)
    assert np.array_equal(scan.voxels, HOUNSFIELD), "Hounsfield units, not stored values"
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-6)
    assert scan.oriented and scan.series.modality == "CT"
    (series,) = read_examination(source.files or ()).series
    assert series.plane == "axial" and series.shape == (5, 7, 9) and series.missing == 0
    assert np.array_equal(read_stack(series), HOUNSFIELD.transpose(2, 1, 0))
    lines, problems = inspect(ct[kind])
    assert not problems and f"values {HOUNSFIELD.min()} to {HOUNSFIELD.max()}" in "\n".join(lines)


@pytest.mark.parametrize("damage", ["a frame lost", "pixels cut"])
def test_a_damaged_one_is_named(ct: dict[str, Path], damage: str, tmp_path: Path) -> None:
    path = tmp_path / "all.dcm"
    header: Any = pydicom.dcmread(ct["file"])
    if damage == "a frame lost":
        del header.PerFrameFunctionalGroupsSequence[2]
        header.save_as(path)
    else:
        path.write_bytes(ct["file"].read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"^{path}: ") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
