"""``sslmed verdict``: measure, read, write down, draw."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sslmed_dist import checkpoint, config
from sslmed_dist.atomic_files import refuse_links, write_atomically
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset, unlabelled
from sslmed_dist.methods import Method
from sslmed_dist.printable import plural
from sslmed_dist.report.runs import runs_inside
from sslmed_dist.run_folder import Metrics, write_json
from sslmed_dist.training import build, pretrained
from sslmed_dist.training.evaluation_data import overridden
from sslmed_dist.training.monitor import Monitor
from sslmed_dist.verbs.verdict import measures, reading

FOLDER = "verdict"
BINS = 60
LOGGED = ("embedding_std", "effective_rank", "uniformity", "alignment")
# name -> what it is, and where it should be
MEANT = {
    "embedding_std": ("spread of features", "1 is even, 0 is one point"),
    "effective_rank": ("directions that features fill", "more is better"),
    "uniformity": ("uniformity", "lower is better, 0 is one point"),
    "alignment": ("alignment: distance of two views of an image", "lower is better, unless uniformity is 0"),
    "told_apart": ("two views of an image told from views of two", "0.5 is a guess, 1 is always"),
    "found_again": ("the other view of an image is the nearest", "1 is always"),
    "knn": ("nearest neighbours on labels", "more is better"),
}


@dataclass(frozen=True)
class Verdict:
    """``name`` of the finding, whether the run is ``healthy`` (or too young to tell), and the ``lines`` to be said."""

    name: str
    healthy: bool
    lines: tuple[str, ...]


def verdict(folder: Path, which: str = "last", overrides: Sequence[str] = ()) -> Verdict:
    """Whether the run in ``folder`` learns, by its checkpoint ``which`` and its own training images. Written to
    ``verdict/WHICH.json`` in it, with a picture beside it. ``ValueError`` where there is no checkpoint, or its method
    is trained on episodes."""
    if not (folder / "checkpoints").is_dir():
        raise ValueError(f"{folder}: no run folder with checkpoints{runs_inside(folder)}")
    refuse_links(folder)
    trained = pretrained.load(folder, which)
    settings = with_places(overridden(trained.settings, overrides), folder)
    if settings.method["name"] == "cowpro":
        raise ValueError(f"{folder}: cowpro is trained on episodes, not on views of images; allowed: sslmed evaluate")
    dataset = build.load_data(settings, "train")
    positions = measures.chosen(settings, dataset)
    method, whole = method_of(trained)
    first = pretrained.untrained_method(trained.settings).eval()
    pair = measures.two_views(settings, dataset, positions)
    device = build.choose_device(settings)
    measures.settle(first.to(device).encoder, settings, dataset, positions)
    now = measures.look(method.to(device).encoder, settings, dataset, positions, pair)
    begun = measures.look(first.encoder, settings, dataset, positions, pair)
    steps = steps_of(trained.file)
    rows = [row for row in Metrics(folder / "metrics.jsonl").read() if steps is None or (row.get("step") or 0) <= steps]
    logged = {name: measures.curve(rows, name)[1] for name in LOGGED}
    facts = reading.Facts(
        method=settings.method["name"],
        steps=steps,
        images=len(positions),
        now=now.numbers | knn(settings, dataset, method),
        first=begun.numbers | knn(settings, dataset, first),
        views=measures.of_views(settings, dataset, positions, pair),
        embedding={name: values[-1] for name, values in logged.items() if values},
        losses=measures.curve(rows, "loss")[1],
        copies=0.0 if hasattr(dataset, "counts") else measures.copies(settings, dataset, positions),
        grown=1.0 if begins_elsewhere(settings) else measures.growth(method.encoder, first.encoder),
        pushes=measures.pushes(method, settings, dataset, positions) if whole and pair else None,
    )
    found = reading.read(facts)
    lines = words(folder, trained, facts, found)
    out = folder / FOLDER
    picture = draw(out / f"{which}.png", now, begun)
    encoder = {"file": trained.file.name, "sha256": trained.sha256}
    answer = {"verdict": found.name, "words": found.words, "done": done(trained.file, steps), "encoder": encoder}
    write_json(out / f"{which}.json", answer | {"facts": tree(facts)})
    return Verdict(found.name, found.name in ("healthy", "too early"), (*lines, *picture, str(out / f"{which}.json")))


def with_places(settings: Config, folder: Path) -> Config:
    """The settings with the data of the run folder's own file where the checkpoint names none: a federation's rounds
    hold no path of a site. ``ValueError`` where the file has none either."""
    if not settings.federated or settings.data.get("root") is not None:
        return settings
    data = config.load(folder / "config.yaml").data
    if data.get("root") is None:
        raise ValueError(f"{folder}: a round of a federation names no data; allowed: sslmed verdict RUN data.root=PATH")
    return config.replace(settings, data=data)


def method_of(trained: pretrained.Pretrained) -> tuple[Method, bool]:
    """The run's method, and whether all of it is there: a federation leaves heads and queues at its sites, and then
    only the encoder is the run's."""
    saved = checkpoint.load(trained.file)
    method = pretrained.untrained_method(trained.settings)
    whole = saved["kind"] == "training"
    if whole:
        checkpoint.load_method(method, saved["method"], trained.file)
    else:
        method.encoder.load_state_dict(trained.encoder.state_dict())
    return method.eval(), whole


