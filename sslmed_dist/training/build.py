"""From a configuration to its parts: device, data, views, method, evaluators. What the data decides is written down."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sslmed_dist import randomness, registry
from sslmed_dist.config import Config, merge, replace
from sslmed_dist.data import DATASETS, SUBSETS
from sslmed_dist.data.dataset import Dataset, Subset
from sslmed_dist.downstream import (
    EVALUATORS,
)
from sslmed_dist.downstream.oneshot.evaluator import head_over
from sslmed_dist.downstream.predictions import Evaluator, Segmenting
from sslmed_dist.methods import METHODS, Method
from sslmed_dist.models.interfaces import Encoder
from sslmed_dist.views import VIEWS


def choose_device(settings: Config) -> torch.device:
    """``run.device``; ``auto`` is the GPU that torch sees, else the CPU. ``ValueError`` for a GPU that is not there."""
    asked = settings.run.device
    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device: cuda asked for, but torch sees no CUDA device; allowed here: cpu, auto")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def load_data(settings: Config, split: str, overrides: Mapping[str, Any] | None = None) -> Dataset:
    """One split of the configured dataset; ``overrides`` are laid over the data leaf; ``data.subset`` cuts train."""
    leaf = merge(settings.data, overrides or {})
    subset = leaf.pop("subset", None)
    registry.check(DATASETS, leaf, "data", ("split",), also=("subset",))
    dataset: Dataset = registry.build(DATASETS, leaf, "data", split=split)
    if subset is not None and split == "train":
        chosen = registry.build(
            SUBSETS,
            subset,
            "data.subset",
            labels=dataset.labels,
            groups=dataset.groups,
            ids=dataset.ids,
            names=[record["file"] for record in dataset.records if "file" in record],
            seed=randomness.key(settings.run.seed, "subset"),
        )
        return Subset(dataset, chosen)
    return dataset


def resolve(settings: Config, dataset: Dataset) -> Config:
    """Fill in what the data decides: channels, classes and task where the method asks for them, and the constants of
    normalisation, and of episodes the pixels' size, so that they are written down. ``ValueError`` where the
    configuration says otherwise."""
    trees: dict[str, Any] = {"method": {}}
    facts = {"channels": dataset.channels, "classes": len(dataset.classes), "task": dataset.task}
    asked = inspect.signature(registry.split(METHODS, settings.method, "method")[0]).parameters
    for key in ("channels", *(key for key in ("classes", "task") if key in asked)):
        if settings.method.get(key) is None:
            trees["method"][key] = facts[key]
        elif settings.method[key] != facts[key]:
            raise ValueError(f"method.{key}: {settings.method[key]}, but {dataset.name} has {facts[key]}")
    if "classes" in asked and (not dataset.classes or bool((dataset.labels < 0).any())):
        raise ValueError(f"{dataset.name}: holds unlabelled samples; the method {settings.method['name']} needs labels")
    missing = [key for key in ("mean", "std") if settings.views.get(key) is None]
    if missing:
        found = dict(zip(("mean", "std"), moments(dataset, settings.run.seed), strict=True))
        trees["views"] = {key: found[key] for key in missing}
    shown = inspect.signature(registry.split(VIEWS, settings.views, "views")[0]).parameters
    if "pixel_mm" in shown and settings.views.get("pixel_mm") is None:
        trees.setdefault("views", {})["pixel_mm"] = pixel_size(dataset)
    return replace(settings, **trees)


def pixel_size(dataset: Dataset) -> float | None:
    """Side in mm of the pixels of all slices, rounded to a thousandth; None where they are not square, or not of one
    size to 1 %, or the data does not say."""
    sides = {float(side) for record in dataset.records for side in record.get("spacing_mm", ())[:2]}
    if not sides or max(sides) > 1.01 * min(sides):
        return None
    return round(sum(sides) / len(sides), 3)


def moments(dataset: Dataset, seed: int, samples: int = 1000) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel on the scale [0, 1], from up to ``samples`` keyed samples, rounded to
    four digits so that another machine's last bit does not make another run of it."""
    chosen = randomness.order(dataset.ids, seed, "moments")[:samples]
    low, high = dataset.value_range()
    sums, count = torch.zeros(2, dataset.channels, dtype=torch.float64), 0
    for part in torch.split(chosen, 64):  # a thousand large images in float64 would be gigabytes
        images = dataset.fetch(part, seed=seed, epoch=0, draw=torch.zeros_like(part))["images"].to(torch.float64)
        images = (images - low) / (high - low)
        sums += torch.stack([images.sum((0, 2, 3)), images.square().sum((0, 2, 3))]).cpu()
        count += images.numel() // images.shape[1]
    mean = sums[0] / count
    std = ((sums[1] / count - mean.square()).clamp_min(0.0) * (count / max(count - 1, 1))).sqrt()
    return [round(v, 4) for v in mean.tolist()], [max(round(v, 4), 1e-4) for v in std.tolist()]


def build_method(settings: Config) -> Method:
    """The method on the CPU, its weights drawn from the substream ``init`` of the run's seed."""
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
    views: nn.Module = registry.build(
        VIEWS, leaf, "views", channels=dataset.channels, value_range=dataset.value_range()
    )
    return views


def compile_encoder(encoder: Encoder) -> None:
    """Compile the encoder's forward pass and, where it has them, its feature maps, which some methods call alone."""
    encoder.compile()
    if hasattr(encoder, "maps"):
        encoder.maps = torch.compile(encoder.maps)  # type: ignore[assignment, arg-type]


def build_evaluators(settings: Config) -> dict[str, Evaluator | Segmenting]:
    """The evaluators of ``evaluate.protocols`` by name; a name that comes twice gets those of its arguments appended
    that are not the same in all. ``ValueError`` for the same protocol twice."""
    built: dict[str, Evaluator | Segmenting] = {}
    names = [leaf["name"] for leaf in settings.evaluate.protocols]
    for name, leaf in zip(names, settings.evaluate.protocols, strict=True):
        others = [one for one in settings.evaluate.protocols if one["name"] == name]
        own = {k: v for k, v in leaf.items() if any(one.get(k) != v for one in others)}
        title = f"{name}({', '.join(f'{k}={v}' for k, v in own.items())})" if own else name
        if others.count(leaf) > 1:
            said = ", ".join(f"{k}={v}" for k, v in leaf.items() if k != "name")
            raise ValueError(f"evaluate.protocols: {name}({said}) stands there twice")
        built[title] = registry.build(EVALUATORS, inherit(leaf, settings.method), "evaluate.protocols")
    return built


def inherit(leaf: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    """``leaf`` with the run's own prototype head below it, where the evaluator asks for a ``head``: a run is measured
    with what it was trained with, but for what the protocol says otherwise (another window, say)."""
    registry.check(EVALUATORS, leaf, "evaluate.protocols")
    constructor, _ = registry.split(EVALUATORS, leaf, "evaluate.protocols")
    if "head" not in inspect.signature(constructor).parameters:
        return dict(leaf)
    return {**leaf, "head": head_over(method.get("head"), leaf.get("head"))}
