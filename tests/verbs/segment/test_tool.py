"""One annotated scan in, masks for others out: files that lie in the query's own voxels, or one line and nothing."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sslmed_dist import checkpoint, config
from sslmed_dist.atomic_files import sha256
from sslmed_dist.data.exams.episodes import Episodes
from sslmed_dist.data.phantom.abdomen import write_abdomen
from sslmed_dist.data.phantom.chaos import write_series
from sslmed_dist.data.scans.scan import read_scan
from sslmed_dist.training import build
from sslmed_dist.verbs.segment.model import head_leaf, load_model, placed, standardised
from sslmed_dist.verbs.segment.tool import segment

SIZE = 64
ENDINGS = {"_labels.nii.gz", "_probability.nii.gz", "_overlay.png", ".ctbl"}
ONCE = {"volumes.csv", "overlay.html", "run.json"}


def write_run(
    folder: Path,
    channels: int = 1,
    pixel_mm: float | None = 320 / SIZE,
    size: int = SIZE,
    method: str = "cowpro",
    **encoder: Any,
) -> Path:
    """A run folder with a checkpoint of random weights."""
    tree: dict[str, Any] = {
        "run": {"name": folder.name, "dir": str(folder.parent), "device": "cpu"},
        "data": {"name": "episodes", "root": "gone", "size": size},
        "views": {"name": "episode", "size": size, "mean": [0.0], "std": [1.0], "pixel_mm": pixel_mm},
        "method": {"name": method, "channels": channels},
        "optim": {"name": "sgd", "lr": 1e-3},
    }
    usual = {"name": "dilated_resnet", "depth": 9, "width": 8, "out": 32} if method == "cowpro" else {}
    tree["method"]["encoder"] = {**usual, **encoder}
    settings = config.from_tree(tree, "test")
    content = {"config": config.to_tree(settings), "fingerprint": config.fingerprint(settings)}
    method_state = build.build_method(settings).state_dict()
    file = folder / "checkpoints" / "step_000000001.pt"
    checkpoint.save(file, kind="training", step=1, method=method_state, state={}, **content)
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run, and phantoms: the first is the support."""
    folder = tmp_path_factory.mktemp("given")
    scans = write_abdomen(folder / "scans", exams=3, sites=1, size=SIZE, slices=10, seed=1)
    return {
        "run": write_run(folder / "run"),
        "support": scans / "image_01.nii.gz",
        "support_mask": scans / "label_01.nii.gz",
        "query": scans / "image_02.nii.gz",
    }


def made(given: dict[str, Path], out: Path, **options: Any) -> list[Path]:
    return segment(**{**given, "out": out, "pixel_mm": 1.25, **options})


def load(path: Path) -> tuple[NDArray[Any], Any]:
    image: Any = nibabel.load(path)
    return np.asarray(image.dataobj), image


