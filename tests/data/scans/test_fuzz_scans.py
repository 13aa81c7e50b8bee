"""Damaged scans: the whole scan, or one line. Never a shorter one, and nothing half-written."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from sslmed_dist.data.exams.one_series import read_image
from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.verbs.segment.files import find_queries
from tests.data.exams.dicom_series import enhance
from tests.data.mutations import mutate
from tests.verbs.segment.test_tool import given, load, made

__all__ = ["given"]  # a fixture

SEED = int(os.environ.get("SSLMED_FUZZ_SEED", "1"))
FEW, MANY, THROUGH = 42, 500, 60  # cases by default, in the slow test, and of those every how many-th through the tool
TAGS = {"ImagesInAcquisition": 10, "SeriesDescription": "t2", "ImageType": ["ORIGINAL", "PRIMARY"]}


def lose_pixels(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    at = content.find(b"\xe0\x7f\x10\x00")
    path.write_bytes(content[: at if at > 0 else 400])


DAMAGES: list[Callable[[Path, random.Random], Any]] = [
    mutate,
    mutate,
    mutate,
    lambda path, draw: path.unlink(),
    lambda path, draw: path.write_bytes(path.read_bytes()[: draw.choice((0, 100, 400))]),
    lose_pixels,
]


@pytest.fixture(scope="module")
def templates(given: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scan of 10 slices in the forms that hospitals keep: a folder each."""
    root = tmp_path_factory.mktemp("forms")
    voxels, image = load(given["query"])
    voxels = np.ascontiguousarray(voxels).astype(np.int16)
    files = write_series(root / "plain", voxels, image.affine, tags=TAGS)
    for form in ("bare", "packed", "enhanced", "nii", "gz"):
        (root / form).mkdir()
    for k, path in enumerate(files):
        (root / "bare" / f"IM{k}").write_bytes(path.read_bytes()[132:])
        header = pydicom.dcmread(path)
        header.compress(RLELossless)
        header.save_as(root / "packed" / f"1.2.3.{k}")
    enhance(files, root / "enhanced" / "all.dcm", list(range(10)))
    for form, suffix in (("nii", ".nii"), ("gz", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), root / form / f"a{suffix}")
    return root


def damaged(templates: Path, case: int, where: Path) -> tuple[Path, Path, str]:
    """(folder of the scan, the file that was damaged, in words which case it is) of a case."""
    draw = random.Random(f"{SEED} {case}")
    form = sorted(path.name for path in templates.iterdir())[case % 6]
    folder = Path(shutil.copytree(templates / form, where / form))
    file = draw.choice(sorted(folder.iterdir()))
    draw.choice(DAMAGES)(file, draw)
    return folder, file, f"seed {SEED}, case {case}, {form}/{file.name}"


def judged(folder: Path, file: Path, whole: Path) -> str:
    """What is wrong with how the damaged scan was answered; "" for the whole scan, or one line."""
    try:
        scans = [read_image(source)[0] for source in find_queries(folder, ())]
    except ValueError as error:
        line = str(error)
        if type(error) is not ValueError or "\n" in line or not line.isprintable() or str(folder) not in line:
            return f"no line that names it: {type(error).__name__}: {line[:200]!r}"
        return "refused"
    except Exception as error:  # what this test is for
        return f"{type(error).__name__}: {str(error)[:200]}"
    expected = read_image(whole)[0]
    if [scan.voxels.shape for scan in scans] != [expected.voxels.shape]:
        return f"shapes {[scan.voxels.shape for scan in scans]} instead of {expected.voxels.shape}"
    changed = (scans[0].voxels != expected.voxels).any((0, 1)).sum()
    if len(list(whole.iterdir())) > 1 and changed > 1:
        return f"{changed} slices changed by the damage of one file"
    return ""


def run_cases(templates: Path, cases: range, tmp_path: Path) -> None:
    wrong, refused = [], 0
    for case in cases:
        folder, file, name = damaged(templates, case, tmp_path / str(case))
        answer = judged(folder, file, templates / folder.name)
        refused += answer == "refused"
        wrong += [f"{name}: {answer}"] if answer not in ("", "refused") else []
        shutil.rmtree(tmp_path / str(case))
    assert refused > len(cases) // 3, "else the files were hardly damaged"
    assert not wrong, f"{len(wrong)} faults:\n" + "\n".join(wrong)


@pytest.mark.filterwarnings("ignore")
def test_a_few_damaged_scans(templates: Path, tmp_path: Path, capfd: Any) -> None:
    run_cases(templates, range(FEW), tmp_path)
    assert capfd.readouterr().err == "", "what readers say is kept out"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_five_hundred_damaged_scans(given: dict[str, Path], templates: Path, tmp_path: Path) -> None:
    run_cases(templates, range(MANY), tmp_path / "read")
    for case in range(0, MANY, MANY // THROUGH):
        folder, _, name = damaged(templates, case, tmp_path / "tool" / str(case))
        out = tmp_path / "out" / str(case)
        try:
            written = made(given, out, query=folder, labels=[1])
        except ValueError as error:
            assert "\n" not in str(error) and not (out.exists() and list(out.iterdir())), name
        else:
            assert sorted(written) == sorted(out.iterdir()) and len(written) == 7, name
            (labels,) = (load(path)[0] for path in written if path.name.endswith("_labels.nii.gz"))
            assert labels.shape[2] == 10, name
