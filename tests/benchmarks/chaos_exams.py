"""The table of ``configs/tables/exams-chaos.yaml`` with floors and intervals over patients.

    python -m tests.benchmarks.chaos_exams runs/exams-chaos chaos-t2spir [--stack 5] [--rows ROW ...] [--weights FILE]

A sample is a short stack of slices of one exam: its feature is the mean over its slices, its labels are the organs that
any of them shows. In each fold that every row has finished 12 exams train the probe, 4 choose its learning rate, 4 are
tested; the test predictions of all folds are then measured together, so that intervals are over all patients. Beside
the rows stand encoders that were not trained (random ones, and with ``--weights`` EfficientNet-lite0 with those of
ImageNet), the pixels, and the position of the stack alone. Prints Markdown.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from sslmed_dist import checkpoint, config, registry
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.exams.exam_set import fold_splits
from sslmed_dist.downstream import KNN, Features, LinearProbe, Predictions, RawPixels, SplitFeatures, extract
from sslmed_dist.downstream.features import evaluating
from sslmed_dist.downstream.predictions import Evaluator, compare, measure, pool
from sslmed_dist.models import ENCODERS
from sslmed_dist.training import build, pretrained

EVALUATORS: dict[str, Evaluator] = {"linear": LinearProbe(), "kNN": KNN(k=10)}
DRAWS = 3  # arrangements of each slice
LITE0 = "tf_efficientnet_lite0"
By = dict[str, dict[str, Predictions]]  # by arm and evaluator


def run_folder(runs: Path, row: str, fold: int) -> Path:
    """Where ``sslmed reproduce`` puts a fold of a row."""
    return runs / row / "organs" / f"fold-{fold}" / "seed-0"


def finished_folds(runs: Path, rows: list[str]) -> list[int]:
    """The folds that every row has finished. ``ValueError`` for none."""
    folds = [k for k in range(5) if all((run_folder(runs, row, k) / "evaluate/last.json").is_file() for row in rows)]
    if not folds:
        raise ValueError(f"{runs}: no fold that all of {', '.join(rows)} have finished")
    return folds


def stacked(features: Features, length: int) -> Features:
    """The slices of each patient, in order, in stacks of ``length``: mean features, labels of any slice."""
    order = torch.argsort(features.index)
    x, labels, groups, index = (
        tensor[order] for tensor in (features.x, features.labels, features.groups, features.index)
    )
    pieces = [
        rows for group in torch.unique(groups) for rows in torch.split(torch.nonzero(groups == group)[:, 0], length)
    ]
    return Features(
        torch.stack([x[rows].mean(0) for rows in pieces]),
        torch.stack([labels[rows].amax(0) for rows in pieces]),
        torch.stack([groups[rows[0]] for rows in pieces]),
        torch.stack([index[rows[0]] for rows in pieces]),
    )


def all_slices(settings: Config, **changes: object) -> Dataset:
    """Every slice of every exam, as the run's evaluation reads them."""
    return build.load_data(settings, "all", {**settings.evaluate.data, **changes})


def features_of(encoder: nn.Module, settings: Config, dataset: Dataset, stack: int) -> Features:
    """The stacks' features under the run's evaluation view."""
    views = build.standard_views(settings, dataset)
    return stacked(extract(encoder, dataset, torch.arange(len(dataset)), views=views, device="cpu"), stack)


def of_fold(features: Features, fold: int, classes: tuple[str, ...], centre: bool) -> SplitFeatures:
    """The three parts of a fold. ``centre``: without the mean over the training stacks, as pixels are compared."""
    numbers = torch.unique(features.groups).tolist()
    split_of = dict(zip(numbers, fold_splits(numbers, fold, 5, 0, "CHAOS"), strict=True))

    def part(name: str) -> Features:
        rows = torch.tensor([split_of[int(group)] == name for group in features.groups])
        return Features(features.x[rows], features.labels[rows], features.groups[rows], features.index[rows])

    train, val, test = part("train"), part("val"), part("test")
    if centre:
        mean = train.x.mean()
        train, val, test = (Features(p.x - mean, p.labels, p.groups, p.index) for p in (train, val, test))
    return SplitFeatures(train, val, test, "multi", classes)


def untrained_arms(first: dict[str, Config], stack: int, weights: Path | None) -> Iterator[tuple[str, Features]]:
    """(name, features) of all that no fold has trained."""
    settings = next(iter(first.values()))
    slices = all_slices(settings)
    yield "position alone", features_of(RawPixels(), settings, all_slices(settings, show="position"), stack)
    yield "raw pixels", features_of(RawPixels(), settings, slices, stack)
    seen: list[object] = []
    for run in first.values():
        leaf = run.method["encoder"]
        if leaf not in seen:
            seen.append(leaf)
            yield f"random {leaf['name']}", features_of(pretrained.untrained(run).eval(), run, slices, stack)
    if weights is not None:
        leaf = {"name": "timm", "model": LITE0, "weights": str(weights)}
        encoder = registry.build(ENCODERS, leaf, "encoder", channels=1).eval()
        for size in (96, 224):
            larger = config.replace(settings, views={"size": size})
            yield f"ImageNet lite0, {size} px", features_of(encoder, larger, all_slices(settings, size=size), stack)


