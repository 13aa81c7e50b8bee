"""The recipes of ``configs/cluster``: what their headers promise, and that each gets as far as its data allows."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sslmed_dist import cli, config
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.methods.jigsaw import LABEL
from sslmed_dist.training import build
from sslmed_dist.verbs.recipes import header

FOLDER = Path(__file__).parents[1] / "configs" / "cluster"
RECIPES = sorted(FOLDER.glob("*.yaml"))
QUICK = {"mrnet_jigsaw"}  # the others differ from them by their method alone
# Samples of an epoch as the headers count them: photographs, or 16 slices of each of MRNet's training exams.
SAMPLES = {"imagenet": 1_281_167, "mrnet": 1_130 * 16}
# What the estimates rest on: images/s of ResNet-18 at 32 px on one H200 (docs/measured.md), and the recipe that was
# measured, whose arithmetic is scaled.
MEASURED, BESIDE = 6_400, "contrastive/cifar10_mio_v3.yaml"
# Small enough for one core: widths, depths and sizes are not those of the recipe.
SMALL = {
    "contrastive": ["views.size=32", "method.encoder.depth=18", "method.encoder.width=4", "method.head.hidden=16"],
    "moco_v2": [
        "views.size=32",
        "method.encoder.depth=18",
        "method.encoder.width=4",
        "method.head.hidden=16",
        "method.queue=64",
    ],
    "jigsaw": ["views.size=64", "views.patch=null", "method.encoder.width=0.015625", "method.head.hidden=16"],
}


def gigaflop(settings: config.Config) -> float:
    """Arithmetic of one sample through the method's networks, forward and backward, multiply and add counted apart."""
    channels = 1 if settings.data["name"] == "mrnet" else 3
    jigsaw = settings.method["name"] == "jigsaw"
    values = {"channels": channels} | ({"pretext_classes": 1000} if jigsaw else {})
    size, patch = settings.views["size"], settings.views.get("patch")
    with torch.device("meta"):
        method = build.build_method(config.replace(settings, method=values))
        batch = {f"views_{number}": torch.zeros(2, channels, size, size) for number in range(2)}
        if jigsaw:
            batch = {"patches": torch.zeros(2, 9, channels, patch, patch), LABEL: torch.zeros(2, dtype=torch.int64)}
        with FlopCounterMode(display=False) as counter:
            embeddings = method.embed(batch)
            sum(value.sum() for value in embeddings.values() if value.requires_grad).backward()  # type: ignore[union-attr]
    return counter.get_total_flops() / 2 / 1e9


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_header_says_what_a_run_takes_and_gives(path: Path) -> None:
    settings, text = config.load(path), header(path)
    for word in ("Hardware", "xpected time", "cost", "Published", "Ours: not run", "estimate"):
        assert word in text, word
    rate = MEASURED * gigaflop(config.load(FOLDER.parent / BESIDE)) / gigaflop(settings)
    hours = settings.plan.epochs * SAMPLES[settings.data["name"]] / rate / 3600
    (said,) = re.findall(r"([\d.]+) GPU-hours", text)
    assert float(said) == pytest.approx(hours, rel=0.01)
    for images, unit in re.findall(r"([\d,]+) (images/s a GPU|USD at 3 USD a GPU-hour)", text):
        expected = rate if unit.startswith("images") else 3 * hours
        assert float(images.replace(",", "")) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_for_any_number_of_gpu_workers(path: Path) -> None:
    settings = config.load(path)
    assert settings.driver == "ray" and settings.ray.gpus_per_worker == 1 and settings.ray.max_failures > 3
    assert settings.plan.batch_size % settings.ray.num_workers == 0 and settings.plan.precision == "bf16"
    assert settings.plan.checkpoint_every is not None, "a node may be lost within an epoch"
    if settings.optim["name"] == "lars":
        assert settings.optim["lr"] * settings.plan.batch_size**0.5 == 1.2 and settings.optim["scale"] == "sqrt"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_without_its_data_a_check_is_one_line(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = tmp_path / "gone"
    assert cli.main(["train", str(path), "--check", f"data.root={gone}", f"run.dir={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sslmed train: ") and str(gone) in line and "layout" in line
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Drawings in the layouts of the recipes' data sets."""
    folder = tmp_path_factory.mktemp("phantoms")
    knee = {"train": 8, "valid": 4, "slices": (17, 18), "planes": ("sagittal",)}
    return {"imagenet": PHANTOMS["imagenet"](folder / "imagenet"), "mrnet": PHANTOMS["knee"](folder / "knee", **knee)}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem in QUICK else pytest.mark.slow, id=path.stem) for path in RECIPES],
)
def test_with_data_a_check_passes(
    path: Path, phantoms: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config.load(path)
    small = [*SMALL[settings.method["name"]], "plan.batch_size=8", "evaluate.val_fraction=0.5"]
    small += [f"data.root={phantoms[settings.data['name']]}", f"run.dir={tmp_path}"]
    assert cli.main(["train", str(path), "--check", *small]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "fingerprint" in said and "bf16" in said and "workers with GPUs are not tried" in said
    assert not list(tmp_path.iterdir())
