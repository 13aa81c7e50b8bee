"""Every recipe loads, names only what exists, and builds its method, views and optimiser."""

from pathlib import Path

import pytest
import torch

from sslmed_dist import config, registry
from sslmed_dist.data import DATASETS, PARTITIONS
from sslmed_dist.training import build, optim
from sslmed_dist.views import VIEWS

CONFIGS = Path(__file__).parents[1] / "configs"
# Tables are not recipes (see test_tables.py); what they start from is.
TABLES = {path for name in ("thesis", "tables") for path in (CONFIGS / name).glob("*.yaml")}
RECIPES = sorted(set(CONFIGS.rglob("*.yaml")) - TABLES)
COLOUR = {"cifar10", "cifar100", "cifar10_jpeg", "stl10", "tiny_imagenet", "imagenet", "flowers17"}
COLOUR |= {"image_folder", "packed", "mura", "chaoyang", "isic2016", "mhist"}


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 9


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds(path: Path) -> None:
    settings = config.load(path)
    registry.check(DATASETS, settings.data, "data", ("split",))
    channels = 3 if settings.data["name"] in COLOUR else 1
    given = {"channels": channels, "value_range": (0.0, 255.0)}
    views = registry.build(VIEWS, settings.views, "views", **given)
    settings = config.replace(settings, method={"channels": channels})
    method = build.build_method(settings)
    size = settings.views["size"]
    episodes = settings.views["name"] == "episode"
    images = torch.zeros(2, channels, size, size, dtype=torch.float32 if episodes else torch.uint8)
    batch = {"images": images, "index": torch.arange(2), "draw": torch.zeros(2, dtype=torch.int64)}
    if episodes:
        batch["mask"] = torch.zeros(2, size, size, dtype=torch.uint8)
    seen = views(batch, seed=0, epoch=0)["query" if episodes else "views_0"]
    with torch.no_grad():
        features = method.encoder(seen)  # type: ignore[operator, union-attr]
    assert features.shape == (2, method.encoder.feature_dim)  # type: ignore[union-attr]
    built = optim.build(
        settings.optim, method, batch_size=settings.plan.batch_size, epochs=settings.plan.epochs, per_epoch=10
    )
    assert built.learning_rate(10) > 0
    assert build.build_evaluators(settings)
    if settings.federated is not None:
        given = {"labels": None, "groups": None, "sites": None, "ids": None, "seed": 0}
        registry.check(PARTITIONS, settings.federated.partition, "federated.partition", tuple(given))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_to_run_it(path: Path) -> None:
    head = path.read_text().split("\n\n")[0]
    assert head.startswith("# ")
    assert "sslmed " in head or "make demo" in head
