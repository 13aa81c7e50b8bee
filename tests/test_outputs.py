"""No verb writes over what this program did not write, nor without ``--force`` over what it did."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslmed_dist import cli, outputs, plain_yaml
from sslmed_dist.data.images.shards import SUMMARY
from sslmed_dist.data.phantom.abdomen import write_abdomen
from tests import tiny
from tests.verbs.segment.test_tool import write_run

Words = list[str]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained and evaluated run, a folder of images (one that cannot be read), scans, and a run that segments."""
    folder = tmp_path_factory.mktemp("given")
    plan = {"epochs": 1, "steps_per_epoch": 1}
    (folder / "tiny.yaml").write_text(plain_yaml.write(tiny.tree(folder, plan=plan, evaluate={"pictures": False})))
    assert cli.main(["train", str(folder / "tiny.yaml")]) == 0
    assert cli.main(["evaluate", str(folder / "runs" / "tiny")]) == 0
    for number in range(4):
        (folder / "images" / "sub").mkdir(parents=True, exist_ok=True)
        pixels = (np.arange(18 * 20) * (number + 3) % 251).astype(np.uint8).reshape(18, 20)
        Image.fromarray(pixels).save(folder / "images" / "sub" / f"{number}.png")
    scans = write_abdomen(folder / "scans", exams=2, sites=1, size=64, slices=10, seed=1)
    return {
        "run": folder / "runs" / "tiny", "images": folder / "images", "scans": scans,
        "model": write_run(folder / "model"), "folder": folder,
    }  # fmt: skip


def export(given: dict[str, Path], out: Path) -> tuple[Words, list[Path]]:
    return ["export", str(given["run"]), str(out / "e")], [
        out / f"e{suffix}" for suffix in (".safetensors", ".json", ".md")
    ]


def embed(given: dict[str, Path], out: Path) -> tuple[Words, list[Path]]:
    return ["embed", str(given["run"]), str(given["images"]), "--out", str(out / "f.npz")], [out / "f.npz"]


def report(given: dict[str, Path], out: Path) -> tuple[Words, list[Path]]:
    return ["report", str(given["run"]), "--out", str(out / "r.html")], [out / "r.html", out / "r.md"]


def segment(given: dict[str, Path], out: Path) -> tuple[Words, list[Path]]:
    scans = given["scans"]
    words = [
        "segment",
        "--model",
        str(given["model"]),
        "--support",
        str(scans / "image_01.nii.gz"),
        "--pixel-mm",
        "1.25",
    ]
    words += ["--support-mask", str(scans / "label_01.nii.gz"), "--query", str(scans / "image_02.nii.gz")]
    names = [f"image_02{ending}" for ending in ("_labels.nii.gz", "_probability.nii.gz", "_overlay.png", ".ctbl")]
    return [*words, "--out", str(out)], [out / name for name in (*names, "volumes.csv", "overlay.html", "run.json")]


def pack(given: dict[str, Path], out: Path) -> tuple[Words, list[Path]]:
    words = [
        "data",
        "pack",
        "episodes",
        str(given["scans"]),
        str(out / "s.npz"),
        "min_size=24",
        "cache=",
        "--workers=1",
    ]
    return words, [out / "s.npz"]


VERBS: dict[str, Callable[[dict[str, Path], Path], tuple[Words, list[Path]]]] = {
    "export": export,
    "embed": embed,
    "report": report,
    "segment": segment,
    "data pack": pack,
}


