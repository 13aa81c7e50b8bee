"""Pictures for a run's own report: the views or episodes it trains on, nearest neighbours, and what was segmented.

They hold pixels and stay in the run folder of whoever owns the images; a report takes them only when asked.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from sslmed_dist import randomness
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream import OneShot, extract
from sslmed_dist.report.contact_sheets import neighbours_picture, views_picture
from sslmed_dist.report.outlines import FOUND, GIVEN, TRUE, Panel, sheet
from sslmed_dist.run_folder import write_json
from sslmed_dist.training import build, pretrained
from sslmed_dist.training.evaluation_data import evaluation_splits, overridden

SHOWN, NEAREST, LIMIT = 6, 6, 2000
EPISODES = "Episodes of pretraining: slices with a superpixel (support) and the moved copies of both (query)."
SEGMENTED = "One-shot segmentation: given mask (yellow), true (green) and found (red), within the true slice range"


def draw(settings: Config, dataset: Dataset, folder: Path) -> None:
    """Write ``pictures/views.png``, ``pictures/neighbours.png`` and their captions into ``folder``. A run that trains
    on episodes gets ``pictures/episodes.png`` in their place.

    ``dataset`` is what was pretrained on. Images of one or three channels can be shown; others get no pictures.
    """
    if dataset.channels not in (1, 3):
        return
    if settings.views["name"] == "episode":
        write_atomically(folder / "pictures" / "episodes.png", episodes_sheet(settings, dataset))
        return describe(folder, {"episodes.png": EPISODES})
    # The images to show, then those among which neighbours are looked for.
    positions = randomness.order(dataset.ids, settings.run.seed, "pictures")[: min(LIMIT, len(dataset))]
    captions = {"views.png": "Images as stored and the two random views that pretraining compares."}
    write_atomically(folder / "pictures" / "views.png", views_sheet(settings, dataset, positions[:SHOWN]))
    if len(positions) > SHOWN + NEAREST:
        network = pretrained.load(folder).encoder
        write_atomically(
            folder / "pictures" / "neighbours.png", neighbours_sheet(settings, network, dataset, positions)
        )
        captions["neighbours.png"] = (
            "Images (left) and their nearest neighbours by cosine similarity of the frozen encoder's features."
        )
    describe(folder, captions)


def describe(folder: Path, captions: dict[str, str]) -> None:
    """Add captions to those that the folder has."""
    file = folder / "pictures" / "captions.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    write_json(file, {**known, **captions})


def episodes_sheet(settings: Config, dataset: Dataset) -> bytes:
    """PNG: supports and queries with their masks, as the first epoch draws them."""
    positions = randomness.order(dataset.ids, settings.run.seed, "pictures")[:SHOWN]
    batch = dataset.fetch(positions, seed=settings.run.seed, epoch=0, draw=torch.zeros_like(positions))
    # Images (B, C, H, W) under "support" and "query", masks (B, H, W) under "support_mask" and "query_mask".
    episodes = build.build_views(settings, dataset)(batch, seed=settings.run.seed, epoch=0)
    pairs = [
        [Panel(episodes[name][n, 0], {GIVEN: episodes[f"{name}_mask"][n] > 0.5}, name) for name in ("support", "query")]
        for n in range(len(positions))
    ]
    # Two episodes, four panels, to a row.
    rows = [[panel for pair in pairs[n : n + 2] for panel in pair] for n in range(0, len(pairs), 2)]
    return sheet(rows, "Episodes: a slice with a superpixel, and their moved copy")


def of_run(folder: Path, which: str = "last", part: pretrained.Part = "encoder", overrides: Sequence[str] = ()) -> None:
    """Pictures of a run that trains on episodes, whose evaluation segments scans; of other runs none. ``overrides`` as
    for ``evaluate_run``."""
    trained = pretrained.load(folder, which, part=part)
    settings = overridden(trained.settings, overrides)
    if settings.evaluate.pictures and settings.views["name"] == "episode":
        dataset, parts = evaluation_splits(settings)
        draw(settings, build.load_data(settings, "train"), folder)
        draw_segmented(settings, trained.encoder, dataset, parts["test"], folder)


def draw_segmented(
    settings: Config, encoder: nn.Module, dataset: Dataset, positions: torch.Tensor, folder: Path
) -> None:
    """Write ``pictures/segmentation.png`` where an evaluator of the run segments scans: a row for each organ of the
    first query scan; in it, for each third of the organ from inferior to superior, the support and the query slice."""
    for evaluator in build.build_evaluators(settings).values():
        if not isinstance(evaluator, OneShot):
            continue
        device = build.choose_device(settings)
        segmented = evaluator.pictures(encoder.to(device), dataset, positions, device=device, seed=settings.run.seed)
        rows: dict[str, list[Panel]] = {}  # by organ
        for picture in segmented:
            support = Panel(picture.support_image, {GIVEN: picture.support_mask}, f"{picture.organ}: support")
            query_outlines = {TRUE: picture.truth, FOUND: picture.prediction}
            rows.setdefault(picture.organ, []).extend([support, Panel(picture.query_image, query_outlines, "query")])
        if rows:
            write_atomically(folder / "pictures" / "segmentation.png", sheet(list(rows.values()), SEGMENTED))
            describe(folder, {"segmentation.png": SEGMENTED})
        return


def views_sheet(settings: Config, dataset: Dataset, positions: torch.Tensor) -> bytes:
    """PNG: the images at ``positions`` beside their training views."""
    seed = settings.run.seed
    batch = dataset.fetch(positions, seed=seed, epoch=0, draw=torch.zeros_like(positions))
    images = batch["images"]
    views = build.build_views(settings, dataset)(batch, seed=seed, epoch=0)
    return views_picture(images, {name: view for name, view in views.items() if name.startswith("views_")})


def neighbours_sheet(settings: Config, network: nn.Module, dataset: Dataset, positions: torch.Tensor) -> bytes:
    """PNG: the first images at ``positions`` as queries, and beside each the nearest others in feature space."""
    device = build.choose_device(settings)
    views = build.standard_views(settings, dataset).to(device)
    features = extract(network.to(device), dataset, positions, views=views, device=device, seed=settings.run.seed).x
    # Cosine similarity of each of Q queries with all N samples; a query is not its own neighbour.
    unit = torch.nn.functional.normalize(features, dim=1)  # (N, D)
    similarity = unit[:SHOWN] @ unit.T  # (Q, N)
    similarity[torch.arange(SHOWN), torch.arange(SHOWN)] = -2.0
    best, nearest = similarity.topk(NEAREST, dim=1)  # (Q, K) each
    # Queries first, then the neighbours of the first query, of the second, ...
    shown = positions[torch.cat([torch.arange(SHOWN), nearest.flatten()])]  # (Q + Q K,)
    images = dataset.fetch(shown, seed=settings.run.seed, epoch=0, draw=torch.zeros_like(shown))["images"]
    names = label_names(dataset, shown)
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