def steps_of(file: Path) -> int | None:
    """Steps that were done at a checkpoint; None for one of a federation, which counts none."""
    step = (checkpoint.load(file).get("state") or {}).get("step")
    return None if step is None else int(step)


def done(file: Path, steps: int | None) -> str:
    """How far a checkpoint is, in words."""
    word, _, number = file.stem.partition("_")
    return f"{word} {number.lstrip('0') or 0}" if steps is None else plural(steps, "step")


def begins_elsewhere(settings: Config) -> bool:
    """Whether the run began with other weights than random ones, so that their growth says nothing."""
    leaf = settings.method.get("encoder")
    given = leaf.get("weights") if isinstance(leaf, Mapping) else None
    return any((settings.run.start_from, settings.run.continue_from, given))


def knn(settings: Config, dataset: Dataset, method: Method) -> dict[str, float]:
    """Nearest neighbours among training images, where all have labels and these are classes of images."""
    if not dataset.classes or bool(unlabelled(dataset.labels).any()) or hasattr(dataset, "counts"):
        return {}
    return {"knn": next(iter(Monitor(settings, dataset).measure(method).values()), 0.0)}


def tree(facts: reading.Facts) -> dict[str, Any]:
    """The facts as plain data; a number that is none is null."""
    found = asdict(facts)
    found["losses"] = [loss if torch.tensor(loss).isfinite() else None for loss in facts.losses[-1:]]
    return found


def words(folder: Path, trained: pretrained.Pretrained, facts: reading.Facts, found: reading.Finding) -> list[str]:
    """What is said: the verdict, its mends, and the numbers beside those of the start."""
    lines = [f"verdict: {folder.name} {found.words}"] if found.name in ("healthy", "collapsed", "not learning") else []
    lines = lines or [f"verdict: {folder.name}: {found.words}"]
    lines += [f"  what usually helps: {mend}" for mend in found.mends]
    lines.append(
        f"measured on {plural(facts.images, 'training image')}, {facts.steps} steps done, without labels except "
        "the last:"
    )
    for name, (what, meant) in MEANT.items():
        if name in facts.now:
            lines.append(f"  {what}: {facts.now[name]:.3f}, at the start {facts.first[name]:.3f} ({meant})")
    if "view_distance" in facts.views:
        far = facts.views["view_distance"]
        lines.append(f"  two views of an image are {far:.2f} times as far apart as views of two images (pixels)")
    if facts.losses:
        lines.append(f"  loss: {facts.losses[0]:.3f} when first logged, now {facts.losses[-1]:.3f}")
    lines.append(f"  weights: {facts.grown:.1f} times as long as at the start; images with a copy: {facts.copies:.1%}")
    if begins_elsewhere(trained.settings):
        lines.append("  note: the run began with weights from elsewhere; here it is compared with random ones")
    width = (
        int(trained.settings.method.get("head", {}).get("out", 0))
        if isinstance(trained.settings.method.get("head"), Mapping)
        else 0
    )
    return lines + [f"  note: {remark}" for remark in reading.remarks(facts, width)]


def draw(file: Path, now: measures.Looked, begun: measures.Looked) -> list[str]:
    """The histograms of cosines between two views of an image and between views of two images, now and at the start, as
    a PNG; says where it is, or why there is none."""
    if not len(now.same):
        return []
    if importlib.util.find_spec("matplotlib") is None:
        return ["no picture: matplotlib is not installed (extra report)"]
    from sslmed_dist.report.plots import histograms

    edges = torch.linspace(-1, 1, BINS + 1, dtype=torch.float64)
    shown = {
        "two views of an image, now": now.same,
        "views of two images, now": now.other,
        "two views of an image, at the start": begun.same,
        "views of two images, at the start": begun.other,
    }
    counts = {label: torch.histogram(x.cpu(), edges)[0].int().tolist() for label, x in shown.items()}
    light, _ = histograms(edges.tolist(), counts, "cosine of features")
    write_atomically(file, light)
    return [str(file)]
