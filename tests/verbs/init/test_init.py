"""Whatever layout the data has, the recipe that is written passes ``--check`` untouched, and says what was guessed."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from sslmed_dist import config
from sslmed_dist.cli import main
from sslmed_dist.data.check import LAYOUTS
from sslmed_dist.data.images.synthetic import Synthetic
from sslmed_dist.plain_yaml import parse
from sslmed_dist.training import build
from sslmed_dist.training.rehearsal import Need
from sslmed_dist.verbs.init import choices, layout, length, pixels, text, tool
from tests.verbs.init import sets

SHORT = ["--minutes", "0.001"]  # one epoch
GREY, COLOUR, PHOTOGRAPHS, SLICES = (choices.CHAINS[kind][1] for kind in ("grey", "colour", "photographs", "slices"))
# how the set is made -> (options, what the recipe has to say of the data, its chain of views, words of a comment)
SETS: dict[Callable[[Path], Path], tuple[list[str], dict[str, Any], dict[str, Any], str]] = {
    sets.microscopy: (
        ["--medical"],
        {"name": "image_folder", "size": 24, "channels": 3, "bits": 8},
        COLOUR,
        "hue and saturation move little",
    ),
    sets.radiographs: (
        [],
        {"name": "image_folder", "size": 33, "channels": 1, "bits": 8, "test_fraction": 0.2},
        GREY,
        "colour files that hold grey images are read as grey",
    ),
    sets.deep_tiff: (
        [],
        {"name": "image_folder", "size": 32, "channels": 1, "bits": 16, "test_fraction": 0.2},
        GREY,
        "16-bit values up to",
    ),
    sets.patients: (
        [],
        {"name": "image_folder", "patient": layout.PATIENT},
        GREY,
        "of 12 patients with 48 images: kept together",
    ),
    sets.only_train: ([], {"name": "image_folder", "test_fraction": 0.2}, GREY, "only a folder of training"),
    sets.medmnist: ([], {"name": "medmnist"}, GREY, "on the split test, beside a random encoder"),
    sets.several_labels: ([], {"name": "medmnist"}, GREY, "on the split test, beside a random encoder"),
    sets.nifti: (
        [],
        {"name": "abdominal", "unit": "exam", "size": 48, "test_fraction": 0.3},
        SLICES,
        "2 of 6 exams are kept",
    ),
    sets.dicom: ([], {"name": "exams", "size": 32}, SLICES, "one recipe trains on one plane"),
    sets.mrnet: ([], {"name": "mrnet", "plane": "sagittal", "side": 32}, SLICES, "on the split val"),
    sets.kneemri: ([], {"name": "kneemri", "side": 96}, SLICES, "slices of scans"),
}  # fmt: skip


SLOW = (sets.dicom, sets.mrnet, sets.kneemri, sets.several_labels, sets.only_train)


@pytest.mark.parametrize(
    "make", [pytest.param(make, marks=[pytest.mark.slow] if make in SLOW else [], id=make.__name__) for make in SETS]
)
def test_the_written_recipe_passes_its_check(
    make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, data, chain, words = SETS[make]
    monkeypatch.chdir(tmp_path)
    root = make(tmp_path / "my data")
    assert main(["init", str(root), *options, *SHORT]) == 0
    recipe = tmp_path / f"{tool.plain_name(root)}.yaml"
    assert capsys.readouterr().out.startswith(f"{recipe.name}: read it, then: sslmed train {recipe.name}\ntime: about")
    assert main(["train", str(recipe), "--check"]) == 0
    assert "evaluate" in capsys.readouterr().out
    settings = config.load(recipe)
    assert Path(settings.data["root"]).is_absolute()
    assert {key: settings.data[key] for key in data} == data
    assert {key: settings.views[key] for key in chain} == chain and settings.plan.epochs == 1
    comments = " ".join(line[2:] for line in recipe.read_text().splitlines() if line.startswith("# "))
    assert words in comments
    assert bool(settings.evaluate.protocols) == (make is not sets.deep_tiff)
    assert ("nothing is measured" in comments) == (make is sets.deep_tiff)
    assert max(map(len, recipe.read_text().splitlines())) < 160


def test_a_federated_recipe_passes_both_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "sites.yaml"
    root = sets.medmnist(tmp_path / "data")
    assert main(["init", str(root), "--federated", "3", "--out", str(recipe), *SHORT]) == 0
    capsys.readouterr()
    assert main(["federate", str(recipe), "--check"]) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"^site ", said, re.MULTILINE)) == 3 and "rounds    10 x 1" in said
    assert main(["train", str(recipe), "--check"]) == 0
    settings = config.load(recipe)
    assert settings.federated is not None and settings.federated.partition == {"name": "iid", "count": 3}


@pytest.mark.slow
def test_patients_are_dealt_whole(tmp_path: Path) -> None:
    recipe = tmp_path / "sites.yaml"
    root = sets.nifti(tmp_path / "data")
    assert main(["init", str(root), "--federated", "2", "--out", str(recipe), *SHORT]) == 0
    settings = config.load(recipe)
    assert settings.federated is not None and settings.federated.partition["name"] == "by_group"
    assert settings.federated.held_out_groups == 1
    assert main(["federate", str(recipe), "--check"]) == 0


def test_too_few_patients_for_a_federation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = sets.nifti(tmp_path / "data")
    assert main(["init", str(root), "--federated", "3", "--out", str(tmp_path / "sites.yaml"), *SHORT]) == 2
    assert "6 patients or images leave a site with 2; expected at least 3" in capsys.readouterr().err
    assert not (tmp_path / "sites.yaml").exists()


def test_workers_of_ray_share_the_batch(tmp_path: Path) -> None:
    recipe = tmp_path / "ray.yaml"
    assert main(["init", str(sets.medmnist(tmp_path / "data")), "--ray", "--out", str(recipe), *SHORT]) == 0
    settings = config.load(recipe)
    assert settings.driver == "ray" and settings.plan.batch_size % settings.ray.most == 0 and settings.ray.most >= 1


def test_every_layout_that_data_check_knows_has_a_sight() -> None:
    assert list(layout.SIGHTS) == list(LAYOUTS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "--minutes: expected more than 0"),
        (["--minutes", "nan"], "--minutes: expected more than 0"),
        (["--federated", "1"], "--federated: expected 2 to 64 sites, got 1"),
        (["--federated", "3", "--ray"], "allowed: --ray or --federated"),
        (["--out", "recipe.txt"], "recipe.txt: a recipe's name ends in .yaml"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert main(["init", "data", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and list(tmp_path.iterdir()) == [tmp_path / "data"]


def test_data_that_cannot_be_read_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("no image")
    assert main(["init", "data"]) == 2
    assert "not a layout that can be read; allowed: packed set" in capsys.readouterr().err
    (tmp_path / "data" / "a.png").write_text("no image")
    assert main(["init", "data"]) == 2
    assert "data: 1 of 1 image cannot be read; training would stop at the first" in capsys.readouterr().err
    sets.radiographs(tmp_path / "data" / "more")
    good = sum(path.suffix == ".jpg" or path.suffix == ".png" for path in (tmp_path / "data").rglob("*")) - 1
    for number in range(7):
        (tmp_path / "data" / f"broken{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["init", "data"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"data: 8 of {good + 8} images cannot be read" in said and "and 3 more" in said, said
    assert all(f"{name}.png is corrupt" in said for name in ("a", "broken0", "broken3"))
    assert list(tmp_path.iterdir()) == [tmp_path / "data"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "absent: no such file or folder"),
        ("empty", "empty: an empty folder"),
        ("nothing.dcm", "nothing.dcm: an empty file"),
        ("images/a.png", "a.png: one image; give the folder that it lies in"),
        ("scans", "scans without an examination around it; allowed: a folder of folders"),
        ("scans/DOE.nii", "a scan without an examination around it; allowed: a folder of folders"),
    ],
)
def test_what_is_no_set_says_what_it_is(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "images", "scans"):
        (tmp_path / folder).mkdir()
    Image.fromarray(sets.pixels(0, 8, 8)).save("images/a.png")
    (tmp_path / "nothing.dcm").touch()
    for patient in ("DOE", "ROE"):
        volume = np.random.default_rng(0).integers(0, 9, (8, 8, 3)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), f"scans/{patient}.nii")
    assert main(["init", name, *SHORT]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.glob("*.yaml"))


@pytest.mark.parametrize(("name", "table"), [("labels.csv", True), ("notes.txt", False)])
def test_a_table_beside_images_is_said_not_to_be_read(name: str, table: bool, tmp_path: Path) -> None:
    for number in range(8):
        Image.fromarray(sets.pixels(number, 12, 12)).save(tmp_path / f"{number}.png")
    (tmp_path / name).write_text("file,label\n0.png,1\n")
    remarks = layout.look(tmp_path, 96).remarks
    assert f"left aside: 1 {Path(name).suffix} files" in remarks
    assert any("a table beside images is not read" in remark for remark in remarks) == table


def test_only_an_own_recipe_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, recipe = sets.medmnist(tmp_path / "data"), tmp_path / "mine.yaml"
    recipe.write_text("run: {}\n")
    assert main(["init", str(root), "--out", str(recipe), "--force", *SHORT]) == 2
    assert "is not what this command writes there" in capsys.readouterr().err
    recipe.write_text(f"{text.MARK} for something\n")
    assert main(["init", str(root), "--out", str(recipe), *SHORT]) == 2
    assert "--force to write over it" in capsys.readouterr().err and "for something" in recipe.read_text()
    assert main(["init", str(root), "--out", str(recipe), "--force", *SHORT]) == 0
    assert config.load(recipe).run.name == "mine"


def test_colours_of_a_compressed_grey_image_are_none(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    Image.fromarray(grey).convert("RGB").save(tmp_path / "grey.jpg", quality=40)
    tinted = np.stack([grey, grey // 2, grey // 2], 2)
    Image.fromarray(tinted).save(tmp_path / "tinted.jpg")
    assert pixels.look([tmp_path / "grey.jpg"]).channels == 1
    assert pixels.look([tmp_path / "grey.jpg", tmp_path / "tinted.jpg"]).channels == 3


@pytest.mark.parametrize(
    ("names", "key", "words"),
    [
        ({"all": [f"img_{n}.png" for n in range(40)]}, False, "no patients are known"),
        ({"all": [f"{n}.png" for n in range(40)]}, False, "no patients are known"),
        ({"all": [f"p{n // 2}-{n % 2}.png" for n in range(40)]}, True, "20 patients with 40 images"),
        (
            {split: [f"p{n // 2}_{n % 2}.png" for n in range(9)] for split in ("train", "test")},
            False,
            "of whom 5 lie in",
        ),
    ],
)
def test_patients_are_guessed_from_names_of_files(names: dict[str, list[str]], key: bool, words: str) -> None:
    keys, said = layout.patients_of_files({split: [f"{split}/{name}" for name in of] for split, of in names.items()})
    assert keys == ({"patient": layout.PATIENT} if key else {}) and words in said


def test_epochs_fill_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    need = Need(2.0, 1.0, 3.0, 0.5, 1.0, 0.0, 0.0, steps=10, saves=1, watches=0, memory=0, tried=9)
    monkeypatch.setattr(length, "measure", lambda settings, dataset: (need, 10))
    settings = config.from_tree({"data": {}, "views": {}, "method": {}, "plan": {"batch_size": 64}}, "test")
    # 10 steps of 0.5 s and a checkpoint of 1 s are 6 s an epoch; 9 of 10 minutes less 6 s fill 89 of them
    dataset = Synthetic(images=640, size=8)
    found = length.fit(settings, dataset, 10.0)
    assert (found.epochs, found.rate, found.seconds) == (89, 128.0, 6.0 + 89 * 6.0)
    assert length.fit(settings, dataset, 10.0, arms=3).epochs == 29
    assert (
        length.fit(settings, dataset, 0.01).epochs == 1
        and length.fit(settings, dataset, 1e5).epochs == length.MOST_EPOCHS
    )


@pytest.mark.parametrize("name", ["name with spaces", "line\nbreak", "colon: hash # {brace}", "Grüße", "'quote\""])
def test_any_name_of_a_folder_can_stand_in_a_recipe(name: str, tmp_path: Path) -> None:
    tree: dict[str, Any] = {"root": str(tmp_path / name), "classes": [name, "b"], "k": {"name": name}}
    lines = text.section("data", [f"of {name}"], tree)
    assert parse("\n".join(lines)) == {"data": tree} and lines[0].isprintable() and lines[1] == "data:"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_choices_of_every_machine_build(device: str, channels: int) -> None:
    dataset = Synthetic(images=4096, size=64, channels=channels, classes=3, distinct=4)
    data = {"name": "synthetic", "images": 4096, "size": 64, "channels": channels, "classes": 3, "distinct": 4}
    seen = layout.Seen("noise", data, ("train", "test"), 64)
    asked = choices.Asked(20.0, False, 0, True, device, 8, 2 if device == "cuda" else 0)
    made = choices.sections(seen, dataset, dataset, asked)
    tree = {name: keys for name, (_, keys) in made.items() if name != "driver"} | {
        "driver": "ray",
        "run": {"name": "x"},
    }
    settings = config.from_tree(tree, "x")
    method = build.build_method(build.resolve(settings, dataset))
    assert sum(value.numel() for value in method.encoder.parameters()) > (1e7 if device == "cuda" else 1e5)
    assert settings.plan.batch_size == choices.BATCH[device] and settings.ray.num_workers == (2 if asked.gpus else 8)
    assert settings.views["jitter"][2] == (0.0 if channels == 1 else 0.4)
    assert all(remarks for name, (remarks, _) in made.items() if name not in ("data", "driver"))
