"""One recipe for one published figure: the table's cell decides, and a recipe that runs alone is checked against it."""

import re
from pathlib import Path
from typing import Any

import pytest

from sslmed_dist import config
from sslmed_dist.config import Config
from sslmed_dist.verbs.reproduce import read_table

CONFIGS = Path(__file__).parents[1] / "configs"
# Recipe: table, row and column. None: no table has such a cell.
CELLS: dict[str, tuple[str, str, str] | None] = {
    "cifar10_simclr": ("table-5.2", "SimCLR", "CIFAR-10"),
    "cifar10_moco_v2": ("table-5.2", "MoCoV2", "CIFAR-10"),
    "cifar10_byol": ("table-5.2", "BYOL", "CIFAR-10"),
    "cifar10_mio_v1": ("table-5.8", "MIOv1@0.2", "CIFAR-10"),
    "cifar10_mio_v2": ("table-5.8", "MIOv2@0.2", "CIFAR-10"),
    "cifar10_mio_v3": ("table-5.2", "MIOv3", "CIFAR-10"),
    "cifar10_dino": ("table-6.4", "DINO", "CIFAR-10"),
    "cifar10_mio_v3_cpu": None,  # a small encoder and 5,000 images: configs/tables/losses-cpu.yaml starts from it
    "cifar10_pirl": None,  # the thesis has PIRL on MRNet only
    "cifar10_simsiam": None,  # not in the thesis: lightly's figure
    "mura_finetune": ("table-5.6", "SimCLR", "MURA"),
    "chaoyang_finetune": ("table-5.6", "SimCLR", "Chaoyang"),
    "isic2016_finetune": ("table-5.6", "SimCLR", "ISIC2016"),
    "mhist_finetune": ("table-5.6", "SimCLR", "MHIST"),
    "flowers17_finetune": ("table-5.7", "SimCLR", "Flowers"),
}
RECIPES = {path.stem: path for family in ("contrastive", "transfer") for path in (CONFIGS / family).glob("*.yaml")}
# Cells of two tables that quote each other's figure for the same setting.
SAME = [
    (("table-5.2", "MoCoV2", "CIFAR-10"), ("table-6.1", "MoCoV2", "CIFAR-10")),
    (("table-5.2", "MoCoV2", "CIFAR-100"), ("table-6.1", "MoCoV2", "CIFAR-100")),
    (("table-5.2", "BYOL", "CIFAR-100"), ("table-5.11", "BYOL", "CIFAR-100.ResNet-18")),
    (("table-5.2", "SimCLR", "CIFAR-10"), ("table-6.1", "SimCLR", "CIFAR-10")),
    (("table-5.2", "SimCLR+DCL", "CIFAR-10"), ("table-5.10", "DCL", "CIFAR-10@128")),
    (("table-5.2", "MIOv3", "CIFAR-10"), ("table-5.8", "MIOv3@0.2", "CIFAR-10")),
    (("table-5.2", "MIOv3", "CIFAR-100"), ("table-5.9", "MIOv3", "CIFAR-100@200")),
    (("table-6.1", "DySTreSS", "CIFAR-10"), ("table-6.13", "Cosine", "CIFAR-10")),
    (("table-6.1", "DySTreSS", "CIFAR-100"), ("figure-6.8", "lr@0.06", "CIFAR-100")),
]


def training(settings: Config) -> dict[str, Any]:
    """All that decides a training but the data: the recipes read the JPEG pack of CIFAR-10, the tables its pickles.
    What a run may take from its data (constants of normalisation, classes) is the data's too."""
    tree = config.without(config.essential(settings), "resolved")
    del tree["data"]
    return tree


def cell(table: str, row: str, column: str) -> dict[str, Any]:
    """The training of a table's cell."""
    return training(read_table.load(CONFIGS / "thesis" / f"{table}.yaml").settings(row, column))


def test_every_recipe_names_its_cell() -> None:
    assert set(RECIPES) == set(CELLS)


@pytest.mark.parametrize("recipe", [recipe for recipe, place in CELLS.items() if place is not None])
def test_a_recipe_is_its_cell(recipe: str) -> None:
    """Equal word for word: a key that one of them leaves to its default may have another value by the next version."""
    path, place = RECIPES[recipe], CELLS[recipe]
    assert place is not None
    assert training(config.load(path)) == cell(*place)
    table, row, column = place
    published = read_table.load(CONFIGS / "thesis" / f"{table}.yaml").published[row, column, "accuracy"]
    said = " ".join(path.read_text().split())
    number = table.removeprefix("table-")
    assert f"200-NN top-1: {published[0]:.2f} (Table {number})" in said or re.search(
        rf"% \(Tables? {number}[^)]*\): {row} {published[0]:.2f}", said
    )


@pytest.mark.parametrize("first, second", SAME, ids=lambda place: "/".join(place))
def test_two_cells_of_one_setting_are_equal(first: tuple[str, str, str], second: tuple[str, str, str]) -> None:
    assert cell(*first) == cell(*second)
