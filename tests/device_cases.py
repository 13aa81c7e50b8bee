"""What a GPU has to compute as the CPU does: cases of known tensors, and how far the two may be apart.

The tests marked ``gpu`` and the acceptance (``tests.acceptance``) compare by the same functions.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist.data import DATASETS, ArrayDataset, Batches, Dataset
from sslmed_dist.data import pack as packing
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.downstream import KNN, LinearProbe, RawPixels, predict, rows_of
from sslmed_dist.downstream.predictions import Evaluator
from tests.differences import Tolerance
from tests.downstream.scale import Scale
from tests.views import scenes
from tests.views.scenes import ALL, batch_of, episode_batch, make_episodes, scene

BITS = Tolerance("share", 0.0)
EVALUATORS: dict[str, Evaluator] = {"knn": KNN(k=5), "linear": LinearProbe((0.01, 0.1), epochs=5)}


def views(device: str) -> dict[str, Tensor]:
    """Both contrastive views of 16 images, every operation on but solarise, whose threshold would turn a rounding error
    into another pixel."""
    chain = scenes.make(32, **{**ALL, "solarise": 0.0})
    batch = {name: value.to(device) for name, value in batch_of(scene(16, 3, 40, 40)).items()}
    made = chain(batch, seed=1, epoch=0)
    return {name: require_on(device, made[name]) for name in ("views_0", "views_1")}


def views_tolerance(name: str) -> Tolerance:
    """On the scale [0, 1]."""
    return Tolerance("worst", 1e-4)


def episodes(device: str) -> dict[str, Tensor]:
    """16 episodes, the supports moved too."""
    batch = {name: value.to(device) for name, value in episode_batch(16, 64).items()}
    made = make_episodes(64, transform_support=True)(batch, seed=1, epoch=0)
    return {name: require_on(device, made[name]) for name in ("support", "support_mask", "query", "query_mask")}


def episodes_tolerance(name: str) -> Tolerance:
    """A pixel of a mask at its threshold may round to the other side."""
    return Tolerance("share", 1e-4) if name.endswith("mask") else Tolerance("worst", 1e-4)


def batches(device: str, resident: bool, workers: int) -> dict[str, Tensor]:
    """All entries of an epoch's batches. ``resident``: the images lie on the device already."""
    images = torch.arange(40 * 12, dtype=torch.int64).to(torch.uint8).view(40, 3, 2, 2)
    data = ArrayDataset(name="x", images=images, labels=torch.arange(40), classes=[str(i) for i in range(40)])
    source = Batches(data.to(device) if resident else data, global_batch=8, seed=1, workers=workers, device=device)
    made = list(source.epoch(3))
    return {name: require_on(device, torch.cat([batch[name] for batch in made])) for name in made[0]}


def bits(name: str) -> Tolerance:
    """Not one bit."""
    return BITS


def halves() -> ArrayDataset:
    """120 images of 4 x 4; those of class 1 are brighter."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 2
    images = torch.randint(0, 220, (120, 1, 4, 4), generator=generator, dtype=torch.uint8)
    images[labels == 1] += 30
    return ArrayDataset(name="made-up", images=images, labels=labels, classes=("no", "yes"))


def site(number: int) -> dict[str, Tensor]:
    """Train, validation and test positions of one of two sites in ``halves``."""
    own = torch.arange(60) + 60 * number
    return {"train": own[:30], "val": own[30:40], "test": own[40:]}


def rows(device: str) -> dict[str, Tensor]:
    """Every figure of kNN and linear probe on raw pixels, and the note beside it, letter by letter."""
    arguments: dict[str, Any] = {"evaluators": EVALUATORS, "views": Scale(), "seed": 0}
    made = rows_of(predict(RawPixels(), halves(), site(0), device=device, **arguments), arm="a", site="all", seed=0)
    found = {}
    for row in made:
        name = f"{row.score.evaluator} {row.score.metric}"
        found[name] = torch.tensor(float("nan") if row.score.value is None else row.score.value)
        found[f"{name}, note"] = torch.tensor([ord(letter) for letter in f"{row.score.note}."])
    return found


def rows_tolerance(name: str) -> Tolerance:
    """Features agree to rounding, so a sample in 20 may not change sides."""
    return BITS if name.endswith("note") else Tolerance("worst", 1e-3)


def jpeg_pack(folder: Path) -> Path:
    """A phantom of ImageNet packed as JPEG in ``folder``, made where it is not there."""
    if not (folder / "packed").exists():
        source = PHANTOMS["imagenet"](folder / "imagenet", size=48)
        leaf = {"name": "imagenet", "root": str(source), "classes": ["n99000004", "n99000001", "n99000003"]}
        packing.pack(leaf, folder / "packed", short=40, rows=10)
    return folder / "packed"


def decoded(device: str, pack: Path) -> dict[str, Tensor]:
    """The images of a pack, decoded on the device."""
    where = "cuda" if device == "cuda" else "cpu"
    data: Dataset = DATASETS["packed"](root=str(pack), decode=where).to(device)
    every = torch.arange(len(data))
    return {"images": require_on(device, data.fetch(every, seed=0, epoch=0, draw=torch.zeros_like(every))["images"])}


def decoded_tolerance(name: str) -> Tolerance:
    """Levels of 255: two decoders round and upsample colour in their own ways."""
    return Tolerance("mean", 2.0)


def require_on(device: str, value: Tensor) -> Tensor:
    """``value``. ``ValueError`` where it does not lie on the device, so that nothing is compared with itself."""
    if value.device.type != torch.device(device).type:
        raise ValueError(f"expected a tensor on {device}, got one on {value.device}")
    return value
