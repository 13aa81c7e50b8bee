"""Pictures for a run's own report: the views it trains on, and nearest neighbours of held-out images.

They hold pixels and stay in the run folder of whoever owns the images; a report takes them only when asked.
"""

from pathlib import Path

import torch
from torch import nn

from sslmed_dist import randomness
from sslmed_dist.checkpoint import write_atomically
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream import extract
from sslmed_dist.drivers import encoder as encoders
from sslmed_dist.drivers import job
from sslmed_dist.report.figures import neighbours_picture, views_picture
from sslmed_dist.run_folder import write_json

SHOWN, NEAREST, LIMIT = 6, 6, 2000


def draw(settings: Config, dataset: Dataset, folder: Path) -> None:
    """Write ``pictures/views.png``, ``pictures/neighbours.png`` and their captions into ``folder``.

    ``dataset`` is what was pretrained on. One- and three-channel images can be shown; others get no pictures.
    """
    if dataset.channels not in (1, 3):
        return
    chosen = randomness.order(dataset.ids, settings.run.seed, "pictures")[: min(LIMIT, len(dataset))]
    captions = {"views.png": "Images as stored and the two random views that pretraining compares."}
    write_atomically(folder / "pictures" / "views.png", views_sheet(settings, dataset, chosen[:SHOWN]))
    if len(chosen) > SHOWN + NEAREST:
        network = encoders.load(folder).encoder
        write_atomically(folder / "pictures" / "neighbours.png", neighbours_sheet(settings, network, dataset, chosen))
        captions["neighbours.png"] = (
            "Images (left) and their nearest neighbours by cosine similarity of the frozen encoder's features."
        )
    write_json(folder / "pictures" / "captions.json", captions)


def views_sheet(settings: Config, dataset: Dataset, chosen: torch.Tensor) -> bytes:
    """Contact sheet of the training views of the first samples."""
    seed = settings.run.seed
    batch = dataset.fetch(chosen, seed=seed, epoch=0, draw=torch.zeros_like(chosen))
    images = batch["images"]
    views = job.build_views(settings, dataset)(batch, seed=seed, epoch=0)
    return views_picture(images, {name: view for name, view in views.items() if name.startswith("views_")})


def neighbours_sheet(settings: Config, network: nn.Module, dataset: Dataset, chosen: torch.Tensor) -> bytes:
    """Contact sheet of a few queries and their nearest other samples in feature space."""
    device = job.choose_device(settings)
    views = job.standard_views(settings, dataset).to(device)
    features = extract(network.to(device), dataset, chosen, views=views, device=device, seed=settings.run.seed).x
    unit = torch.nn.functional.normalize(features, dim=1)
    similarity = unit[:SHOWN] @ unit.T
    similarity[torch.arange(SHOWN), torch.arange(SHOWN)] = -2.0
    best, nearest = similarity.topk(NEAREST, dim=1)
    flat = chosen[torch.cat([torch.arange(SHOWN), nearest.flatten()])]
    images = dataset.fetch(flat, seed=settings.run.seed, epoch=0, draw=torch.zeros_like(flat))["images"]
    names = label_names(dataset, flat)
    return neighbours_picture(
        images[:SHOWN],
        images[SHOWN:].view(SHOWN, NEAREST, *images.shape[1:]),
        query_labels=names[:SHOWN] if names else None,
        neighbour_labels=[names[SHOWN + i * NEAREST : SHOWN + (i + 1) * NEAREST] for i in range(SHOWN)]
        if names
        else None,
        similarity=best,
    )


def label_names(dataset: Dataset, positions: torch.Tensor) -> list[str]:
    """Class names of single-label samples; empty where there are none to show."""
    labels = dataset.labels[positions]
    if dataset.task != "single" or not dataset.classes or bool((labels < 0).any()):
        return []
    return [dataset.classes[label] for label in labels.tolist()]
