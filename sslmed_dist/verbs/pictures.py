"""Pictures for a run's own report: the views or episodes it trains on, nearest neighbours, and what was segmented.

They hold pixels and stay in the run folder of whoever owns the images; a report takes them only when asked. What is
shown follows from the run's seed alone, so the same checkpoint gives the same pictures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sslmed_dist import config, randomness
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.config import Config
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.exams.exam_dataset import middle, of_slices
from sslmed_dist.downstream import OneShot, extract
from sslmed_dist.downstream.knn import neighbours_of
from sslmed_dist.printable import plural, say
from sslmed_dist.report.contact_sheets import neighbours_picture, views_picture
from sslmed_dist.report.outlines import FOUND, GIVEN, TRUE, Panel, sheet
from sslmed_dist.report.runs import read_captions
from sslmed_dist.run_folder import write_json
from sslmed_dist.training import build, pretrained
from sslmed_dist.training.evaluation_data import evaluation_splits
from sslmed_dist.verbs.measurement import Measurement

SHOWN, NEAREST, LIMIT = 6, 6, 2000
EPISODES = "Episodes of pretraining: slices with a superpixel (support) and the moved copies of both (query)."
SEGMENTED = "One-shot segmentation: given mask (yellow), true (green) and found (red), within the true slice range"
VIEWS = "Images as stored, and what pretraining sees of them in its first epoch, without the normalisation."
NEAR = "by cosine similarity of the frozen encoder's features"
FRAMES = "; a green frame: the same class, an orange one: another"


@dataclass(frozen=True)
class Samples:
    """Samples of a dataset, by their int64 positions (N,)."""

    dataset: Dataset
    positions: Tensor

    def batch(self, seed: int) -> dict[str, Tensor]:
        """What the first epoch gets of them; of an exam a slice that the seed picks."""
        return self.dataset.fetch(self.positions, seed=seed, epoch=0, draw=torch.zeros_like(self.positions))

    def images(self, seed: int) -> Tensor:
        """(N, C, H, W) as stored, of ``batch``."""
        return self.batch(seed)["images"].cpu()


def make(folder: Path) -> None:
    """Draw whatever pictures the run in ``folder`` can have, from its last checkpoint and its data. The pictures of
    episodes and of federations, which ``evaluate`` and ``federate`` draw, are left as they are where they are there.

    ``ValueError`` where the checkpoint or the data is not there."""
    trained = pretrained.load(folder)
    settings = with_data_of(folder, trained.settings)
    there = any((folder / "pictures").glob("*.png"))
    if settings.federated is not None:
        if not there:
            draw(settings, build.load_data(settings, settings.federated.pool), trained.encoder, folder)
    elif settings.views["name"] == "episode":
        if not there:
            draw_episodes(settings, trained.encoder, folder, evaluation_splits(settings))
    else:
        train = build.load_data(settings, "train")
        order = randomness.order(train.ids, settings.run.seed, "pictures")
        draw_views(settings, Samples(train, order[:SHOWN]), folder)
        queries, candidates, words = neighbour_samples(settings, train, order)
        draw_neighbours(settings, trained.encoder, queries, candidates, words, folder)


def with_data_of(folder: Path, settings: Config) -> Config:
    """The settings of a checkpoint with the place of the data that the run folder names: it may have moved since, and
    the checkpoints of a federation's rounds do not say it."""
    file = folder / "config.yaml"
    root = config.load(file).data.get("root") if file.is_file() else None
    return settings if root is None else config.replace(settings, data={"root": root})


def neighbour_samples(settings: Config, train: Dataset, order: Tensor) -> tuple[Samples, Samples, str]:
    """Queries, the samples among which their neighbours are looked for, and both in words. Queries are test images
    where the run has any, otherwise training images; neighbours are training images."""
    train = of_slices(train)
    if settings.data.get("clip") is not None:  # neighbours are single slices
        settings = config.replace(settings, evaluate={"data": {**settings.evaluate.data, "clip": None}})
    try:
        dataset, parts = evaluation_splits(settings)
    except ValueError as error:  # no test split, say: the encoder has a space all the same
        say(f"pictures: neighbours of training images, not of test: {error}")
        return Samples(train, order[:SHOWN]), Samples(train, order[SHOWN:][:LIMIT]), "Training images"
    queries, candidates = (
        parts[name][randomness.order(dataset.ids[parts[name]], settings.run.seed, "pictures")][:count]
        for name, count in (("test", SHOWN), ("train", LIMIT))
    )
    return Samples(dataset, queries), Samples(dataset, candidates), "Test images"


