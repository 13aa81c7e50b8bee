"""Sets of exams in the layouts they are published in, as phantoms: found, read, checked and trained on as they are."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sslmed_dist.data.check import inspect
from sslmed_dist.data.exams.abdominal import Abdominal
from sslmed_dist.data.exams.episodes import Episodes
from sslmed_dist.data.exams.exam_archive import pack_episodes
from sslmed_dist.data.exams.exam_layouts import BTCV, COUNTED, FLARE22, MOGAMBO, find_layout, numbered
from sslmed_dist.data.exams.mask_files import read_masks
from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.data.scans.dicom_file import begins_as_dicom
from sslmed_dist.data.scans.scan import read_scan
from sslmed_dist.verbs.segment.tool import segment
from tests.verbs.segment.test_tool import write_run

SHAPE, AFFINE = (16, 14, 6), np.diag([-2.0, -2.0, 3.0, 1.0])
Array = NDArray[Any]


def save(path: Path, voxels: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), path)


def image(seed: int) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.int16)


def mask(*values: int) -> NDArray[np.uint8]:
    """A phantom's mask: organ n fills a block in slices n and n + 1."""
    labels = np.zeros(SHAPE, np.uint8)
    for n, value in enumerate(values):
        labels[2 + 4 * n : 5 + 4 * n, 3:8, n : n + 2] = value
    return labels


def describe(root: Path, **content: Any) -> None:
    (root / "dataset.json").write_text(json.dumps(content))


def decathlon(root: Path) -> None:
    for n in (3, 10):
        save(root / "imagesTr" / f"colon_{n:03d}.nii.gz", image(n))
        save(root / "labelsTr" / f"colon_{n:03d}.nii.gz", mask(1, 2))
        (root / "imagesTr" / f"._colon_{n:03d}.nii.gz").write_bytes(b"macOS")
    save(root / "imagesTs" / "colon_011.nii.gz", image(11))
    describe(root, modality={"0": "CT"}, labels={"0": "background", "1": "liver", "2": "tumour"}, training=[])


def nnunet(root: Path, **content: Any) -> None:
    for n in (3, 10):
        save(root / "imagesTr" / f"amos_{n:04d}_0000.nii.gz", image(n))
        save(root / "labelsTr" / f"amos_{n:04d}.nii.gz", mask(1, 2))
    describe(root, **content)


def nnunet_1(root: Path) -> None:
    nnunet(root, modality={"0": "CT"}, labels={"0": "background", "1": "liver", "2": "tumour"})


def nnunet_2(root: Path) -> None:
    labels = {"background": 0, "liver": 1, "tumour": 2}
    nnunet(root, channel_names={"0": "CT"}, labels=labels, file_ending=".nii.gz", numTraining=2)


def total_segmentator(root: Path) -> None:
    for n in (3, 10):
        save(root / f"s{n:04d}" / "ct.nii.gz", image(n))
        for value, organ in enumerate(("tumour", "liver"), start=1):
            part = (mask(2, 1) == value).astype(np.uint8)
            save(root / f"s{n:04d}" / "segmentations" / f"{organ}.nii.gz", part)


def btcv(root: Path) -> None:
    for n in (3, 10):
        save(root / "RawData" / "Training" / "img" / f"img{n:04d}.nii.gz", image(n))
        save(root / "RawData" / "Training" / "label" / f"label{n:04d}.nii.gz", mask(6, 11))


def flare22(root: Path) -> None:
    for n in (3, 10):
        save(root / "images" / f"FLARE22_Tr_{n:04d}_0000.nii.gz", image(n))
        save(root / "labels" / f"FLARE22_Tr_{n:04d}.nii.gz", mask(1, 4))


def mogambo(root: Path) -> None:
    for n in (3, 10):
        save(root / "images" / f"MOGaMBO_{n:03d}.nii.gz", image(n))
        save(root / "masks" / f"MOGaMBO_{n:03d}.nii.gz", mask(1, 2))


