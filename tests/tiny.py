"""A tiny run for tests: keyed random images in the MedMNIST layout and a ResNet of width 4."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslmed_dist import config, randomness
from sslmed_dist.run_folder import Metrics
from sslmed_dist.training.waiting import WAIT_SHARE


def write_images(path: Path, *, train: int = 48, val: int = 12, test: int = 24, size: int = 12) -> Path:
    """A MedMNIST archive of two classes (bright left half or bright right half, in noise)."""
    arrays = {}
    start = 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        ids = torch.arange(start, start + count)
        labels = (ids % 2).numpy().astype(np.uint8)
        pixels = torch.arange(size * size)
        noise = randomness.uniform(7, ids[:, None], pixels[None, :]).view(count, size, size).numpy()
        noise[labels == 0, :, : size // 2] += 0.7
        noise[labels == 1, :, size // 2 :] += 0.7
        arrays[f"{split}_images"] = (noise / 1.7 * 255).astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None]
        start += count
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def tree(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """The configuration tree of a tiny run in ``folder``; ``sections`` are merged over it."""
    images = folder / "tiny.npz"
    if not images.exists():
        write_images(images)
    below = {
        "run": {"name": "tiny", "dir": str(folder / "runs"), "device": "cpu"},
        "data": {"name": "medmnist", "root": str(images)},
        "views": {"name": "contrastive", "size": 12, "jitter": [0.4, 0.4, 0.0, 0.0], "grey": 0.0, "blur": 0.5},
        "method": {
            "name": "contrastive",
            "encoder": {"name": "resnet", "depth": 9, "stem": "cifar", "width": 4},
            "head": {"name": "projection", "hidden": 16, "out": 8},
            "loss": {"name": "nt_xent", "temperature": 0.2},
        },
        "optim": {"name": "sgd", "lr": 0.06},
        "plan": {"epochs": 2, "batch_size": 16, "log_every": 1, "checkpoint_every": 1},
        "evaluate": {"protocols": [{"name": "knn", "k": 5}]},
    }
    return config.merge(below, sections)


def computed(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run folder without those of the clock, which differ from one run to its repetition."""
    return [row for row in Metrics(folder / "metrics.jsonl").read() if row["name"] != WAIT_SHARE]


def settings(folder: Path, **sections: dict[str, Any]) -> config.Config:
    """``tree`` as a checked configuration."""
    return config.from_tree(tree(folder, **sections), "tiny")