def predictions(runs: Path, rows: list[str], data: Path, stack: int, weights: Path | None) -> tuple[By, list[int]]:
    """The test predictions of all arms, the finished folds together."""
    folds = finished_folds(runs, rows)
    parts: dict[str, dict[str, list[Predictions]]] = {}

    def predict(arm: str, features: Features, fold: int, classes: tuple[str, ...]) -> None:
        split = of_fold(features, fold, classes, centre=arm == "raw pixels")
        for name, evaluator in EVALUATORS.items():
            parts.setdefault(arm, {}).setdefault(name, []).append(evaluator.predict(split, seed=0))

    loaded = {(row, fold): pretrained.load(run_folder(runs, row, fold)) for row in rows for fold in folds}
    placed = {key: config.replace(it.settings, data={"root": str(data)}) for key, it in loaded.items()}
    slices = all_slices(placed[rows[0], folds[0]])
    for arm, features in untrained_arms({row: placed[row, folds[0]] for row in rows}, stack, weights):
        for fold in folds:
            predict(arm, features, fold, slices.classes)
    for row, fold in itertools.product(rows, folds):
        features = features_of(loaded[row, fold].encoder, placed[row, fold], slices, stack)
        predict(row, features, fold, slices.classes)
    return {arm: {name: pool(them) for name, them in by.items()} for arm, by in parts.items()}, folds


def cell(values: list[float | None]) -> str:
    """``value [low, high]`` times 100."""
    value, low, high = (float("nan") if number is None else 100 * float(number) for number in values)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def solved(runs: Path, row: str, fold: int, data: Path) -> Predictions | None:
    """Of a jigsaw row: which arrangement each slice of the fold's test patients is said to stand in, ``DRAWS`` of them
    a slice, without augmentation. Of other rows None."""
    trained = pretrained.load(run_folder(runs, row, fold))
    settings = config.replace(trained.settings, data={"root": str(data)})
    if "pretext_classes" not in settings.method:
        return None
    method = pretrained.untrained_method(settings)
    checkpoint.load_method(method, checkpoint.load(trained.file)["method"], trained.file)
    dataset = build.load_data(settings, "test", settings.evaluate.data)
    views = build.build_views(settings, dataset).eval()
    found: list[tuple[Tensor, Tensor]] = []
    positions = torch.arange(len(dataset))
    with torch.inference_mode(), evaluating(method):
        for number in range(DRAWS):
            batch = dataset.fetch(positions, seed=0, epoch=0, draw=torch.full_like(positions, number))
            out = method.embed(views(batch, seed=0, epoch=0))
            found.append((out["logits"].double(), out["pretext_label"]))
    scores, labels = (torch.cat(parts).clone() for parts in zip(*found, strict=True))
    classes = tuple(map(str, range(scores.shape[1])))
    groups, index = dataset.groups.repeat(DRAWS), dataset.ids.repeat(DRAWS)
    return Predictions(scores, labels, groups, index, "single", classes)


def pretext(runs: Path, row: str, folds: list[int], data: Path) -> str:
    """The pretext's accuracy on the test patients of all folds, beside chance; "" for a row without."""
    parts = [part for fold in folds if (part := solved(runs, row, fold, data)) is not None]
    if not parts:
        return ""
    score = measure(pool(parts), row, seed=0)[0]
    chance = 100 / len(parts[0].classes)
    figures = cell([score.value, score.low, score.high])
    return f"{row}: pretext accuracy on unseen patients {figures} % of {score.n}, chance {chance:.1f} %"


def table(by: By, against: str) -> Iterator[str]:
    """Markdown: mean AUC over organs of each arm, and the paired difference to the arm ``against``."""
    yield f"| mean AUC x 100 | {' | '.join(EVALUATORS)} | linear minus {against} |"
    yield "| --- " * (len(EVALUATORS) + 2) + "|"
    for arm, own in by.items():
        scores = [measure(own[name], name, seed=0)[0] for name in EVALUATORS]
        gap = compare(own["linear"], by[against]["linear"], "linear", seed=0)[0]
        cells = [cell([score.value, score.low, score.high]) for score in (*scores, gap)]
        cells[-1] = "" if arm == against else cells[-1]
        yield f"| {arm} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--stack", type=int, default=5)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rows", nargs="+", help="default: all that have a folder")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = asked.rows or sorted(path.name for path in asked.runs.iterdir() if path.is_dir())
    by, folds = predictions(asked.runs, rows, asked.data, asked.stack, asked.weights)
    of = next(iter(by.values()))["linear"]
    print(f"folds {folds}: {len(of.labels)} stacks of {asked.stack} slices, {len(torch.unique(of.groups))} patients\n")
    print("\n".join(table(by, "position alone")))
    print("\n" + "\n".join(filter(None, (pretext(asked.runs, row, folds, asked.data) for row in rows))))


if __name__ == "__main__":
    main()