OURS = ("liver", "tumour")
# layout: writer of the phantom, what it is called, its organs, those that stand in blocks 1 and 2
SETS: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...], tuple[str, str]]] = {
    "decathlon": (decathlon, "Medical Segmentation Decathlon", OURS, OURS),
    "nnunet_1": (nnunet_1, "nnU-Net (version 1)", OURS, OURS),
    "nnunet_2": (nnunet_2, "nnU-Net (version 2)", OURS, OURS),
    "total": (total_segmentator, "TotalSegmentator", OURS, OURS),
    "btcv": (btcv, "BTCV", BTCV, ("liver", "pancreas")),
    "flare22": (flare22, "FLARE22", FLARE22, ("liver", "pancreas")),
    "mogambo": (mogambo, "MOGaMBO", MOGAMBO, ("urinary bladder", "rectum")),
}


@pytest.mark.parametrize("kind", SETS)
def test_a_set_is_read_without_renaming(kind: str, tmp_path: Path) -> None:
    """Numbers, names of organs, and where each organ is; by default its own organs, or those that are asked for."""
    write, title, organs, (first, second) = SETS[kind]
    write(tmp_path)
    layout = find_layout(tmp_path)
    assert layout.name == title and list(layout.images) == list(layout.masks) == [3, 10]
    assert set(layout.organs.values()) == set(organs) and min(layout.organs) == 1
    data = Abdominal(tmp_path, unit="slice", organs=(second, first))
    assert data.classes == (second, first) and data.ids.tolist()[:6] == [4096 * 3 + s for s in range(6)]
    present = [[0, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert data.labels[:6].T.tolist() == data.labels[6:].T.tolist() == present
    assert len({record["file"] for record in data.records}) == 2
    assert data.stored(0).digest() != data.stored(6).digest()
    evaluated = Episodes(tmp_path, masks="organs", organs=(first, second), cache="")
    expected = torch.from_numpy(mask(1, 2)[::1].transpose(2, 1, 0).copy())
    upright = evaluated.maps[:6].flip(1)  # the phantom's axes run left, posterior, superior
    assert torch.equal(upright, expected) or torch.equal(evaluated.maps[:6], expected)


@pytest.mark.parametrize("kind", SETS)
def test_the_default_organs(kind: str, tmp_path: Path) -> None:
    """Those of the recipe where the set has them, else all of the set; the archive keeps their names."""
    write, _, organs, _ = SETS[kind]
    write(tmp_path / "set")
    data = Abdominal(tmp_path / "set")
    four = ("liver", "right kidney", "left kidney", "spleen")
    assert data.classes == (four if set(four) <= set(organs) else organs)
    packed = pack_episodes(tmp_path / "set", tmp_path / "packed.npz", min_size=4, body_threshold=1.0, cache="")
    whole, again = (Episodes(path, masks="organs", cache="") for path in (tmp_path / "set", packed))
    assert whole.classes == again.classes == data.classes and torch.equal(whole.maps, again.maps)


@pytest.mark.parametrize("kind", SETS)
def test_data_check_names_layout_and_organs(kind: str, tmp_path: Path) -> None:
    write, title, organs, (first, second) = SETS[kind]
    write(tmp_path)
    lines, problems = inspect(tmp_path)
    assert lines[0] == f"layout: {title}" and "exams: 2, 2 with a mask" in lines
    (counted,) = [line for line in lines if line.startswith("slices with organ: ")]
    assert f"{first} 4" in counted and f"{second} 4" in counted and all(organ in counted for organ in organs)
    assert ("imagesTs: 1 image without masks are left aside" in lines) == (kind == "decathlon")
    expected = [organ for organ in organs if organ not in (first, second)]
    assert len(problems) == bool(expected) and all("classes without a sample" in problem for problem in problems)


def test_training_takes_folders_of_dicom_and_of_any_nifti(tmp_path: Path) -> None:
    for n in (0, 1):
        write_series(tmp_path / "dicom" / f"patient {n}", image(n), AFFINE, series=str(n))
        save(tmp_path / "nifti" / f"{'ab'[n]}.nii.gz", image(n))
    sets = [Abdominal(tmp_path / kind, unit="slice") for kind in ("dicom", "nifti")]
    assert [data.ids.tolist() for data in sets][0][:2] == [0, 1] and sets[0].classes == ()
    assert torch.equal(sets[0].images, sets[1].images) and sets[0].records[0]["file"] == "patient 0"
    single = Abdominal(tmp_path / "dicom" / "patient 1", unit="slice")
    assert torch.equal(single.images, sets[0].images[6:])
    assert sets[0].stored(0).size == sum(file.stat().st_size for file in (tmp_path / "dicom" / "patient 0").iterdir())


def test_dicom_without_preamble_is_dicom_to_every_reader(tmp_path: Path) -> None:
    """One rule says what DICOM is, for training and for the tool."""
    files = write_series(tmp_path / "patient 1", image(0), AFFINE)
    whole = Abdominal(tmp_path, unit="slice").images
    for path in files:
        path.write_bytes(path.read_bytes()[132:])
    assert all(begins_as_dicom(path) for path in files) and find_layout(tmp_path).name == "DICOM series"
    assert torch.equal(Abdominal(tmp_path, unit="slice").images, whole)
    for path in files:
        path.rename(path.with_name(f".{path.name}"))
    with pytest.raises(ValueError, match="no exam in it"):
        find_layout(tmp_path)


def test_numbers_of_cases() -> None:
    assert numbered(["s0010", "s0003"]) == {"s0003": 3, "s0010": 10}
    assert numbered(["a_1_x", "b_1_x"]) == {"a_1_x": 1, "b_1_x": 2}, "not unique"
    assert numbered(["x", "b7"]) == {"b7": 1, "x": 2}, "not all have one"
    assert numbered(["p_123456789012", "p_000000000012"]) == {"p_000000000012": 12, "p_123456789012": 123456789012}
    assert numbered(["p_1", "p_" + "9" * 16]) == {"p_1": 1, "p_" + "9" * 16: 2}, "beyond 64 bits of slices"
    assert numbered(["p_7", "q_" + "0" * 20 + "8"]) == {"p_7": 7, "q_" + "0" * 20 + "8": 8}


def test_long_numbers_of_exams(tmp_path: Path) -> None:
    """Twelve digits stay as they are; what does not fit is refused by name or said, never cut."""
    long, longer = 123456789012, 9 * 10**15
    save(tmp_path / "set" / f"image_{long}.nii.gz", image(1))
    data = Abdominal(tmp_path / "set", unit="slice")
    assert data.ids.tolist() == [4096 * long + s for s in range(6)]
    save(tmp_path / "set" / f"image_{longer}.nii.gz", image(2))
    with pytest.raises(ValueError, match=f"image_{longer}.nii.gz: an exam number of 16 digits; allowed: 15"):
        Abdominal(tmp_path / "set")
    for name in ("a", "b"):
        save(tmp_path / "named" / f"{name}.nii.gz", image(3))
    assert find_layout(tmp_path / "named").aside == (COUNTED,)
    (tmp_path / "named" / "b.nii.gz").rename(tmp_path / "named" / "b12.nii.gz")
    (tmp_path / "named" / "a.nii.gz").rename(tmp_path / "named" / f"a{long}.nii.gz")
    assert list(find_layout(tmp_path / "named").images) == [12, long] and find_layout(tmp_path / "named").aside == ()


def test_a_case_of_two_modalities_is_refused(tmp_path: Path) -> None:
    total_segmentator(tmp_path)
    save(tmp_path / "s0003" / "mri.nii.gz", image(7))
    message = f"^{tmp_path / 's0003'}: holds ct.nii.gz and mri.nii.gz; allowed: the one that segmentations is of$"
    with pytest.raises(ValueError, match=message):
        Abdominal(tmp_path)
    assert any("holds ct.nii.gz and mri.nii.gz" in problem for problem in inspect(tmp_path)[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, "label 'whole' is a region of several values"),
        ({"labels": {"background": 0, "liver": 1, "ignore": 2}}, "label 'ignore' is a region .* or is to be ignored"),
        ({"labels": {"background": 0, "liver": -1}}, "label 'liver' has the value -1; allowed: a whole number"),
        ({"labels": {"a": 1, "b": 1}}, "label 'b' has the value 1; allowed: a whole number of its own"),
        ({"labels": {"1": "liver", "2": "liver"}}, "two values are called 'liver'; allowed: each organ once"),
        ({}, "has no labels"),
    ],
)
def test_bad_descriptions(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    nnunet(tmp_path, **content)
    with pytest.raises(ValueError, match=f"^{tmp_path / 'dataset.json'}: {message}"):
        Abdominal(tmp_path)
    lines, problems = inspect(tmp_path)
    assert len(problems) == 1 and str(tmp_path / "dataset.json") in problems[0]


def test_what_does_not_fit(tmp_path: Path) -> None:
    nnunet_2(tmp_path)
    with pytest.raises(ValueError, match="organs: no organ 'spine' in this set; allowed: liver, tumour"):
        Abdominal(tmp_path, organs=("spine",))
    save(tmp_path / "labelsTr" / "amos_0003.nii.gz", mask(1, 3))
    with pytest.raises(ValueError, match="amos_0003.nii.gz: holds a value outside 0 to 2"):
        Abdominal(tmp_path)
    save(tmp_path / "imagesTr" / "amos_0003_0001.nii.gz", image(5))
    with pytest.raises(ValueError, match=f"^{tmp_path}: images of several channels \\(CT\\); allowed: one"):
        Abdominal(tmp_path)


def test_float_masks_within_a_thousandth(tmp_path: Path) -> None:
    save(tmp_path / "image_01.nii.gz", image(0))
    save(tmp_path / "label_01.nii.gz", mask(1, 2).astype(np.float32) * 1.0004)
    assert Abdominal(tmp_path).labels.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    save(tmp_path / "label_01.nii.gz", mask(1, 2).astype(np.float32) * 1.01)
    with pytest.raises(ValueError, match="label_01.nii.gz: holds a value outside 0 to 4"):
        Abdominal(tmp_path)


@pytest.mark.parametrize("kind", SETS)
def test_a_support_mask_knows_the_names_of_its_set(kind: str, tmp_path: Path) -> None:
    write, _, organs, (first, second) = SETS[kind]
    write(tmp_path)
    layout = find_layout(tmp_path)
    masks = read_masks(layout.masks[3], read_scan(layout.images[3]))
    blocks = {name: masks.read(label) for label, name in masks.names.items()}
    assert set(blocks) == {first, second} and masks.notices == ()
    assert np.array_equal(blocks[first], mask(1, 2) == 1) and np.array_equal(blocks[second], mask(1, 2) == 2)
    if kind in ("decathlon", "nnunet_1", "nnunet_2"):
        describe(tmp_path)
        masks = read_masks(layout.masks[3], read_scan(layout.images[3]))
        assert list(masks.names.values()) == ["label 1", "label 2"]
        assert masks.notices == ("names of labels could not be read: dataset.json: has no labels",)


def test_names_reach_csv_colours_and_dicom_seg(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    total_segmentator(tmp_path / "set")
    write_series(tmp_path / "exam", image(1), AFFINE)
    case, out = tmp_path / "set" / "s0003", tmp_path / "out"
    run = write_run(tmp_path / "run", pixel_mm=0.5)
    segment(
        run, case / "ct.nii.gz", case / "segmentations", tmp_path / "exam", out, dicom_seg=True, probabilities=False
    )
    rows = list(csv.DictReader((out / "volumes.csv").open()))
    assert [(row["label"], row["name"]) for row in rows] == [("1", "liver"), ("2", "tumour")]
    assert [line.split()[:2] for line in (out / "exam.ctbl").read_text().splitlines()[2:]] == [
        ["1", "liver"],
        ["2", "tumour"],
    ]
    seg = highdicom.seg.segread(out / "exam_seg.dcm")
    assert [str(item.SegmentLabel) for item in seg.SegmentSequence] == ["liver", "tumour"]