def draw(settings: Config, dataset: Dataset, network: nn.Module, folder: Path) -> None:
    """Write ``pictures/views.png``, ``pictures/neighbours.png`` and their captions into ``folder``, all of ``dataset``,
    which is what was pretrained on, ``network`` being its encoder. A run that trains on episodes gets
    ``pictures/episodes.png`` in their place."""
    if settings.views["name"] == "episode":
        write_atomically(folder / "pictures" / "episodes.png", episodes_sheet(settings, dataset))
        return describe(folder, {"episodes.png": EPISODES})
    order = randomness.order(dataset.ids, settings.run.seed, "pictures")
    single = of_slices(dataset)
    draw_views(settings, Samples(dataset, order[:SHOWN]), folder)
    shown, others = Samples(single, order[:SHOWN]), Samples(single, order[SHOWN:][:LIMIT])
    draw_neighbours(settings, network, shown, others, "Images", folder)


def draw_views(settings: Config, shown: Samples, folder: Path) -> None:
    """Write ``pictures/views.png`` and its caption."""
    write_atomically(folder / "pictures" / "views.png", views_sheet(settings, shown))
    describe(folder, {"views.png": VIEWS})


def draw_neighbours(
    settings: Config, network: nn.Module, queries: Samples, candidates: Samples, words: str, folder: Path
) -> None:
    """Write ``pictures/neighbours.png`` and its caption; nothing where there is no query or no candidate. ``words``
    say what the queries are."""
    if not len(queries.positions) or not len(candidates.positions):
        return
    write_atomically(folder / "pictures" / "neighbours.png", neighbours_sheet(settings, network, queries, candidates))
    among = plural(len(candidates.positions), "training image")
    frames = FRAMES if queries.dataset.task == "single" and label_names(queries) else ""
    describe(folder, {"neighbours.png": f"{words} (left) and their nearest among {among}, {NEAR}{frames}."})


def describe(folder: Path, captions: dict[str, str]) -> None:
    """Add captions to those that the folder has."""
    write_json(folder / "pictures" / "captions.json", {**read_captions(folder / "pictures"), **captions})


def episodes_sheet(settings: Config, dataset: Dataset) -> bytes:
    """PNG: supports and queries with their masks, as the first epoch draws them."""
    positions = randomness.order(dataset.ids, settings.run.seed, "pictures")[:SHOWN]
    batch = Samples(dataset, positions).batch(settings.run.seed)
    # Images (B, C, H, W) under "support" and "query", masks (B, H, W) under "support_mask" and "query_mask".
    episodes = build.build_views(settings, dataset)(batch, seed=settings.run.seed, epoch=0)
    pairs = [
        [Panel(episodes[name][n, 0], {GIVEN: episodes[f"{name}_mask"][n] > 0.5}, name) for name in ("support", "query")]
        for n in range(len(positions))
    ]
    # Two episodes, four panels, to a row.
    rows = [[panel for pair in pairs[n : n + 2] for panel in pair] for n in range(0, len(pairs), 2)]
    return sheet(rows, "Episodes: a slice with a superpixel, and their moved copy")


def of_evaluation(asked: Measurement) -> None:
    """Pictures of a run that trains on episodes, whose evaluation segments scans; of other runs none."""
    if asked.settings.evaluate.pictures and asked.settings.views["name"] == "episode":
        draw_episodes(asked.settings, asked.trained.encoder, asked.folder, asked.data)


def draw_episodes(
    settings: Config, network: nn.Module, folder: Path, data: tuple[Dataset, Mapping[str, Tensor]]
) -> None:
    """The pictures of a run that trains on episodes: ``draw`` of its training data, ``draw_segmented`` of the test part
    of ``data`` (``evaluation_splits``)."""
    dataset, parts = data
    draw(settings, build.load_data(settings, "train"), network, folder)
    draw_segmented(settings, network, dataset, parts["test"], folder)


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


