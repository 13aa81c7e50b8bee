"""Tiny runs, healthy ones and ones made to fail on purpose, on phantoms of textured shapes."""

from pathlib import Path
from typing import Any

import numpy as np

from sslmed_dist import config
from sslmed_dist.data.phantom.shapes import write_shapes
from sslmed_dist.training import job

SIZE, IMAGES = 16, 128
ENCODER = {"name": "resnet", "depth": 9, "stem": "cifar", "width": 4}
HEAD = {"name": "projection", "hidden": 32, "out": 16, "batch_norm": True}
BYOL = {"name": "byol", "encoder": ENCODER, "head": HEAD, "predictor": HEAD, "momentum": 0.9}
BARE = {"name": "projection", "hidden": 32, "out": 16, "batch_norm": False}
JIGSAW = {
    "views": {"name": "jumbled", "size": 16, "patch": 5, "arrangements": {"rule": "uniform", "grid": 3, "classes": 4}},
    "method": {
        "name": "jigsaw",
        "streams": "single",
        "encoder": {**ENCODER, "width": 8},
        "head": {"name": "projection", "hidden": 32, "layers": 2},
    },
    "plan": {"epochs": 25},
}
# What is changed of the base, by the verdict that it has to get and a word for the case.
CASES: dict[tuple[str, str], dict[str, Any]] = {
    ("healthy", "MIOv3"): {},
    ("healthy", "SimCLR"): {"method": {"loss": {"name": "nt_xent", "temperature": 0.2}}},
    ("healthy", "BYOL"): {"method": BYOL, "optim": {"lr": 0.03}},
    ("healthy", "jigsaw"): JIGSAW,
    ("collapsed", "BYOL whose predictor does nothing and whose target is itself"): {
        "method": {**BYOL, "head": BARE, "predictor": {"name": "identity"}, "momentum": 0.0, "momentum_end": 0.0},
        "optim": {"lr": 0.3},
    },
    ("views too strong", "crops of a hundredth"): {
        "views": {"crop_scale": [0.005, 0.02], "jitter": [0.8, 0.8, 0.0, 0.0], "blur": 1.0}
    },
    ("views too weak", "views that are the image itself"): {
        "views": {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "jitter": None}
    },
    ("learning rate", "a hundred times the rate"): {"optim": {"lr": 6.0}},
    ("no negatives", "VICReg without variance and covariance"): {
        "method": {"loss": {"name": "vicreg", "variance": 0.0, "covariance": 0.0}}
    },
    ("copies", "each image sixteen times"): {"data": {"deduplicate": False}},
    ("not learning", "a rate of nothing"): {"optim": {"lr": 1.0e-9}},
}


def images(folder: Path) -> Path:
    """Phantoms of shapes, one archive for all runs."""
    return write_shapes(folder / "shapes", size=SIZE, channels=1, train=IMAGES, val=20, test=40) / "shapes.npz"


def repeated(archive: Path) -> Path:
    """The same archive with the first eight training images in place of all."""
    with np.load(archive) as stored:
        arrays = {name: stored[name] for name in stored.files if not name.endswith("_sites")}
    for name in ("train_images", "train_labels"):
        arrays[name] = arrays[name][np.arange(IMAGES) % 8]
    np.savez(archive.with_name("repeated.npz"), **arrays)  # type: ignore[arg-type]
    return archive.with_name("repeated.npz")


def train(archive: Path, folder: Path, name: str, changed: dict[str, Any], epochs: int = 10) -> Path:
    """Train a tiny run; returns its folder."""
    base = {
        "run": {"name": name, "dir": str(folder), "device": "cpu"},
        "data": {"name": "medmnist", "root": str(archive)},
        "views": {
            "name": "contrastive", "size": SIZE, "crop_scale": [0.4, 1.0], "flip": 0.0,
            "jitter": [0.3, 0.3, 0.0, 0.0], "grey": 0.0,
        },
        "method": {
            "name": "contrastive", "encoder": ENCODER, "head": {**HEAD, "last_norm": True},
            "loss": {"name": "mio_v3", "temperature": 0.2},
        },
        "optim": {"name": "sgd", "lr": 0.06, "momentum": 0.9, "weight_decay": 5.0e-4},
        "plan": {"epochs": epochs, "batch_size": 32, "log_every": 2},
        "evaluate": {"protocols": []},
    }  # fmt: skip
    settings = config.from_tree(config.merge(base, changed), name)
    job.train(settings)
    return settings.folder
