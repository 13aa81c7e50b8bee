"""Every recipe loads, names only what exists, and builds its method, views and optimiser."""

from pathlib import Path

import pytest
import torch

from sslmed_dist import config, registry
from sslmed_dist.data import DATASETS, PARTITIONS
from sslmed_dist.methods import Method
from sslmed_dist.methods.jigsaw import PretextTask
from sslmed_dist.training import build, optim
from sslmed_dist.verbs.diagnose import parts

CONFIGS = Path(__file__).parents[1] / "configs"
# Tables are not recipes (see test_tables.py); what they start from is.
TABLES = {path for name in ("thesis", "tables") for path in (CONFIGS / name).glob("*.yaml")}
RECIPES = sorted(set(CONFIGS.rglob("*.yaml")) - TABLES)
COLOUR = {"cifar10", "cifar100", "cifar10_jpeg", "stl10", "tiny_imagenet", "imagenet", "flowers17"}
COLOUR |= {"image_folder", "packed", "mura", "chaoyang", "isic2016", "mhist"}


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 9


def full_size(settings: config.Config) -> Method:
    """The method as it is configured; without values where it has more than a test should fill."""
    large = "smoke" not in str(settings.run.name)
    with torch.device("meta" if large else "cpu"):
        return build.build_method(settings)


def reading(settings: config.Config) -> dict[str, object]:
    """The section ``data`` without what is done to the data once it is read."""
    return {key: value for key, value in settings.data.items() if key not in ("subset", "oversample")}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds(path: Path) -> None:
    settings = config.load(path)
    if settings.method.get("encoder", {}).get("name") == "timm":
        pytest.importorskip("timm")
    registry.check(DATASETS, reading(settings), "data", ("split",))
    channels = 3 if settings.data["name"] in COLOUR else 1
    views = build.views_for(settings.views, channels, (0.0, 255.0))
    labels = getattr(views, "pretext_classes", None)
    method_values = {"channels": channels} | ({} if labels is None else {"pretext_classes": labels})
    if settings.method["name"] == "diagnose":
        method_values |= {"classes": 3, "names": ["abnormal", "acl", "meniscus"], "label_counts": [[2, 1]] * 3}
    settings = config.replace(settings, method=method_values)
    method = full_size(settings)
    size = settings.views["size"]
    episodes = settings.views["name"] == "episode"
    clip = settings.data.get("clip")
    shape = (2, channels, size, size) if clip is None else (2, clip, channels, size, size)
    images = torch.zeros(shape, dtype=torch.float32 if episodes else torch.uint8)
    batch = {"images": images, "index": torch.arange(2), "draw": torch.zeros(2, dtype=torch.int64)}
    if episodes:
        batch["mask"] = torch.zeros(2, size, size, dtype=torch.uint8)
    made = views(batch, seed=0, epoch=0)
    seen = method.input(made) if isinstance(method, PretextTask) else made["query" if episodes else "views_0"]
    seen = seen if clip is None else seen[:, 0]
    if next(method.parameters()).device.type == "meta":
        seen = seen.to("meta")  # shapes alone
    with torch.no_grad():
        features = method.encoder(seen)
    assert features.shape == (2, method.encoder.feature_dim)
    built = optim.build(
        settings.optim, method, batch_size=settings.plan.batch_size, epochs=settings.plan.epochs, per_epoch=10
    )
    assert built.learning_rate(10) > 0
    assert build.build_evaluators(settings) or settings.diagnose is not None
    if settings.diagnose is not None:
        for part in parts.settings_of(settings).values():
            registry.check(DATASETS, reading(part), "data", ("split",))
            full_size(config.replace(part, method=method_values))
    if settings.federated is not None:
        given = {"labels": None, "groups": None, "sites": None, "ids": None, "seed": 0}
        registry.check(PARTITIONS, settings.federated.partition, "federated.partition", tuple(given))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_to_run_it(path: Path) -> None:
    head = path.read_text().split("\n\n")[0]
    assert head.startswith("# ")
    assert "sslmed " in head or "make demo" in head