def save(path: Path, voxels: NDArray[Any], affine: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def test_a_query_gets_masks_in_its_own_space(given: dict[str, Path], tmp_path: Path) -> None:
    written = made(given, tmp_path / "out")
    assert {path.name for path in written} == {f"image_02{end}" for end in ENDINGS} | ONCE
    assert sorted(written) == sorted((tmp_path / "out").iterdir()), "nothing else, no temporary folder"
    query = load(given["query"])[1]
    labels, image = load(tmp_path / "out" / "image_02_labels.nii.gz")
    assert labels.shape == query.shape and np.array_equal(image.affine, query.affine) and labels.dtype == np.uint8
    assert nibabel.aff2axcodes(image.affine) == nibabel.aff2axcodes(query.affine)
    assert image.header["sform_code"] == query.header["sform_code"] and image.header["descrip"] == b""
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    probability, image = load(tmp_path / "out" / "image_02_probability.nii.gz")
    assert probability.shape == (*query.shape, 4) and probability.dtype == np.float32
    assert np.array_equal(image.affine, query.affine) and probability.min() >= 0 and probability.max() <= 1
    best = probability.argmax(-1) + 1
    assert np.array_equal(labels > 0, probability.max(-1) > 0.5)
    assert (best == labels)[(labels > 0) & (np.sort(probability)[..., -2] < 0.9)].all()
    rows = list(csv.DictReader((tmp_path / "out" / "volumes.csv").open()))
    assert [row["label"] for row in rows] == ["1", "2", "3", "4"] and {row["query"] for row in rows} == {"image_02"}
    for row in rows:
        inside = labels == int(row["label"])
        assert int(row["voxels"]) == inside.sum() and int(row["slices"]) == inside.any((0, 1)).sum()
        assert float(row["volume_ml"]) == pytest.approx(inside.sum() * 1.25 * 1.25 * 7.7 / 1000, abs=1e-3)
        assert float(row["mean_margin"]) > 0
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["use"] == "Research use only, not a medical device." and "uncalibrated" in facts["probability"]
    assert facts["head"] == {"name": "cowpro", "window": 2} and facts["model"]["file"] == "step_000000001.pt"
    assert facts["model"]["sha256"] == sha256(given["run"] / "checkpoints" / "step_000000001.pt")
    assert facts["queries"][0]["query"] == "image_02" and str(tmp_path) not in json.dumps(facts)
    table = (tmp_path / "out" / "image_02.ctbl").read_text().splitlines()
    assert [line.split()[:2] for line in table[1:3]] == [["0", "background"], ["1", "label_1"]] and len(table) == 6
    assert (tmp_path / "out" / "image_02_overlay.png").read_bytes().startswith(b"\x89PNG")


def test_the_answer_does_not_depend_on_how_the_query_is_stored(given: dict[str, Path], tmp_path: Path) -> None:
    """The same scan in another array order and with one label id: the same voxels in millimetres."""
    voxels, image = load(given["query"])
    turned = voxels.transpose(2, 0, 1)[:, ::-1]
    affine = image.affine[:, [2, 0, 1, 3]].copy()
    affine[:3, 3] += affine[:3, 1] * (turned.shape[1] - 1)
    affine[:3, 1] *= -1
    query = save(tmp_path / "turned.nii", turned, affine)
    made(given, tmp_path / "a", labels=[1])
    made(given, tmp_path / "b", labels=[1], query=query)
    plain = load(tmp_path / "a" / "image_02_labels.nii.gz")[0]
    stored, back = load(tmp_path / "b" / "turned_labels.nii.gz")
    assert plain.any() and np.array_equal(back.affine, load(query)[1].affine)
    assert np.array_equal(stored, plain.transpose(2, 0, 1)[:, ::-1])
    assert load(tmp_path / "b" / "turned_probability.nii.gz")[0].shape == stored.shape


def test_quadrants_keep_an_organ_on_its_side(given: dict[str, Path], tmp_path: Path) -> None:
    made(given, tmp_path / "out", labels=[2], quadrants=True)
    labels, image = load(tmp_path / "out" / "image_02_labels.nii.gz")
    x = np.argwhere(labels == 2) @ image.affine[0, :3] + image.affine[0, 3]
    assert len(x) > 0 and x.min() > -4, "the right kidney's side is the body's right half, x above 0"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["protocol"]["quadrants"] is True


def ball(shape: tuple[int, ...], affine: NDArray[Any], centre: tuple[float, float, float]) -> NDArray[np.bool_]:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    inside: NDArray[np.bool_] = np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - centre, axis=-1) < 45
    return inside


