"""``sslmed embed``: the features of a folder of images."""

import io
from pathlib import Path

import torch

from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.downstream import extract
from sslmed_dist.training import build, pretrained


def embed(source: Path, images: Path, out: Path, which: str = "last", part: pretrained.Part = "encoder") -> int:
    """Write the features of every picture in the folder ``images`` (any layout), in sorted order, to ``out`` (.npz).
    Returns the number of pictures.

    The archive holds ``features`` float32 (N, D) and ``index`` int64 (N,), the sample ids. It holds no file names.
    """
    import numpy as np

    from sslmed_dist.data import DATASETS

    trained = pretrained.load(source, which, part=part)
    settings = trained.settings
    channels, size = settings.method["channels"], settings.views["size"]
    dataset = DATASETS["image_folder"](root=str(images), split="all", channels=channels, size=size)
    device = build.choose_device(settings)
    views = build.standard_views(settings, dataset).to(device)
    features = extract(trained.encoder.to(device), dataset, torch.arange(len(dataset)), views=views, device=device)
    stream = io.BytesIO()
    np.savez_compressed(stream, features=features.x.numpy(), index=features.index.numpy())
    write_atomically(out, stream.getvalue())
    return len(features)