@pytest.mark.parametrize("verb", VERBS)
def test_one_rule_for_every_output(
    given: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    pytest.importorskip("safetensors")
    words, files = VERBS[verb](given, tmp_path / "out")
    assert cli.main(words) == 0 and all(file.is_file() for file in files)

    def refused(options: Words, line: str) -> None:
        """The verb ends with exit code 2 and ``line``, and changes no byte."""
        before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
        capsys.readouterr()
        assert cli.main([*words, *options]) == 2
        assert line in capsys.readouterr().err
        assert before == {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    refused([], "exists already; give another name, or --force to write over it")
    assert cli.main([*words, "--force"]) == 0
    checkpoint = next((given["run"] / "checkpoints").glob("*.pt"))
    strangers = (
        b"my notes\n",
        checkpoint.read_bytes(),
        (given["images"] / "sub" / "0.png").read_bytes(),
        (given["run"] / "evaluate" / "last.json").read_bytes(),
        b"",
    )
    for file in files:
        own = file.read_bytes()
        for content in strangers:
            file.write_bytes(content)
            refused(["--force"], ": exists and is not what this command writes there")
        file.unlink()
        file.symlink_to(checkpoint)
        refused(["--force"], "not written over")
        file.unlink()
        file.write_bytes(own)
    assert cli.main([*words, "--force"]) == 0


def test_a_corrected_mask_stays(given: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Someone edits a mask of ours in place: it is no longer what we wrote."""
    import nibabel

    words, files = segment(given, tmp_path)
    assert cli.main(words) == 0
    mask: Any = nibabel.load(files[0])
    voxels = np.asarray(mask.dataobj)
    nibabel.save(nibabel.Nifti1Image(1 - np.minimum(voxels, 1), mask.affine), files[0])
    corrected = files[0].read_bytes()
    capsys.readouterr()
    assert cli.main([*words, "--force"]) == 2
    assert f"{files[0]}: exists and is not what" in capsys.readouterr().err and files[0].read_bytes() == corrected


def test_outputs_over_inputs(given: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The accidents that were tried: features over the checkpoint or an image, an export over the results."""
    pytest.importorskip("safetensors")
    checkpoint = next((given["run"] / "checkpoints").glob("*.pt"))
    image, results = given["images"] / "sub" / "0.png", given["run"] / "evaluate" / "last.json"
    before = {file: file.read_bytes() for file in given["folder"].rglob("*") if file.is_file()}
    for words in (
        ["embed", str(given["run"]), str(given["images"]), "--out", str(checkpoint)],
        ["embed", str(given["run"]), str(given["images"]), "--out", str(image)],
        ["export", str(given["run"]), str(results)],
        ["report", str(given["run"]), "--out", str(given["images"] / "sub"), "--tensorboard", str(image)],
    ):
        capsys.readouterr()
        assert cli.main([*words, "--force"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert before == {file: file.read_bytes() for file in given["folder"].rglob("*") if file.is_file()}


def test_a_report_at_its_default_place_is_written_anew(given: dict[str, Path]) -> None:
    for _ in range(2):
        assert cli.main(["report", str(given["run"])]) == 0
    page = given["run"] / "report.html"
    page.write_text("<html>mine</html>")
    assert cli.main(["report", str(given["run"])]) == 2 and page.read_text() == "<html>mine</html>"
    page.unlink()


def test_another_pack_of_images_is_replaced_by_force(given: dict[str, Path], tmp_path: Path) -> None:
    words = [
        "data",
        "pack",
        "image_folder",
        str(given["images"]),
        str(tmp_path / "p"),
        "--short=16",
        "--rows=2",
        "--workers=1",
    ]
    assert cli.main(words) == 0 and cli.main(words) == 0, "the same pack is there already"
    before = {file.name: file.read_bytes() for file in (tmp_path / "p").iterdir()}
    assert cli.main([*words, "--quality=30"]) == 2
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "p").iterdir()}
    assert cli.main([*(word for word in words if word != "--rows=2"), "--quality=30", "--rows=4", "--force"]) == 0
    assert json.loads((tmp_path / "p" / SUMMARY).read_text())["quality"] == 30
    assert {file.name for file in (tmp_path / "p").iterdir()} == {SUMMARY, "shard-00000.bin", "shard-00000.npz"}
    (tmp_path / "p" / "mine.txt").write_text("mine")
    assert cli.main([*words, "--force"]) == 2, "a folder with anything else is left alone"


def test_folders_that_are_made_whole_are_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.main(["data", "phantom", "shapes", str(tmp_path)]) == 2
    assert cli.main(["data", "prepare", "abdomen-ct", str(tmp_path), str(tmp_path)]) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_names_are_written_when_asked_for_and_bad_images_are_counted(
    given: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    for file in ("a/0.png", "b/1.png", "c/2.png", "d/3.png"):
        (images / file).parent.mkdir(parents=True)
        (images / file).write_bytes((given["images"] / "sub" / Path(file).name).read_bytes())
    words = ["embed", str(given["run"]), str(images), "--out"]
    assert cli.main([*words, str(tmp_path / "all.npz")]) == 0
    for file in ("a/0.png", "c/2.png"):  # the first of all is opened as a test
        (images / file).write_bytes(b"no image")
    assert cli.main([*words, str(tmp_path / "none.npz")]) == 2 and not (tmp_path / "none.npz").exists()
    capsys.readouterr()
    assert cli.main([*words, str(tmp_path / "some.npz"), "--skip-bad", "--names", "file"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'some.npz'}: 2 images, 2 left out that cannot be read\n"
    assert [line.split(":")[0] for line in err.splitlines()] == ["left out"] * 2
    with np.load(tmp_path / "all.npz") as everything, np.load(tmp_path / "some.npz") as some:
        assert set(everything.files) == {"features", "index", "skipped", "notices", outputs.MARK}, (
            "no name unless asked for"
        )
        assert everything["index"].tolist() == [0, 1, 2, 3] and everything["skipped"].tolist() == []
        assert some["index"].tolist() == [1, 3] and some["skipped"].tolist() == [0, 2]
        assert some["names"].tolist() == ["b/1.png", "d/3.png"]
        torch.testing.assert_close(torch.from_numpy(some["features"]), torch.from_numpy(everything["features"][[1, 3]]))
    for file in ("b/1.png", "d/3.png"):
        (images / file).write_bytes(b"no image")
    assert cli.main([*words, str(tmp_path / "none.npz"), "--skip-bad"]) == 2 and not (tmp_path / "none.npz").exists()


def test_a_place_that_cannot_be_written_to_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)  # root may write everywhere
    path = tmp_path / "run" / "evaluate" / "last.json"
    with pytest.raises(ValueError, match=r"last\.json: .* cannot be written to \(read-only"):
        outputs.require_ours(path, outputs.is_results)
    path.parent.mkdir(parents=True)
    outputs.require_ours(path, outputs.is_results)