def test_what_is_marked_is_found_in_millimetres(tmp_path: Path) -> None:
    """A bright ball, another grid and place in the query: the mask lies on it although no weight was trained."""
    rng = np.random.default_rng(0)
    here = np.diag([-2.5, 2.5, 7.0, 1.0])
    here[:3, 3] = [150.0, -150.0, -60.0]
    there = np.array([[0, 3.0, 0.3, -170], [0.1, 0.2, -3.1, 150], [8.0, 0, 0.2, -70], [0, 0, 0, 1]])
    truth = ball((120, 120, 18), here, (-20.0, 30.0, 5.0))
    other = ball((18, 112, 104), there, (25.0, -15.0, 2.0))
    images = [(400 * mask + rng.normal(300, 8, mask.shape)).astype(np.int16) for mask in (truth, other)]
    given = {
        "run": write_run(tmp_path / "run", stem="cifar"),  # maps of half the pixels
        "support": save(tmp_path / "support.nii.gz", images[0], here),
        "support_mask": save(tmp_path / "mask.nii.gz", (300 * truth).astype(np.uint16), here),
        "query": save(tmp_path / "query.nii.gz", images[1], there),
    }
    segment(**given, out=tmp_path / "out")
    labels, image = load(tmp_path / "out" / "query_labels.nii.gz")
    assert labels.dtype == np.uint16 and set(np.unique(labels)) == {0, 300}
    assert np.array_equal(image.affine, load(given["query"])[1].affine)
    found = labels == 300
    assert 2 * (found & other).sum() / (found.sum() + other.sum()) > 0.8


def test_prepared_slices_are_those_of_training(given: dict[str, Path]) -> None:
    scan = read_scan(given["support"])
    for size in (SIZE, 40):
        images = Episodes(given["support"].parent, masks="organs", size=size, cache="").images[:10]
        model = load_model(given["run"], pixel_mm=1.25 * SIZE / size)
        model = type(model)(**{**vars(model), "size": size})
        stack, how = standardised(scan, placed(model, scan), "keep")
        assert torch.allclose(stack, images, atol=2e-5) and how == "kept"


def test_clipping(given: dict[str, Path], tmp_path: Path) -> None:
    scan, model = read_scan(given["support"]), load_model(given["run"], pixel_mm=1.25)
    first, how = standardised(scan, placed(model, scan), "auto")
    assert how.startswith("clipped above ")
    top = np.float32(np.percentile(scan.voxels, 99.5))
    clipped = type(scan)(**{**vars(scan), "voxels": np.minimum(scan.voxels, top)})
    second, how = standardised(clipped, placed(model, clipped), "auto")
    assert how == "kept (clipped already)" and torch.equal(first, second)
    stack, how = standardised(scan, placed(model, scan), window=(100.0, 300.0))
    assert how == "clipped to 100 to 300" and len(stack.unique()) <= 201
    field = placed(model, scan)
    assert abs(float(standardised(scan, field, "keep")[0].mean())) < 1e-4


def test_heads() -> None:
    assert head_leaf("cowpro", {}) == {"name": "cowpro", "window": 2}
    assert head_leaf({"name": "cowpro", "window": 4, "score": "dot"}, {}) == {
        "name": "cowpro",
        "window": 2,
        "score": "dot",
    }
    assert head_leaf({"name": "projection", "hidden": 4}, {"window": 1}) == {"name": "cowpro", "window": 1}
    assert head_leaf("cowpro", {"name": "panet"}) == {"name": "panet"}


def test_a_folder_of_queries_and_a_bad_one(given: dict[str, Path], tmp_path: Path) -> None:
    """Masks and the support are no queries; a torn file ends in an error that names it, the others are there."""
    folder = given["support"].parent
    made(given, tmp_path / "good", query=folder, labels=[2, 3])
    names = {path.name for path in (tmp_path / "good").iterdir()}
    assert names == {f"image_{n}{end}" for n in ("02", "03") for end in ENDINGS} | ONCE
    shutil.copytree(folder, tmp_path / "scans")
    torn = tmp_path / "scans" / "image_02.nii.gz"
    torn.write_bytes(torn.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"^1 of 3 queries could not be segmented: .*image_02.nii.gz: cannot be read"):
        made(given, tmp_path / "mixed", query=tmp_path / "scans", labels=[2])
    names = {path.name for path in (tmp_path / "mixed").iterdir()}
    assert names == {f"image_{n}{end}" for n in ("01", "03") for end in ENDINGS} | ONCE
    facts = json.loads((tmp_path / "mixed" / "run.json").read_text())
    assert [("error" in query) for query in facts["queries"]] == [False, True, False]


