"""The sections of a configuration and their defaults: what may stand in a file. ``config`` reads them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sslmed_dist.addresses import require_place
from sslmed_dist.arguments import Leaf, require_between, require_component, require_fields_least
from sslmed_dist.federated_section import Federated

# The keys whose values are paths of this machine, beside those of the section ``run``. By their full names: ``weights``
# of a loss, say, is a word.
DATA_PATHS = ("root", "cache", "subset.file")
PATHS = (*(f"{section}.{key}" for section in ("data", "evaluate.data") for key in DATA_PATHS), "method.encoder.weights")
PRETRAINED = "pretrained"  # in place of a file of weights: to be downloaded
# Keys that were added later: where they are null, a run is the one that it was before they were there.
ADDED = (("run", "continue_from"), ("run", "track"), ("federated", "privacy"), ("federated", "secure"))
MOST_SLICES = 10_000  # of an exam in one visit: no examination has as many
MOST_THREADS = 1024  # no machine has so many cores to spare, and a process with a million threads is killed


def drop_added(tree: dict[str, Any]) -> None:
    """Take what is null of ``ADDED`` out of a configuration's tree."""
    for section, key in ADDED:
        leaf = tree.get(section)
        if isinstance(leaf, dict) and key in leaf and leaf[key] is None:
            del leaf[key]


@dataclass(frozen=True)
class Run:
    """Where a run lives, on what it runs, and its seed. ``name``: the run's folder, one plain part of a path (see
    ``require_component``); null means the stem of the configuration file.
    ``start_from``: a run folder, a checkpoint, an export or another program's file of weights; the weights of its
    encoder are the first weights of this run's.
    ``continue_from``: a run folder or checkpoint of which the whole state is taken over (method, optimiser, queues);
    the schedule and the epochs are this run's own, from the start.
    ``tensorboard``: the scalars are also written as TensorBoard events, to ``tensorboard/`` in the run folder.
    ``track``: the trackers that follow the scalars (``trackers.TRACKERS``): ``[tensorboard, mlflow, wandb]``."""

    name: str | None = None
    dir: str = "runs"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    start_from: str | None = None
    continue_from: str | None = None
    tensorboard: bool = False
    track: tuple[Leaf, ...] | None = None

    def __post_init__(self) -> None:
        if self.start_from is not None and self.continue_from is not None:
            raise ValueError("run.continue_from: takes over everything; run.start_from must be null beside it")
        require_place(self.dir, "run.dir")
        if self.name is not None:
            require_component("run.name", self.name)
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"run.threads: expected an integer from 1 to {MOST_THREADS} or null, got {self.threads}")


@dataclass(frozen=True)
class Plan:
    """How long and in what arithmetic ``fit`` trains. ``batch_size`` is the global batch, over all workers.
    ``precision`` ``auto`` is bf16 on a GPU and float32 elsewhere, ``channels_last`` ``auto`` is true on a GPU and false
    elsewhere; a run decides at its start, writes it down and keeps to it.
    ``copies``: so many different draws of every sample (slices and views) come again and again, instead of a new one
    each time; null: every draw is new.
    ``micro_batch``: how many of its samples (over all workers too) the gradient cache embeds at a time; null turns the
    cache off.
    ``slices_per_exam``: rows of the batch that a visit of an exam gives, in succession. ``validate``: after each epoch
    the loss is measured on this split, without augmentation (null: never). ``patience``: training ends when that loss
    was not lower for so many epochs (null: it goes on to the last epoch)."""

    epochs: int = 200
    batch_size: int = 128
    micro_batch: int | None = None
    steps_per_epoch: int | None = None
    draws: int = 1
    slices_per_exam: int = 1
    validate: Literal["val", "test"] | None = None
    patience: int | None = None
    copies: int | None = None
    precision: Literal["float32", "bf16", "fp16", "float64", "auto"] = "float32"
    channels_last: bool | Literal["auto"] = False
    compile: bool = False
    deterministic: bool = False
    clip: float | None = None
    log_every: int = 10
    checkpoint_every: int | None = None
    keep_last: int = 2
    keep_every: int | None = None
    loader_threads: int = 0
    resident: bool = True

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "micro_batch", "steps_per_epoch", "draws", "copies", "slices_per_exam")
        require_fields_least("plan", self, 1, *counts, "patience", "log_every", "checkpoint_every", "keep_last")
        require_fields_least("plan", self, 0, "keep_every", "loader_threads")
        require_between("plan.slices_per_exam", self.slices_per_exam, 1, MOST_SLICES)
        require_between("plan.loader_threads", self.loader_threads, 0, MOST_THREADS)
        if self.patience is not None and self.validate is None:
            raise ValueError("plan.patience: needs plan.validate, the split whose loss is watched (val or test)")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"plan.clip: expected a norm > 0 or null, got {self.clip}")


