"""Outputs are never queries, nothing is written among the queries, and names of patients can be kept out."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.verbs.segment.facts import facts
from sslmed_dist.verbs.segment.files import find_queries
from sslmed_dist.verbs.segment.model import load_model
from sslmed_dist.verbs.segment.naming import Naming, is_output
from sslmed_dist.verbs.segment.settings import Settings
from tests.verbs.segment.test_tool import ENDINGS, ONCE, given, load, made, save

__all__ = ["given"]  # a fixture


@pytest.fixture(scope="module")
def masks(given: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the tool wrote."""
    out = tmp_path_factory.mktemp("out") / "masks"
    made(given, out, labels=[1, 2])
    return out


@pytest.mark.parametrize("beside", ["run.json", "nothing", "edited"])
def test_outputs_are_no_queries(
    given: dict[str, Path], masks: Path, tmp_path: Path, beside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where they were moved away from their run.json, or a person has saved them anew."""
    folder = tmp_path / "scans"
    shutil.copytree(masks, folder)
    shutil.copy(given["query"], folder / "patient.nii.gz")
    if beside == "nothing":
        (folder / "run.json").unlink()
    if beside == "edited":
        voxels, image = load(folder / "image_02_labels.nii.gz")
        save(folder / "image_02_labels.nii.gz", voxels, image.affine)
    assert [source.path for source in find_queries(folder, ())] == [folder / "patient.nii.gz"]
    assert (
        f"note: {folder}: 2 of 3 files or folders are label maps or outputs of sslmed segment"
        in capsys.readouterr().err
    )
    for name in ("image_02_labels.nii.gz", "image_02_probability.nii.gz"):
        with pytest.raises(ValueError, match=f"{name}: a label map or an output of sslmed segment, not a scan"):
            find_queries(folder / name, ())


def test_a_folder_of_outputs_is_no_query(masks: Path) -> None:
    with pytest.raises(ValueError, match=f"^{masks}: no scan in it"):
        find_queries(masks, ())


def test_folders_of_outputs_among_folders_of_dicom(given: dict[str, Path], masks: Path, tmp_path: Path) -> None:
    voxels, image = load(given["query"])
    write_series(tmp_path / "exam", np.ascontiguousarray(voxels), image.affine)
    shutil.copytree(masks, tmp_path / "masks")
    shutil.copy(next((tmp_path / "exam").iterdir()), tmp_path / "masks" / "image_02_seg.dcm")
    assert [source.path for source in find_queries(tmp_path, ())] == [tmp_path / "exam"]
    (tmp_path / "masks" / "run.json").write_text("{}")
    read = {file for study in find_queries(tmp_path, ()) for file in study.files or ()}
    assert tmp_path / "masks" / "image_02_seg.dcm" in read, "a run.json of somebody else"


def test_label_maps_of_others_and_plain_scans(given: dict[str, Path], tmp_path: Path) -> None:
    voxels, image = load(given["query"])
    plain = save(tmp_path / "plain.nii", voxels, image.affine)
    assert not is_output(plain)
    image.header.set_intent("label")
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine, image.header), tmp_path / "labels.nii")
    assert is_output(tmp_path / "labels.nii")
    (tmp_path / "torn.nii").write_bytes(b"torn")
    assert not is_output(tmp_path / "torn.nii"), "reading it says what is wrong"


@pytest.mark.parametrize("inside", [".", "masks", "a/b"])
def test_out_lies_outside_what_is_read(given: dict[str, Path], tmp_path: Path, inside: str) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copy(given["query"], folder)
    for link in (False, True):
        read = tmp_path / "link" if link else folder
        if link:
            read.symlink_to(folder)
        with pytest.raises(ValueError, match=f"^{folder / inside}: lies in {read}, which is read; give --out a folder"):
            made(given, folder / inside, query=read)
    assert [path.name for path in folder.iterdir()] == ["image_02.nii.gz"]
    made(given, tmp_path / "masks", query=folder, labels=[1])


def test_anonymous_names(given: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No byte of a file, and no name of one, holds a name that was read; also where a query is bad."""
    for name in ("DOE^JANE", "ROE^RICHARD"):
        (tmp_path / "scans").mkdir(exist_ok=True)
        shutil.copy(given["query"], tmp_path / "scans" / f"{name}.nii.gz")
    (tmp_path / "scans" / "ROE^RICHARD.nii.gz").write_bytes(b"torn")
    support, mask = tmp_path / "MOE^MIA.nii.gz", tmp_path / "MOE^MIA_mask.nii.gz"
    shutil.copy(given["support"], support)
    shutil.copy(given["support_mask"], mask)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="1 of 2 queries"):
        made(given, out, support=support, support_mask=mask, query=tmp_path / "scans", labels=[1], names="anonymous")
    assert {path.name for path in out.iterdir()} == {f"query_01{end}" for end in ENDINGS} | ONCE
    for path in out.iterdir():
        content = path.read_bytes()
        assert not any(word in content for word in (b"DOE", b"ROE", b"MOE", b"JANE")), path
    facts = json.loads((out / "run.json").read_text())
    assert facts["support"]["image"] == "support" and [query["query"] for query in facts["queries"]] == [
        "query_01",
        "query_02",
    ]
    assert facts["queries"][1]["error"].startswith("query_02: cannot be read")
    said = capsys.readouterr().err
    assert f"note: {tmp_path / 'scans' / 'DOE^JANE.nii.gz'}: written as query_01" in said
    plain = tmp_path / "plain"
    made(given, plain, labels=[1], support=support, support_mask=mask)
    assert (plain / "image_02_labels.nii.gz").read_bytes() == (out / "query_01_labels.nii.gz").read_bytes()


