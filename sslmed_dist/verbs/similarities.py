"""``sslmed evaluate --histogram``: how similar the features of two training views are."""

from pathlib import Path
from typing import Any

from sslmed_dist.downstream import (
    alignment,
    extract,
    histogram,
)
from sslmed_dist.downstream.features import check
from sslmed_dist.downstream.similarity import Histogram
from sslmed_dist.report.runs import SIMILARITY
from sslmed_dist.run_folder import write_json
from sslmed_dist.training import build
from sslmed_dist.verbs.measurement import Measurement
from sslmed_dist.views.one_view import OneView


def similarities(asked: Measurement, name: str | None = None, bins: int = 100) -> Path:
    """Write ``evaluate/similarity.json``: histograms of the cosine similarity between the features of two training
    views of the test images (``downstream.similarity``), their means, the ``alignment`` and the ``gaps``. Returns the
    file. Of another checkpoint than the last, and of other data, it is ``similarity-STEM.json``, STEM being that of the
    rows, unless ``name`` says what it is called.

    ``ValueError`` for a run whose views are not at least two, or whose data has several labels per sample.
    """
    trained, settings = asked.trained, asked.settings
    dataset, parts = asked.data
    if dataset.task != "single":
        raise ValueError(f"{dataset.name}: histograms of similarity need one class per sample")
    check(dataset, parts)
    device = build.choose_device(settings)
    network, views = trained.encoder.to(device), build.build_views(settings, dataset).to(device)
    seed = settings.run.seed
    # Features (N, D) of the first view of every test image, and of the second.
    first, second = (
        extract(network, dataset, parts["test"], views=OneView(views, n), device=device, seed=seed).to(device)
        for n in (0, 1)
    )
    similarity_histogram = histogram(first.x, second.x, first.labels, bins)
    content: dict[str, Any] = {
        "bins": similarity_histogram.edges,
        "counts": similarity_histogram.counts,
        "means": similarity_histogram.means,
    }
    content |= {"alignment": alignment(first.x, second.x), "n": len(first), **gaps(similarity_histogram)}
    if name is None:
        name = SIMILARITY if asked.stem == "last" else f"{Path(SIMILARITY).stem}-{asked.stem}.json"
    out = asked.folder / "evaluate" / name
    write_json(out, {"encoder": {"file": trained.file.name, "sha256": trained.sha256}, **content})
    return out


def gaps(found: Histogram) -> dict[str, float | None]:
    """How far the mean similarity of pairs of one class lies below that of views of one image (``image_gap``), and how
    far above that of pairs of two classes (``class_gap``). None where there is no such pair."""
    image, same, other = (found.means[kind] for kind in ("true_positive", "false_negative", "true_negative"))
    return {
        "image_gap": None if image is None or same is None else image - same,
        "class_gap": None if same is None or other is None else same - other,
    }
