"""``sslmed analyse RUN similarity``: how alike views of one image, of one class and of two are, before and after."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist.arguments import require_least
from sslmed_dist.data.dataset import unlabelled
from sslmed_dist.downstream import histogram
from sslmed_dist.downstream.similarity import Histogram
from sslmed_dist.models.interfaces import Encoder
from sslmed_dist.printable import plural
from sslmed_dist.report.panels import Panel
from sslmed_dist.report.plots import Curve
from sslmed_dist.training import pretrained
from sslmed_dist.verbs.analyse.subject import Answer, Subject

WORDS = {"true_positive": "views of one image", "false_negative": "of one class", "true_negative": "of two classes"}
CHUNK = 256  # images at a time


def similarity(asked: Sequence[Subject], *, which: str = "last", samples: int = 1000, bins: int = 100) -> Answer:
    """Histograms of the cosine similarity of the encoder's features (thesis Figure 6.1) at the run's own initial
    weights and at the checkpoints ``which``: views of one image, of one class, of two classes, on a keyed batch of
    ``samples`` training images, or all where there are fewer, which the heading says. ``ValueError`` for data without
    one class for each sample.
    """
    require_least("bins", bins, 1)
    rows: list[dict[str, Any]] = []
    panels, lines = [], []
    for subject in asked:
        batch = subject.shared_batch(subject.at_most(samples))
        if subject.dataset.task != "single" or bool(unlabelled(batch["labels"]).any()):
            raise ValueError(f"{subject.dataset.name}: similarities by class need one class per sample")
        before = pretrained.first_method(subject.settings).encoder.float().eval()
        stages: list[tuple[str, Encoder]] = [("initial weights", before)]
        stages += [(step_of(file), pretrained.load(file).encoder) for file in subject.files(which)]
        for stage, encoder in stages:
            name = f"{subject.label}, {stage}"
            found = measured(encoder, batch, bins)
            rows += [row for kind in WORDS for row in rows_of(name, kind, found)]
            panels.append(Panel(name, "cosine similarity", "density", [outline(kind, found) for kind in WORDS]))
            means = ", ".join(
                f"{WORDS[kind]} {found.means[kind]:.3f}" for kind in WORDS if found.means[kind] is not None
            )
            lines.append(f"{name}: mean similarity {means}")
    counts = list(dict.fromkeys(subject.at_most(samples) for subject in asked))
    images = plural(counts[0], "sample") if len(counts) == 1 else f"{', '.join(map(str, counts))} samples"
    return Answer(f"Similarity of features of two views of {images}", rows, panels, lines)


def step_of(file: Path) -> str:
    """``step 78`` for step_000000078.pt."""
    word, _, number = file.stem.partition("_")
    return f"{word} {int(number)}" if number.isdigit() else file.stem


@torch.no_grad()
def measured(encoder: Encoder, batch: dict[str, Tensor], bins: int) -> Histogram:
    """The histograms of one encoder."""
    encoder = encoder.to(batch["views_0"].device)
    first, second = (
        torch.cat([encoder(part) for part in torch.split(batch[name], CHUNK)]).cpu() for name in ("views_0", "views_1")
    )
    return histogram(first, second, batch["labels"].cpu(), bins)


def outline(kind: str, found: Histogram) -> Curve:
    """The density of one kind of pair as a curve through the middles of the bins."""
    return Curve(WORDS[kind], (density(found.edges, found.counts[kind]),))


def density(edges: Sequence[float], counts: Sequence[int]) -> tuple[list[float], list[float]]:
    """The middles of the bins between the ``edges``, and in each of them the share of all pairs by its width."""
    bins = list(zip(edges, edges[1:], counts, strict=False))
    total = max(sum(counts), 1)
    return [(low + high) / 2 for low, high, _ in bins], [n / total / (high - low) for low, high, n in bins]


def rows_of(name: str, kind: str, found: Histogram) -> list[dict[str, Any]]:
    """A row for each bin of one kind of pair."""
    places = zip(found.edges, found.edges[1:], found.counts[kind], strict=False)
    return [{"run": name, "kind": kind, "low": low, "high": high, "pairs": n} for low, high, n in places]
