"""From a configuration to its parts: device, data, views, method, evaluators.

Values that only the data knows (channels, mean, standard deviation, ...) are written into the settings.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import randomness, registry
from sslmed_dist.addresses import is_address
from sslmed_dist.arguments import located
from sslmed_dist.config import Config, load, merge, replace
from sslmed_dist.data import DATASETS, SUBSETS, SUPPLIES
from sslmed_dist.data.compact import FileRecords
from sslmed_dist.data.dataset import Dataset, Item, Subset, unlabelled
from sslmed_dist.data.oversample import oversample
from sslmed_dist.downstream import (
    EVALUATORS,
)
from sslmed_dist.downstream.oneshot.evaluator import head_over
from sslmed_dist.downstream.predictions import Evaluator, Segmenting
from sslmed_dist.methods import METHODS, Method
from sslmed_dist.models.interfaces import Encoder
from sslmed_dist.views import VIEWS

FROM_VIEWS = ("pretext_classes",)  # arguments of methods that the views decide
AUTO = {"precision": ("float32", "bf16"), "channels_last": (False, True)}  # elsewhere, on a GPU


def choose_device(settings: Config) -> torch.device:
    """``run.device``; ``auto`` is the GPU that torch sees, else the CPU. ``ValueError`` for a GPU that is not there."""
    wanted_device = settings.run.device
    if wanted_device == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device: cuda asked for, but torch sees no CUDA device; allowed here: cpu, auto")
    if wanted_device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def resolve_auto(settings: Config, folder: Path | None = None) -> Config:
    """Decide ``plan.precision`` and ``plan.channels_last`` where they are ``auto``: as the run in ``folder`` did at its
    start, else by what trains, a GPU or not."""
    undecided = {key: values for key, values in AUTO.items() if getattr(settings.plan, key) == "auto"}
    if not undecided:
        return settings
    written = None if folder is None else folder / "config.yaml"
    if written is not None and written.is_file():
        before = load(written).plan
        decided = {key: getattr(before, key) for key in undecided if getattr(before, key) != "auto"}
        return resolve_auto(replace(settings, plan=decided)) if decided else resolve_auto(settings)
    on_workers = settings.driver == "ray" and settings.ray.most > 0
    gpu = settings.ray.gpus_per_worker > 0 if on_workers else choose_device(settings).type == "cuda"
    return replace(settings, plan={key: values[gpu] for key, values in undecided.items()})


def load_data(settings: Config, split: str, overrides: Mapping[str, Any] | None = None) -> Dataset:
    """One split of the configured dataset. ``overrides`` replace keys of the section ``data``. ``data.subset`` reduces
    the split ``train`` only, and ``data.oversample`` balances it (also ``all``, which sites are dealt from)."""
    leaf = merge(settings.data, overrides or {})
    subset, balance = leaf.pop("subset", None), leaf.pop("oversample", None)
    registry.check(DATASETS, leaf, "data", ("split",), also=("subset", "oversample"))
    root = str(leaf.get("root", ""))
    if is_address(root) and not getattr(DATASETS[leaf["name"]], "reads_addresses", False):
        able = ", ".join(name for name, kind in DATASETS.items() if getattr(kind, "reads_addresses", False))
        raise ValueError(
            f"data.root: {root}: {leaf['name']} is read from a disk; an address may be of: {able} (sslmed data pack)"
        )
    dataset: Dataset = registry.build(DATASETS, leaf, "data", split=split)
    if subset is not None and split == "train":
        positions = registry.build(
            SUBSETS,
            subset,
            "data.subset",
            labels=dataset.labels,
            groups=dataset.groups,
            ids=dataset.ids,
            names=file_names(dataset),
            scanners=getattr(dataset, "scanners", None),
            seed=randomness.key(settings.run.seed, "subset"),
        )
        dataset = Subset(dataset, positions)
    if balance is not None and split in ("train", "all"):  # "all" is what sites of a federation are dealt from
        balanced(dataset, balance, settings.run.seed)
    return dataset


def file_names(dataset: Dataset) -> Sequence[str]:
    """The samples' paths below the root; empty where they have none."""
    if isinstance(dataset.records, FileRecords):
        return dataset.records.names
    return [record["file"] for record in dataset.records if "file" in record]


def balanced(dataset: Dataset, leaf: Any, seed: int) -> None:
    """Set ``dataset.repeats`` by ``data.oversample``, a mapping of the arguments of ``oversample``."""
    if not isinstance(leaf, Mapping):
        raise ValueError(f"data.oversample: expected a mapping, such as {{label: acl}}, got {leaf!r}")
    registry.check_arguments(oversample, leaf, "data.oversample", ("labels", "ids", "classes", "seed"))
    own_seed = randomness.key(seed, "oversample")
    dataset.repeats = oversample(dataset.labels, dataset.ids, classes=dataset.classes, seed=own_seed, **leaf)


