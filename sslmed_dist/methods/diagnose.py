"""A diagnosis from the slices of an examination: an encoder of slices, a head over them, one logit a label."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sslmed_dist import distributed, registry
from sslmed_dist.methods.classify import class_terms
from sslmed_dist.methods.method import Method
from sslmed_dist.models import ENCODERS, SLICE_HEADS
from sslmed_dist.models.interfaces import DenseEncoder, repeat_grey
from sslmed_dist.models.jigsaw_networks import PuzzleEncoder
from sslmed_dist.models.semiparallel import BRANCHES
from sslmed_dist.models.sequence import branches_of, present, spread

GRID, CELL, PATCH = 3, 85, 64  # cells along a side; sides of a cell and of its patch in a slice of 256
Weights = tuple[tuple[float, float], ...] | Literal["balanced"]


class Diagnose(Method):
    """``head(encoder(every slice))`` against an examination's labels; views are ``volume``, data has a ``clip``.

    ``head`` is a leaf of SLICE_HEADS (``divfram``, ``convlstm``, ``cnn3d``, ``max``, ``mean``). ``classes``, ``task``,
    ``channels``, ``names`` and ``label_counts`` describe the data (a run fills them in). ``labels`` names those of the
    data's labels that are learnt; null is all of them.

    The loss of the task ``multi`` is the binary cross entropy summed over labels, the mean over examinations; a label
    that is missing (NaN) adds nothing. ``weights``: a pair (of the value 1, of the value 0) for each label;
    ``balanced`` weighs the rarer side of each label up by the ratio of the training examinations, and the other by 1.
    Task ``single``: two classes are one label, the second class; more are a cross entropy, in which ``balanced`` weighs
    a class by the largest class's number over its own.

    ``freeze``: the encoder does not change, nor does its batch norm. It then works on ``chunk`` slices at a time.
    ``input``: the ``whole`` slice, or the nine centre-cropped ``patches`` that the jigsaw networks learnt on.
    ``cache``: a frozen encoder's maps of an examination are computed once and kept as ``float16``; ``pooled`` keeps
    only their averages, so that the head reads maps of 1 x 1 (for ``max`` and ``mean`` that is the same function).
    ``cache_gb`` is the most that may be kept. A cache needs ``plan.copies``.
    """

    validates: ClassVar[bool] = True
    masks_missing_labels: ClassVar[bool] = True
    encoder: DenseEncoder
    weights: Tensor

    def __init__(
        self,
        encoder: Mapping[str, Any] | str = "skid",
        head: Mapping[str, Any] | str = "convlstm",
        classes: int = 1,
        task: Literal["single", "multi"] = "multi",
        names: tuple[str, ...] | None = None,
        labels: tuple[str, ...] | None = None,
        weights: Weights | None = None,
        label_counts: tuple[tuple[int, ...], ...] | None = None,
        freeze: bool = True,
        input: Literal["whole", "patches"] = "whole",  # noqa: A002, a key of the configuration
        chunk: int = 2,
        cache: Literal["float16", "pooled", "off"] = "off",
        cache_gb: float = 40.0,
        channels: int = 1,
    ) -> None:
        """``ValueError`` naming the field for a value that is not allowed."""
        super().__init__()
        if classes < (1 if task == "multi" else 2):
            raise ValueError(f"method.classes: expected an integer >= {1 if task == 'multi' else 2}, got {classes}")
        if chunk < 1:
            raise ValueError(f"method.chunk: expected an integer >= 1, got {chunk}")
        if cache != "off" and not freeze:
            raise ValueError("method.cache: keeps what a frozen encoder gives; allowed here: off, or freeze: true")
        if cache_gb <= 0:
            raise ValueError(f"method.cache_gb: expected a number > 0, got {cache_gb}")
        self.task, self.input, self.chunk = task, input, chunk
        self.freeze = self.encoder_evaluates = freeze
        self.cache, self.cache_gb = cache, cache_gb
        self.softmax = task == "single" and classes > 2
        given = tuple(names) if names else tuple(f"label {k}" for k in range(classes))
        if task == "single" and classes == 2:
            given = given[1:]
        self.columns, self.labels = chosen(given, labels, self.softmax)
        self.encoder = registry.build(ENCODERS, encoder, "method.encoder", channels=channels)
        self.encoder.requires_grad_(not freeze)
        out = classes if self.softmax else len(self.columns)
        constructor, _ = registry.split(SLICE_HEADS, head, "method.head")
        self.stem = getattr(constructor, "reads", "maps") == "stem"
        self.require_fit(encoder, head)
        width = self.encoder.maps_dim
        if self.stem:
            stem = self.puzzle().stem
            width = stem.width
            # What comes after the stem plays no part.
            self.encoder.requires_grad_(False)
            stem.requires_grad_(not freeze)
        self.head = registry.build(SLICE_HEADS, head, "method.head", in_dim=width, out=out)
        values = self.weights_of(weights, label_counts, out)
        self.register_buffer("weights", torch.tensor(values, dtype=torch.float64), persistent=False)  # no state
        self.normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.encoder.modules())

    def puzzle(self) -> PuzzleEncoder:
        """The encoder, known to have nine branches."""
        encoder: Any = self.encoder
        assert isinstance(encoder, PuzzleEncoder)
        return encoder

    def require_fit(self, encoder: Mapping[str, Any] | str, head: Mapping[str, Any] | str) -> None:
        """``ValueError`` where head or input need another encoder."""
        name, puzzle = encoder if isinstance(encoder, str) else encoder["name"], isinstance(self.encoder, PuzzleEncoder)
        if self.stem and not puzzle:
            raise ValueError(f"method.head: divfram needs the encoder sslacl or skid, got {name}")
        if self.stem and self.input == "patches":
            raise ValueError("method.input: divfram divides whole slices over the branches; allowed here: whole")
        if self.stem and self.cache == "pooled":
            raise ValueError("method.cache: divfram reads the stem's maps; allowed here: float16, off")
        if self.input == "patches" and not puzzle:
            raise ValueError(f"method.input: patches need the encoder sslacl or skid, got {name}; allowed: whole")
        if not hasattr(self.encoder, "maps"):
            raise ValueError(f"method.encoder: {name} has no feature maps, which a diagnosis needs")

    def weights_of(
        self, weights: Weights | None, counts: Sequence[Sequence[int]] | None, out: int
    ) -> list[list[float]] | list[float]:
        """A pair (of the value 1, of the value 0) for each label, or one number a class. ``ValueError`` for a wrong
        number of pairs, or a weight that is not above 0."""
        if weights is None:
            return [1.0] * out if self.softmax else [[1.0, 1.0]] * out
        if weights == "balanced":
            if counts is None:
                raise ValueError("method.label_counts: missing; the weights balanced need them")
            if self.softmax:
                return [max(counts[0]) / max(count, 1) for count in counts[0]]
            pairs = counts if self.task == "multi" else [counts[0]]
            return [balance(*pairs[column]) for column in self.columns]
        values = [[float(one), float(zero)] for one, zero in weights]
        if self.softmax or len(values) != out or not all(0 < value < float("inf") for pair in values for value in pair):
            expected = "balanced or null" if self.softmax else f"{out} pairs (of the value 1, of 0), finite and > 0"
            raise ValueError(f"method.weights: expected {expected}, got {weights!r}")
        return values

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``logits`` (B, L) of "views_0" (B, S, C, H, W), or of maps that were computed before, "maps" (B, S, D, h, w).
        "length" (B,) is the number of slices; without it all S are there."""
        if "maps" in batch:
            maps = batch["maps"].to(next(self.head.parameters()).dtype)
            return {"logits": self.head(maps, batch["length"])}
        views = batch["views_0"]
        if views.ndim != 5:
            got = tuple(views.shape)
            raise ValueError(f"views: diagnose needs examinations (B, S, C, H, W), got {got}; set data.clip")
        length = batch.get("length", torch.full((len(views),), views.shape[1], device=views.device))
        return {"logits": self.head(self.maps(views, length), length)}

    def maps(self, views: Tensor, length: Tensor) -> Tensor:
        """The maps (B, S, D, h, w) that the head reads, 0 where there is no slice.

        Batch norm in training mode has to see equally many slices on every rank. There an examination's slices are
        repeated in the place of those it lacks; elsewhere only those that are there are computed."""
        slices = views.shape[1]
        if self.normalised and self.encoder.training:
            numbers = torch.arange(slices, device=views.device) % length[:, None]
            exams = torch.arange(len(views), device=views.device)[:, None]
            maps = self.encoder.maps(views[exams, numbers].flatten(0, 1))
            return maps.view(-1, slices, *maps.shape[1:])
        there = present(length, slices)
        return spread(self.slice_maps(views[there], branches_of(length, slices)[there] if self.stem else None), there)

    def slice_maps(self, images: Tensor, branches: Tensor | None) -> Tensor:
        """Maps (n, D, h, w) of slices (n, C, H, W); ``branches`` (n,) says which branch of the stem each goes through.
        A frozen encoder takes ``chunk`` slices at a time."""
        if not self.freeze:
            return self.some_maps(images, branches)
        parts = [slice(start, start + self.chunk) for start in range(0, len(images), self.chunk)]
        with torch.no_grad():
            maps = [self.some_maps(images[p], None if branches is None else branches[p]) for p in parts]
        return torch.cat(maps)

    def some_maps(self, images: Tensor, branches: Tensor | None) -> Tensor:
        """``slice_maps`` of all slices at once."""
        if branches is None:
            return self.encoder.maps(patches_of(images) if self.input == "patches" else images)
        stem = self.puzzle().stem
        images = repeat_grey(images, stem.channels)
        # One call a branch, then the slices back in their order.
        rows = [torch.nonzero(branches == k)[:, 0] for k in range(BRANCHES)]
        parts = [stem.branch(k, images[row]) for k, row in enumerate(rows) if len(row)]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def encoder_inputs(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """The slices that are there of all examinations (n, C, H, W), or their patches (n, 9, C, p, p)."""
        views = batch["views_0"]
        length = batch.get("length", torch.full((len(views),), views.shape[1], device=views.device))
        images = views[present(length, views.shape[1])]
        return [patches_of(images) if self.input == "patches" else images]

    def explained(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The logit of each label, or of each class."""
        logits = embeddings["logits"]
        names = [f"class {k}" for k in range(logits.shape[1])] if self.softmax else self.labels
        return {name: logits[:, k].sum() for k, name in enumerate(names)}

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's mean ``loss``, and ``accuracy``: the share of its known labels got right. The means over ranks
        are those of the whole batch."""
        logits, labels = embeddings["logits"], batch["labels"]
        weights = self.weights.to(logits)
        if self.softmax:
            return class_terms(logits, labels, weights)
        target = self.targets(labels).to(logits)  # (B, L), NaN where missing
        known = ~target.isnan()
        target = target.nan_to_num()
        losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        losses = losses * torch.where(target > 0.5, weights[:, 0], weights[:, 1]) * known
        right = (((logits > 0) == (target > 0.5)) & known).sum().to(logits)
        among = distributed.reduce_sum(known.sum().to(logits)) / distributed.world_size()
        return {"loss": losses.sum(dim=1).mean(), "accuracy": right / among.clamp_min(1e-12)}

    def targets(self, labels: Tensor) -> Tensor:
        """The chosen labels (B, L) of a batch's labels (B,) or (B, all)."""
        return (labels[:, None] if labels.ndim == 1 else labels)[:, list(self.columns)]

    def probabilities(self, maps: Tensor, length: Tensor) -> Tensor:
        """Maps (B, S, D, h, w) -> probabilities of the labels, or of the classes (B, L), float64."""
        logits: Tensor = self.head(maps.to(next(self.head.parameters()).dtype), length).double()
        return logits.softmax(dim=1) if self.softmax else logits.sigmoid()


def chosen(
    names: Sequence[str], wanted: Sequence[str] | None, softmax: bool
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The columns of the labels that are learnt, and their names. ``ValueError`` for an unknown or repeated one."""
    if wanted is None:
        return tuple(range(len(names))), tuple(names)
    unknown = [name for name in wanted if name not in names]
    if softmax or unknown or not wanted or len(set(wanted)) < len(wanted):
        allowed = "null (the classes exclude each other)" if softmax else f"some of {', '.join(names)}, each once"
        raise ValueError(f"method.labels: expected {allowed}; got {list(wanted)}")
    return tuple(list(names).index(name) for name in wanted), tuple(wanted)


def balance(negatives: int, positives: int) -> list[float]:
    """(weight of the value 1, weight of 0): the rarer side is weighted up to the other's number. Without one side there
    is nothing to balance."""
    if not negatives or not positives:
        return [1.0, 1.0]
    return [max(1.0, negatives / positives), max(1.0, positives / negatives)]


def patches_of(images: Tensor) -> Tensor:
    """The nine centre-cropped cells of slices (n, C, H, W), row by row: (n, 9, C, h, w). Of a slice of 256 the cells
    have 85 pixels and the patches 64; other sizes in proportion."""
    height, width = images.shape[-2:]
    rows, columns = (starts(side) for side in (height, width))
    high, wide = (patch(side) for side in (height, width))
    cells = [images[..., top : top + high, left : left + wide] for top in rows for left in columns]
    return torch.stack(cells, 1)


def patch(side: int) -> int:
    """The side of a patch in a slice of ``side`` pixels."""
    return max(1, side // GRID * PATCH // CELL)


def starts(side: int) -> list[int]:
    """Where the three patches along a side of ``side`` pixels begin."""
    cell = side // GRID
    return [k * cell + (cell - patch(side)) // 2 for k in range(GRID)]
