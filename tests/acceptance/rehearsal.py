"""Phantoms under the names of ``make gpu-pack``, so that the whole command can be rehearsed without data."""

import json
from pathlib import Path

import numpy as np
import torch
from torchvision.io import encode_jpeg

from sslmed_dist import randomness, registry
from sslmed_dist.data.exams.exam_archive import pack_episodes
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.models import ENCODERS
from tests.acceptance.pack import CIFAR, CIFAR_SMALL, DESCRIPTION, EPISODES, WEIGHTS

TRAIN, TEST = 300, 60
ENCODER = {"name": "dilated_resnet", "depth": 9, "width": 4, "out": 8}


def write(folder: Path) -> Path:
    """Write all files of the data folder at tiny sizes; returns ``folder``."""
    folder.mkdir(parents=True)
    for name in (CIFAR, CIFAR_SMALL):
        write_images(folder / name)
    exams = PHANTOMS["abdomen"](folder / "abdomen", exams=5, sites=1, size=64, slices=12)
    pack_episodes(exams, folder / EPISODES, cache="")
    encoder: torch.nn.Module = registry.build(ENCODERS, ENCODER, "encoder", channels=1)
    torch.save(encoder.state_dict(), folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps({"encoder": ENCODER, "source": "random weights"}))
    return folder


def write_images(path: Path) -> None:
    """Ten classes of noise on ten levels of brightness, in the layout of ``cifar10_jpeg``."""
    count = TRAIN + TEST
    labels = np.arange(count) % 10
    noise = randomness.uniform("rehearsal", torch.arange(count * 3 * 32 * 32)).view(count, 3, 32, 32)
    images = (noise * 80 + torch.from_numpy(labels).view(-1, 1, 1, 1) * 17).to(torch.uint8)
    files = [encode_jpeg(image, 75).numpy() for image in images]
    np.savez(
        path,
        jpeg=np.concatenate(files),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=labels.astype(np.uint8),
        split=(np.arange(count) >= TRAIN).astype(np.uint8),
        class_names=np.array([f"level {number}" for number in range(10)]),
    )