def resolve(settings: Config, dataset: Dataset) -> Config:
    """Fill in what the data decides, so that it is written down: channels, classes and task where the method asks for
    them, mean and std of the normalisation, and for episodes the pixel size. ``ValueError`` where the configuration
    already says something else, or where a method that needs labels meets unlabelled samples."""
    filled_in: dict[str, Any] = {"method": {}}
    data_values: dict[str, Any] = {"channels": dataset.channels, "classes": len(dataset.classes)}
    data_values |= {"task": dataset.task, "names": list(dataset.classes)}
    method_arguments = inspect.signature(registry.split(METHODS, settings.method, "method")[0]).parameters
    # Every method has channels; only some take classes, task and names.
    for key in ("channels", *(key for key in ("classes", "task", "names") if key in method_arguments)):
        if settings.method.get(key) is None:
            filled_in["method"][key] = data_values[key]
        elif settings.method[key] != data_values[key]:
            raise ValueError(f"method.{key}: {settings.method[key]}, but {dataset.name} has {data_values[key]}")
    masks_missing = METHODS[settings.method["name"]].masks_missing_labels
    lacking = (dataset.labels < 0) if masks_missing else unlabelled(dataset.labels)
    if "classes" in method_arguments and (not dataset.classes or bool(lacking.any())):
        raise ValueError(f"{dataset.name}: holds unlabelled samples; the method {settings.method['name']} needs labels")
    if "label_counts" in method_arguments and settings.method.get("label_counts") is None:
        filled_in["method"]["label_counts"] = label_counts(dataset)
    missing = [key for key in ("mean", "std") if settings.views.get(key) is None]
    if missing:
        normalisation = dict(zip(("mean", "std"), moments(dataset, settings.run.seed), strict=True))
        filled_in["views"] = {key: normalisation[key] for key in missing}
    view_arguments = inspect.signature(registry.split(VIEWS, settings.views, "views")[0]).parameters
    if "pixel_mm" in view_arguments and settings.views.get("pixel_mm") is None:
        filled_in.setdefault("views", {})["pixel_mm"] = pixel_size(dataset)
    asked = [key for key in FROM_VIEWS if key in method_arguments]
    if asked:
        filled_in["method"] |= decided_by_views(settings, dataset, asked)
    return replace(settings, **filled_in)


def decided_by_views(settings: Config, dataset: Dataset, keys: Sequence[str]) -> dict[str, int]:
    """The arguments ``keys`` of the method, which are attributes of the views: how many labels a pretext task has.
    ``ValueError`` where these views have none, or the configuration says another number."""
    views = build_views(settings, dataset)
    values = {}
    for key in keys:
        value = getattr(views, key, None)
        if not isinstance(value, int):
            able = ", ".join(sorted(name for name, kind in VIEWS.items() if hasattr(kind, key)))
            method, name = settings.method["name"], settings.views["name"]
            raise ValueError(f"views.name: {name} poses no task for the method {method}; allowed: {able}")
        if settings.method.get(key) not in (None, value):
            raise ValueError(f"method.{key}: {settings.method[key]}, but the views have {value}")
        values[key] = value
    return values


def label_counts(dataset: Dataset) -> list[list[int]]:
    """(samples without, samples with) each label, where it is known; of classes one row, the samples of each."""
    if dataset.task == "single":
        return [torch.bincount(dataset.labels, minlength=len(dataset.classes)).tolist()]
    return [[int((column == value).sum()) for value in (0, 1)] for column in dataset.labels.unbind(1)]


def pixel_size(dataset: Dataset) -> float | None:
    """Side of a pixel in mm, the mean of the sides that occur, to a thousandth. None where the pixels are not square,
    or differ in size by more than 1 %, or the data does not say."""
    # The third spacing is that between slices.
    sides = {float(side) for record in dataset.records for side in record.get("spacing_mm", ())[:2]}
    if not sides or max(sides) > 1.01 * min(sides):
        return None
    return round(sum(sides) / len(sides), 3)


def moments(dataset: Dataset, seed: int, samples: int = 1000) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, on the scale [0, 1]. They come from up to ``samples`` images, drawn
    by the seed. They are rounded to four digits: the last bit of another machine should not make it another run."""
    positions = randomness.order(dataset.ids, seed, "moments")[:samples]
    low, high = dataset.value_range()
    # Row 0: sums of the pixels, row 1: sums of their squares, a column for each channel. ``count``: pixels per channel.
    sums, count = torch.zeros(2, dataset.channels, dtype=torch.float64), 0
    for part in torch.split(positions, 64):  # a thousand large images in float64 would be gigabytes
        batch = dataset.fetch(part, seed=seed, epoch=0, draw=torch.zeros_like(part))
        images = single_images(batch).to(torch.float64)
        images = (images - low) / (high - low)  # (B, C, H, W)
        sums += torch.stack([images.sum((0, 2, 3)), images.square().sum((0, 2, 3))]).cpu()  # (2, C)
        count += images.numel() // images.shape[1]
    mean = sums[0] / count  # (C,)
    # The unbiased variance: E[x^2] - E[x]^2, times n / (n - 1). Rounding can make the difference negative.
    std = ((sums[1] / count - mean.square()).clamp_min(0.0) * (count / max(count - 1, 1))).sqrt()  # (C,)
    return [round(value, 4) for value in mean.tolist()], [max(round(value, 4), 1e-4) for value in std.tolist()]


def single_images(batch: Item) -> Tensor:
    """The images of a batch one after another, (N, C, H, W). Of clips (B, S, C, H, W) these are the slices that are
    there: what pads a short clip is left out."""
    images = batch["images"]
    if "length" not in batch:
        return images
    return images[torch.arange(images.shape[1], device=images.device) < batch["length"][:, None]]


def build_method(settings: Config) -> Method:
    """The method on the CPU, its weights drawn from the substream ``init`` of the run's seed."""
    # The global generator is put back afterwards; the mask makes the seed non-negative.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.key(settings.run.seed, "init") & ((1 << 63) - 1))
        method: Method = registry.build(METHODS, settings.method, "method")
    return method.double() if settings.plan.precision == "float64" else method