@dataclass(frozen=True)
class Ray:
    """Ray Train's workers. ``num_workers: 0`` runs in this process (Ray's local mode, also under torchrun); ``[2, 8]``
    is elastic: it begins with as many as there is room for, goes on with fewer after a node is lost, and with more when
    it comes back. The global batch and the order of samples stay the same. ``resize_s``: how often a larger number is
    considered. ``placement``: ``pack`` fills nodes, ``spread`` deals workers over them, ``strict_spread`` puts each on
    a node of its own.
    ``wait_s``: how long to wait for the nodes that an autoscaler has to add; ``wait_nodes_s``: for nodes that join by
    themselves, where no autoscaler is known."""

    num_workers: int | tuple[int, int] = 2
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    placement: Literal["pack", "spread", "strict_spread"] = "pack"
    max_failures: int = 3
    address: str | None = None
    timeout_s: float = 300.0
    wait_s: float = 900.0
    wait_nodes_s: float = 0.0
    resize_s: float = 60.0

    def __post_init__(self) -> None:
        require_fields_least("ray", self, 0, "cpus_per_worker", "gpus_per_worker", "wait_s", "wait_nodes_s")
        require_fields_least("ray", self, 1, "timeout_s", "resize_s")
        require_fields_least("ray", self, -1, "max_failures")  # -1: without end
        if not self.elastic:
            require_fields_least("ray", self, 0, "num_workers")
        elif not 1 <= self.fewest <= self.most:
            expected = "expected a whole number, or [fewest, most] with 1 <= fewest <= most"
            raise ValueError(f"ray.num_workers: {expected}, got [{self.fewest}, {self.most}]")
        elif self.placement == "strict_spread":
            raise ValueError("ray.placement: strict_spread needs one ray.num_workers; allowed with two: pack, spread")

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while the run goes on."""
        return not isinstance(self.num_workers, int)

    @property
    def fewest(self) -> int:
        """Workers that the run needs."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most(self) -> int:
        """Workers that the run can use."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


@dataclass(frozen=True)
class Evaluate:
    """What is measured on frozen features. ``data`` replaces keys of the section ``data`` (``unit: slice``, say).
    ``val_fraction``: the share of the training split that chooses hyper-parameters. ``test``: the split that is scored.
    ``every``: nearest neighbours among training images are measured every so many epochs while training goes on (null:
    never); the bits of the training stay the same."""

    protocols: tuple[Leaf, ...] = ({"name": "knn", "k": 200}, {"name": "linear"})
    data: Leaf = field(default_factory=dict)
    val_fraction: float = 0.1
    test: Literal["test", "val"] = "test"
    pictures: bool = True
    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"evaluate.every: expected an integer >= 1 or null, got {self.every}")
        for position, leaf in enumerate(self.protocols):
            if not isinstance(leaf.get("name"), str):
                where = f"evaluate.protocols[{position}]"
                raise ValueError(
                    f"{where}: expected a mapping with a 'name', such as {{name: knn}}, got {dict(leaf)!r:.200}"
                )


@dataclass(frozen=True)
class Diagnosis:
    """How ``sslmed diagnose`` makes one diagnosis of several models, its parts, and measures it.

    ``parts``: for each part, by its name, what differs from the run: ``{sagittal: {data: {plane: sagittal}}}``. A part
    may be a plane, a series, a single label. Without any there is one part, the run itself.
    ``sampling``, ``draws``, ``slices``: which slices are looked at (``downstream.diagnosis.sampling``).
    ``published``: the thesis's intervals, 100 re-samplings of 1,000, beside the honest ones.
    ``folds``: the training exams are also dealt to ``fold_count`` folds, ``random`` ones and folds of scanners, each of
    which is answered by models that are trained on the others: so many trainings more of every part and kind."""

    parts: Mapping[str, Leaf] = field(default_factory=dict)
    sampling: Literal["normal", "fifths", "uniform"] = "normal"
    draws: int = 8
    slices: int = 16
    published: bool = False
    folds: tuple[Literal["random", "scanner"], ...] = ()
    fold_count: int = 5

    def __post_init__(self) -> None:
        require_fields_least("diagnose", self, 1, "draws", "slices")
        require_fields_least("diagnose", self, 2, "fold_count")
        if len(set(self.folds)) < len(self.folds):
            raise ValueError(f"diagnose.folds: expected each kind once, got {list(self.folds)}")
        for name, part in self.parts.items():
            require_component("diagnose.parts", name)
            where = f"diagnose.parts.{name}"
            if not isinstance(part, Mapping) or not set(part) <= {"data", "views", "method", "optim", "plan", "run"}:
                raise ValueError(f"{where}: expected some of data, views, method, optim, plan, run, got {part!r:.200}")


@dataclass(frozen=True)
class Config:
    """The resolved configuration of one run. Sections are described by their own classes."""

    data: Leaf
    views: Leaf
    method: Leaf
    run: Run = field(default_factory=Run)
    optim: Leaf = field(default_factory=lambda: {"name": "sgd", "lr": 0.06})
    plan: Plan = field(default_factory=Plan)
    driver: Literal["local", "ray"] = "local"
    ray: Ray = field(default_factory=Ray)
    evaluate: Evaluate = field(default_factory=Evaluate)
    federated: Federated | None = None
    diagnose: Diagnosis | None = None

    def __post_init__(self) -> None:
        if self.federated is not None and self.plan.validate is not None:
            raise ValueError("plan.validate: a federation has fixed rounds and validates nowhere; set it to null")

    @property
    def folder(self) -> Path:
        """The run folder, absolute: ``run.dir``/``run.name``."""
        assert self.run.name is not None
        return Path(self.run.dir).expanduser().resolve() / self.run.name


def is_phantom(settings: Mapping[str, Any], environment: Mapping[str, Any] | None = None) -> bool:
    """Whether the data were phantoms, so that no number is of a patient: ``environment.json`` says so, or the word
    occurs anywhere in the configuration's section ``data`` (name, root, flags)."""
    if (environment or {}).get("phantom_data"):
        return True

    def words(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            for key, item in value.items():
                if item is not False and item is not None:
                    yield str(key)
                    yield from words(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from words(item)
        else:
            yield str(value)

    return any("phantom" in word.lower() for word in words(settings.get("data") or {}))