def test_anonymous_masks_of_named_files_and_a_chosen_series(given: dict[str, Path], tmp_path: Path) -> None:
    """Labels called after files are numbers, and a line about a series does not tell its file."""
    voxels, image = load(given["support_mask"])
    (tmp_path / "masks").mkdir()
    save(tmp_path / "masks" / "DOE_liver.nii.gz", (voxels == 1).astype(np.uint8), image.affine)
    (tmp_path / "q" / "ROE").mkdir(parents=True)
    for name in ("ROE_t2.nii.gz", "ROE_t1.nii.gz"):
        shutil.copy(given["query"], tmp_path / "q" / "ROE" / name)
    out, options = tmp_path / "out", {"names": "anonymous", "series": "ROE_t2"}
    made(given, out, support_mask=tmp_path / "masks", query=tmp_path / "q", **options)
    for path in out.iterdir():
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert b"DOE" not in content and b"ROE" not in content, path
    assert json.loads((out / "run.json").read_text())["support"]["labels"] == {"1": "label 1"}


def test_lines_about_a_folder_lose_the_names_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "DOE^JANE"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "JANE_0001.dcm").write_bytes(b"")
    line = f"{folder}: JANE_0001.dcm lies elsewhere; DOE^JANE has two"
    assert Naming({}, True).clean(folder, line, "query_01") == (
        "query_01: (name not written) lies elsewhere; query_01 has two"
    )
    assert Naming({}, False).clean(folder, line, "DOE^JANE") == line.replace(str(folder), "DOE^JANE")


def test_the_record_names_no_folder_of_first_weights(given: dict[str, Path]) -> None:
    """Where the run took its first weights from is often below a person's own folder."""
    model = load_model(given["run"], pixel_mm=1.25)
    encoder = {**model.method["encoder"], "weights": "/home/DOE/private/lite0.safetensors"}
    model = replace(model, method={**model.method, "encoder": encoder})
    record = facts(model, {}, Settings("auto", None, False, False))
    assert record["model"]["method"]["encoder"]["weights"] == "\N{HORIZONTAL ELLIPSIS}/lite0.safetensors"
    assert "DOE" not in json.dumps(record) and "private" not in json.dumps(record)


def test_what_cannot_be_anonymous_or_named(given: dict[str, Path], tmp_path: Path) -> None:
    for options, message in (
        ({"names": "anonymous", "dicom_seg": True}, "^names: anonymous, but a DICOM-SEG carries the patient's name"),
        ({"names": "none"}, "^names: expected one of file, anonymous, got 'none'"),
    ):
        with pytest.raises(ValueError, match=message):
            made(given, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
