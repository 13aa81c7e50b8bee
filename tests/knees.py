"""Small examinations in the MRNet layout for tests: noise in which a bright spot on a few slices stands for a label."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslmed_dist import config, randomness

LABELS = ("abnormal", "acl", "meniscus")
PLANES = ("axial", "coronal", "sagittal")


def write_exams(
    root: Path, train: int = 24, valid: int = 12, slices: tuple[int, int] = (3, 6), planes: tuple[str, ...] = PLANES
) -> Path:
    """``train`` and ``valid`` exams of 256 x 256 pixels with an increasing number of slices. Whether label k is there
    follows from the exam's number; then a square in the k-th quadrant of two slices is bright."""
    number = 0
    for split, count in (("train", train), ("valid", valid)):
        rows: dict[str, list[str]] = {name: [] for name in LABELS}
        for _ in range(count):
            values = [int(value) for value in randomness.integers(2, 5, number, torch.arange(3))]
            for name, value in zip(LABELS, values, strict=True):
                rows[name].append(f"{number:04d},{value}")
            for order, plane in enumerate(planes):
                folder = root / split / plane
                folder.mkdir(parents=True, exist_ok=True)
                depth = slices[0] + (number + order) % (slices[1] - slices[0] + 1)
                noise = randomness.uniform("exam", number, order, torch.arange(depth * 32 * 32)).view(depth, 32, 32)
                stack = (60 * noise).to(torch.uint8)
                for k, value in enumerate(values):
                    top, left = 4 + 16 * (k // 2), 4 + 16 * (k % 2)
                    if value:
                        stack[1:3, top : top + 8, left : left + 8] += 180
                np.save(folder / f"{number:04d}.npy", stack.numpy().repeat(8, axis=1).repeat(8, axis=2))
            number += 1
        for name, lines in rows.items():
            (root / f"{split}-{name}.csv").write_text("\n".join(lines) + "\n")
    return root


def tree(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """The configuration tree of a tiny diagnosis in ``folder``; ``sections`` are merged over it."""
    root = folder / "knees"
    if not root.exists():
        write_exams(root)
    below = {
        "run": {"name": "knee", "dir": str(folder / "runs"), "device": "cpu"},
        "data": {"name": "mrnet", "root": str(root), "plane": "sagittal", "clip": 4},
        "views": {"name": "volume", "size": 32, "transforms": "published_code"},
        "method": {
            "name": "diagnose",
            "encoder": {"name": "skid", "width": 0.02},
            "head": {"name": "convlstm", "hidden": 4},
        },
        "optim": {"name": "sgd", "lr": 0.05},
        "plan": {"epochs": 2, "batch_size": 4, "log_every": 1, "checkpoint_every": 3},
        "evaluate": {"test": "val", "val_fraction": 0.25, "protocols": []},
    }
    return config.merge(below, sections)