def views_sheet(settings: Config, shown: Samples) -> bytes:
    """PNG: images beside their training views, on one grey scale: the views' normalisation is taken back."""
    seed, dataset = settings.run.seed, shown.dataset
    batch = shown.batch(seed)
    length = batch.get("length")
    stored = middle(batch["images"].cpu(), length)  # of an exam its middle slice
    low, high = scale_of(stored, dataset)
    made_by = build.build_views(settings, dataset)
    outputs = made_by(batch, seed=seed, epoch=0)
    outputs = {name: middle(view, length) if name.startswith("views_") else view for name, view in outputs.items()}
    if "patches" in outputs:  # the patches of a puzzle, in the order the method gets them
        outputs["views_puzzle"] = puzzle(outputs["patches"], stored.shape[1])
    if "patches" in outputs and "pretext_label" in outputs:  # and each in its cell, by the arrangement that was drawn
        outputs["views_solution"] = puzzle(solved(outputs, made_by), stored.shape[1])
    mean, std = (torch.tensor(settings.views[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    black, white = dataset.value_range()
    # on the scale of the stored images
    views = {
        title(name): to_bytes((view.cpu() * std + mean) * (white - black) + black, low, high)
        for name, view in outputs.items()
        if name.startswith("views_")
    }
    return views_picture(to_bytes(stored, low, high), views)


def title(name: str) -> str:
    """The title of a column: a view has a number, a puzzle and its solution have none."""
    return name.removeprefix("views_") if name in ("views_puzzle", "views_solution") else name


def solved(outputs: Mapping[str, Tensor], views: nn.Module) -> Tensor:
    """Patches (B, G^2, C, p, p) of the views' ``outputs``, each back in the cell that it was cut from."""
    arrangements = views.get_buffer("arrangements")
    place_of_cell = arrangements[outputs["pretext_label"]].argsort(dim=1)  # (B, G^2)
    patches = outputs["patches"]
    return patches[torch.arange(len(patches))[:, None], place_of_cell]


def puzzle(patches: Tensor, channels: int) -> Tensor:
    """Patches (B, G^2 C, p, p) or (B, G^2, C, p, p) -> (B, C, G p, G p), row by row."""
    grid = round((patches.shape[1] // (channels if patches.dim() == 4 else 1)) ** 0.5)
    pieces = patches.reshape(len(patches), grid, grid, channels, *patches.shape[-2:])  # (B, row, column, C, p, p)
    rows: Tensor = pieces.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return rows


def neighbours_sheet(settings: Config, network: nn.Module, queries: Samples, candidates: Samples) -> bytes:
    """PNG: images, and beside each the nearest of the candidates in feature space."""
    device, seed = build.choose_device(settings), settings.run.seed
    views = build.standard_views(settings, queries.dataset).to(device)
    query_features, candidate_features = (
        extract(network.to(device), of.dataset, of.positions, views=views, device=device, seed=seed).x
        for of in (queries, candidates)
    )
    count = min(NEAREST, len(candidates.positions))
    similarity, nearest = neighbours_of(candidate_features, query_features, count)  # (Q, K) each
    near = Samples(candidates.dataset, candidates.positions[nearest.flatten()])  # those of the first query first
    left, right = (
        to_bytes(images, *scale_of(images, queries.dataset)) for images in (queries.images(seed), near.images(seed))
    )
    names = label_names(near)
    return neighbours_picture(
        left,
        right.view(len(left), count, *right.shape[1:]),
        query_labels=label_names(queries) or None,
        neighbour_labels=[names[i * count : (i + 1) * count] for i in range(len(left))] if names else None,
        similarity=similarity,
        framed=queries.dataset.task == "single",
    )


def scale_of(images: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The values that are shown as black and white, each (B, 1, 1, 1): those of the dataset for 8 bit, otherwise the
    extremes of each image, which may use a small part of its range."""
    if images.dtype == torch.uint8:
        low, high = dataset.value_range()
        return torch.full((len(images), 1, 1, 1), low), torch.full((len(images), 1, 1, 1), high)
    values = images.float()
    return values.amin(dim=(1, 2, 3), keepdim=True), values.amax(dim=(1, 2, 3), keepdim=True)


def to_bytes(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Images (B, C, H, W) as uint8 between black and white. Of channels that are no colours the middle one is shown."""
    if images.shape[1] not in (1, 3):
        images = images[:, images.shape[1] // 2][:, None]
    return ((images.float() - low) / (high - low).clamp_min(1e-12) * 255).round().clamp(0, 255).to(torch.uint8)


def label_names(samples: Samples) -> list[str]:
    """Class names of the samples, for the task ``multi`` those of all positive labels; empty where there are none."""
    dataset, labels = samples.dataset, samples.dataset.labels.cpu()[samples.positions]
    if not dataset.classes or bool((labels < 0).any()):
        return []
    if dataset.task == "single":
        names = [dataset.classes[label] for label in labels.tolist()]
        return [f"class {name}" if name.isdigit() else name for name in names]
    rows = (labels > 0).tolist()
    return [", ".join(name for name, has in zip(dataset.classes, row, strict=True) if has) or "none" for row in rows]