def test_dicom_in_and_dicom_seg_out(given: dict[str, Path], tmp_path: Path) -> None:
    """A folder of oblique series: label maps in their own grid, and segments whose frames lie on the same voxels."""
    highdicom = pytest.importorskip("highdicom")
    voxels = load(given["query"])[0]
    turn = np.array([[-0.98, 0.1, 0.15], [0.11, -0.99, 0.05], [0, 0, 0]]).T
    turn = np.linalg.qr(np.column_stack([turn[:, 0], turn[:, 1], [0.1, 0.0, 1.0]]))[0]
    turn *= np.sign(np.diag(turn)) * [-1, -1, 1]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [1.25, 1.25, 7.7], [35.0, -40.0, 120.0]
    files = write_series(tmp_path / "exams" / "one", np.ascontiguousarray(voxels[:, ::-1]), affine, series="one")
    written = made(given, tmp_path / "out", query=tmp_path / "exams", labels=[1, 4], dicom_seg=True)
    assert {path.name for path in written} == {f"one{end}" for end in {*ENDINGS, "_seg.dcm"}} | ONCE
    labels, image = load(tmp_path / "out" / "one_labels.nii.gz")
    scan = read_scan(tmp_path / "exams" / "one")
    assert labels.shape == scan.voxels.shape and np.allclose(image.affine, scan.affine, atol=1e-4) and labels.any()
    assert labels.dtype == np.uint8
    seg = highdicom.seg.segread(tmp_path / "out" / "one_seg.dcm")
    assert [str(item.SegmentLabel) for item in seg.SegmentSequence] == ["label 1", "label 4"]
    assert str(seg.SegmentationType) == "BINARY" and len(files) == 10
    volume = seg.get_volume(combine_segments=True)
    for number, label in enumerate((1, 4), start=1):
        index = np.argwhere(volume.array == number)
        found = (index @ volume.affine[:3, :3].T + volume.affine[:3, 3]) * [-1, -1, 1]
        wanted = np.argwhere(labels == label) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
        assert len(found) == len(wanted) > 0
        assert np.allclose(found[np.lexsort(found.round(2).T)], wanted[np.lexsort(wanted.round(2).T)], atol=1e-3)


def test_a_dicom_support_with_a_nifti_mask_stored_otherwise(given: dict[str, Path], tmp_path: Path) -> None:
    """Converters flip rows: the mask's array order is its own, its place has to be the image's."""
    voxels, image = load(given["support"])
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, 1] * (voxels.shape[1] - 1)
    affine[:3, 1] *= -1
    write_series(tmp_path / "support", np.ascontiguousarray(voxels[:, ::-1]), affine)
    made(given, tmp_path / "dicom", support=tmp_path / "support", labels=[1])
    made(given, tmp_path / "nifti", labels=[1])
    first, second = (load(tmp_path / kind / "image_02_labels.nii.gz")[0] for kind in ("dicom", "nifti"))
    assert first.any() and (first != second).mean() < 1e-3


def test_a_dicom_seg_that_was_written_is_a_support_mask(given: dict[str, Path], tmp_path: Path) -> None:
    """What one run wrote as DICOM-SEG gives the next run the masks that its label map gives."""
    pytest.importorskip("highdicom")
    voxels, image = load(given["query"])
    write_series(tmp_path / "exam", np.ascontiguousarray(voxels), image.affine)
    made(given, tmp_path / "first", query=tmp_path / "exam", labels=[1, 4], dicom_seg=True)
    again = {"support": tmp_path / "exam", "query": given["support"]}
    for mask in ("exam_seg.dcm", "exam_labels.nii.gz"):
        made(given, tmp_path / mask.split(".")[0], support_mask=tmp_path / "first" / mask, **again)
    name = "image_01_labels.nii.gz"
    labels = load(tmp_path / "exam_seg" / name)[0]
    assert set(np.unique(labels)) == {0, 1, 4} and np.array_equal(labels, load(tmp_path / "exam_labels" / name)[0])
