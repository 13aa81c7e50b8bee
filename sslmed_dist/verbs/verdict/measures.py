"""The numbers behind a verdict: what an encoder makes of some training images and of two views of each.

All are measured twice: of the run's encoder, and of the encoder that it began with (the same seed, no step taken).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sslmed_dist import randomness
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.downstream import extract
from sslmed_dist.downstream.features import evaluating
from sslmed_dist.losses.collapse import alignment, effective_rank, embedding_std, uniformity
from sslmed_dist.methods import Method
from sslmed_dist.models.interfaces import Encoder
from sslmed_dist.training import build
from sslmed_dist.views.one_view import OneView

IMAGES = 512  # that are looked at, at most
SETTLING, SETTLED = 40, 64  # batches, and images of each, by which running statistics settle (0.9^40 = 1 %)
EQUAL = 1e-4  # two images are the same where their squared distance is this part of the mean one
FEATURE_WORDS = ("embedding_std", "effective_rank", "uniformity")
Numbers = dict[str, float]


@dataclass(frozen=True)
class Looked:
    """What one encoder makes of the images. ``numbers`` by name; ``same`` and ``other`` are the cosines of the features
    of two views of one image (N,), and of views of two images (N,); empty where the views are not two."""

    numbers: Numbers
    same: Tensor
    other: Tensor


def chosen(settings: Config, dataset: Dataset) -> Tensor:
    """Positions of the images that are looked at, drawn by the run's seed; an exam comes once for each of the slices
    that a pass of training draws of it."""
    order = randomness.order(dataset.ids, settings.run.seed, "verdict")[:IMAGES]
    visits = settings.plan.draws * settings.plan.slices_per_exam if hasattr(dataset, "counts") else 1
    return order.repeat(min(visits, -(-IMAGES // len(order))))[:IMAGES]  # of an exam another slice at each visit


def two_views(settings: Config, dataset: Dataset, positions: Tensor) -> list[nn.Module]:
    """The training views one at a time; none where they are not at least two images of one shape."""
    views = build.build_views(settings, dataset)
    item = dataset.fetch(positions[:1], seed=settings.run.seed, epoch=0, draw=torch.zeros(1, dtype=torch.int64))
    made = views(item, seed=settings.run.seed, epoch=0)
    pair = [made.get(f"views_{k}") for k in (0, 1)]
    if any(view is None or view.ndim != 4 for view in pair):
        return []
    return [OneView(views, k) for k in (0, 1)]


def features(encoder: nn.Module, settings: Config, dataset: Dataset, positions: Tensor, views: nn.Module) -> Tensor:
    """L2-normalised features of one view of the images, float64 (N, D)."""
    device = build.choose_device(settings)
    found = extract(encoder, dataset, positions, views=views.to(device), device=device, seed=settings.run.seed)
    return functional.normalize(found.x.double(), dim=1)


def settle(encoder: nn.Module, settings: Config, dataset: Dataset, positions: Tensor) -> None:
    """Let the running statistics of batch norm in an untrained encoder become those of its images. Otherwise a run that
    has learned nothing would differ from it by them alone."""
    device, seed = build.choose_device(settings), settings.run.seed
    views = build.standard_views(settings, dataset).to(device)
    encoder.train()
    with torch.no_grad():
        for turn in range(SETTLING):
            some = positions.roll(turn * SETTLED)[:SETTLED]
            item = dataset.fetch(some, seed=seed, epoch=0, draw=torch.zeros_like(some))
            batch = {name: value.to(device) for name, value in item.items()}
            encoder(views(batch, seed=seed, epoch=0)["views_0"])
    encoder.eval()


def look(encoder: Encoder, settings: Config, dataset: Dataset, positions: Tensor, pair: list[nn.Module]) -> Looked:
    """``embedding_std``, ``effective_rank`` (as a share of the most that is possible) and ``uniformity`` of the plain
    images' features; of two views ``alignment``, and ``found_again``: how often the other view of an image is nearest
    among those of all images (chance: 1 / N), and ``told_apart``."""
    encoder = encoder.float()
    x = features(encoder, settings, dataset, positions, build.standard_views(settings, dataset))
    values = (embedding_std(x), effective_rank(x), uniformity(x))
    numbers = {name: float(value) for name, value in zip(FEATURE_WORDS, values, strict=True)}
    if not pair:
        return Looked(numbers, torch.empty(0), torch.empty(0))
    first, second = (features(encoder, settings, dataset, positions, view) for view in pair)
    numbers |= {"alignment": float(alignment(first, second)), "found_again": found_again(first, second)}
    numbers["told_apart"] = told_apart(first, second)
    return Looked(numbers, (first * second).sum(1), (first * second.roll(1, 0)).sum(1))


def found_again(first: Tensor, second: Tensor) -> float:
    """Share of the rows of unit ``first`` (N, D) whose own row of ``second`` is nearer than those of all others. A tie
    counts as often as a guess among the equals would be right."""
    likeness = first @ second.T  # (N, N)
    own = likeness.diagonal()[:, None]
    ahead = (likeness > own + 1e-9).sum(1)
    equal = ((likeness - own).abs() <= 1e-9).sum(1)
    return float(torch.where(ahead == 0, 1.0 / equal, 0.0).mean())


def told_apart(first: Tensor, second: Tensor) -> float:
    """How often the two views of an image are nearer to each other than one of them to the view of another image: the
    area under the ROC curve of their cosines, 0.5 for a guess. Unit rows (N, D)."""
    likeness = first @ second.T  # (N, N)
    others = likeness[~torch.eye(len(likeness), dtype=torch.bool)].sort().values
    own = likeness.diagonal().contiguous()
    below, up_to = (torch.searchsorted(others, own, right=right) for right in (False, True))  # a tie counts one half
    return float(((below + up_to) / 2).double().mean() / max(len(others), 1))


def of_views(settings: Config, dataset: Dataset, positions: Tensor, pair: list[nn.Module]) -> Numbers:
    """``view_distance``: the mean squared distance of two views' pixels of one image, over that of views of two images
    (0: the views are the same; 1: as far apart as two images). Empty without two views."""
    if not pair:
        return {}
    device = build.choose_device(settings)

    class Pixels(nn.Module):
        """The pixels themselves, on a coarse grid: an image's layout and not its noise."""

        def forward(self, images: Tensor) -> Tensor:
            """(N, C, H, W) -> (N, C * 8 * 8)."""
            return functional.adaptive_avg_pool2d(images, 8).flatten(1)

    x, y = (
        extract(Pixels(), dataset, positions, views=v.to(device), device=device, seed=settings.run.seed).x.double()
        for v in pair
    )
    same = (x - y).square().sum(1).mean()
    other = torch.stack([(x - y.roll(k, 0)).square().sum(1).mean() for k in (1, 2, 3)]).mean()
    return {"view_distance": float(same / other.clamp_min(1e-12))}