def build_views(settings: Config, dataset: Dataset) -> nn.Module:
    """The training views for ``dataset``."""
    return views_of(settings.views, dataset)


def standard_views(settings: Config, dataset: Dataset) -> nn.Module:
    """The deterministic evaluation view, with the size and the normalisation of the training views."""
    return views_of({"name": "standard", **{key: settings.views[key] for key in ("size", "mean", "std")}}, dataset)


def views_of(leaf: Mapping[str, Any], dataset: Dataset) -> nn.Module:
    """The entry of VIEWS that ``leaf`` names, for the images of ``dataset``."""
    return views_for(leaf, dataset.channels, dataset.value_range())


def views_for(leaf: Mapping[str, Any], channels: int, value_range: tuple[float, float]) -> nn.Module:
    """The entry of VIEWS that ``leaf`` names. What it takes of ``SUPPLIES`` is made first, from the leaf's mapping of
    that name (none: by the defaults). ``ValueError`` names the key."""
    constructor, arguments = registry.split(VIEWS, leaf, "views")
    accepted, _ = registry.schema(constructor)
    supplied = {}
    for name, make in SUPPLIES.items():
        if name not in accepted:
            continue
        given = arguments.pop(name, None) or {}
        if not isinstance(given, Mapping):
            raise ValueError(f"views.{name}: expected a mapping, got {given!r}")
        registry.check_arguments(make, given, f"views.{name}")
        with located(f"views.{name}"):
            supplied[name] = make(**given)
    given_by_data: dict[str, Any] = {"channels": channels, "value_range": value_range, **supplied}
    registry.check(VIEWS, {**arguments, "name": leaf["name"]}, "views", tuple(given_by_data), tuple(supplied))
    views: nn.Module = registry.build(VIEWS, {**arguments, "name": leaf["name"]}, "views", **given_by_data)
    return views


def compile_encoder(encoder: Encoder) -> None:
    """Compile the encoder's forward pass and, where it has them, its feature maps, which some methods call alone."""
    encoder.compile()
    if hasattr(encoder, "maps"):
        encoder.maps = torch.compile(encoder.maps)  # type: ignore[assignment, arg-type]


def build_evaluators(settings: Config) -> dict[str, Evaluator | Segmenting]:
    """The evaluators of ``evaluate.protocols`` by title. The title is the name; where several have one name, the
    arguments in which they differ are appended: ``knn(k=20)``. ``ValueError`` for the same protocol twice."""
    evaluators: dict[str, Evaluator | Segmenting] = {}
    names = [leaf["name"] for leaf in settings.evaluate.protocols]
    for name, leaf in zip(names, settings.evaluate.protocols, strict=True):
        # All protocols of this name, this one among them, and the arguments that tell this one from the others.
        namesakes = [protocol for protocol in settings.evaluate.protocols if protocol["name"] == name]
        differing = {k: v for k, v in leaf.items() if any(protocol.get(k) != v for protocol in namesakes)}
        title = f"{name}({', '.join(f'{k}={v}' for k, v in differing.items())})" if differing else name
        if namesakes.count(leaf) > 1:
            arguments = ", ".join(f"{k}={v}" for k, v in leaf.items() if k != "name")
            raise ValueError(f"evaluate.protocols: {name}({arguments}) stands there twice")
        evaluators[title] = registry.build(EVALUATORS, inherit(leaf, settings.method), "evaluate.protocols")
    return evaluators


def inherit(leaf: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol ``leaf``, completed with the run's own prototype head where the evaluator takes a ``head``. So a run
    is measured with the head it was trained with; what the protocol says itself (another window, say) comes first."""
    registry.check(EVALUATORS, leaf, "evaluate.protocols")
    constructor, _ = registry.split(EVALUATORS, leaf, "evaluate.protocols")
    if "head" not in inspect.signature(constructor).parameters:
        return dict(leaf)
    return {**leaf, "head": head_over(method.get("head"), leaf.get("head"))}