def copies(settings: Config, dataset: Dataset, positions: Tensor) -> float:
    """Share of the images of which another one among them is a copy."""
    device = build.choose_device(settings)
    views = build.standard_views(settings, dataset).to(device)

    class Flat(nn.Module):
        """(N, C, H, W) -> (N, C * 16 * 16)."""

        def forward(self, images: Tensor) -> Tensor:
            """Flatten a small copy."""
            return functional.adaptive_avg_pool2d(images, 16).flatten(1)

    x = extract(Flat(), dataset, positions, views=views, device=device, seed=settings.run.seed).x.double()
    distance = torch.cdist(x, x).square()
    limit = EQUAL * distance.mean()
    distance.fill_diagonal_(math.inf)
    return float((distance.amin(1) <= limit).double().mean())


def growth(method: nn.Module, first: nn.Module) -> float:
    """How many times longer the encoder's weights are than at the start: the median over its matrices and kernels."""
    before = dict(first.named_parameters())
    ratios = [
        float(value.detach().norm() / before[name].detach().norm().clamp_min(1e-12))
        for name, value in method.named_parameters()
        if value.ndim > 1 and name in before
    ]
    return float(torch.tensor(ratios).median()) if ratios else 1.0


def pushes_apart(method: Method, embeddings: Mapping[str, Tensor]) -> bool | None:
    """Whether the method's objective is lower where images lie apart than where all lie in one point, the views of an
    image together in both. ``embeddings`` are those of a batch; None where they are not those of two views alone."""
    if set(embeddings) != {"z0", "z1"}:
        return None
    shape, device = embeddings["z0"].shape, embeddings["z0"].device
    spread = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    one = spread[:1] + 1e-4 * spread

    def value(z: Tensor) -> float:
        z = z.to(device)
        return float(method.objective({"z0": z, "z1": z.clone()}, {})["loss"])

    with torch.no_grad(), evaluating(method):
        return value(spread) < value(one) - 1e-3


def pushes(method: Method, settings: Config, dataset: Dataset, positions: Tensor) -> bool | None:
    """``pushes_apart`` of the embeddings of a few images."""
    device, some = build.choose_device(settings), positions[:16]
    seed = settings.run.seed
    item = dataset.fetch(some, seed=seed, epoch=0, draw=torch.zeros_like(some))
    views = build.build_views(settings, dataset).to(device)
    with torch.no_grad(), evaluating(method):
        batch = views({name: value.to(device) for name, value in item.items()}, seed=seed, epoch=0)
        return pushes_apart(method, method.embed(batch))


def curve(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one scalar of a run's metrics."""
    own = [row for row in rows if row.get("name") == name and row.get("value") is not None and row.get("site") is None]
    return [float(row.get("step") or 0) for row in own], [float(row["value"]) for row in own]
