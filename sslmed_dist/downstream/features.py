"""Features of a frozen encoder, computed once and kept on the CPU for every evaluator."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sslmed_dist.data.dataset import Dataset, Item, unlabelled

SPLITS = ("train", "val", "test")
# The arm of the floor below.
RAW_PIXELS = "raw_pixels"


@dataclass(frozen=True)
class Features:
    """Features of N samples and what is known of them."""

    x: Tensor  # (N, D) float32
    labels: Tensor  # (N,) int64 class numbers, or (N, L) float32 for the task ``multi``, NaN where one is missing
    groups: Tensor  # (N,) int64 patients
    index: Tensor  # (N,) int64 sample ids

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | str) -> "Features":
        """The same features on ``device``."""
        return Features(*(tensor.to(device) for tensor in (self.x, self.labels, self.groups, self.index)))


@dataclass(frozen=True)
class SplitFeatures:
    """Features of the three splits of one site, with the dataset's task and class (or label) names."""

    train: Features
    val: Features
    test: Features
    task: Literal["single", "multi"]
    classes: tuple[str, ...]

    def to(self, device: torch.device | str) -> "SplitFeatures":
        """The same features on ``device``."""
        return replace(self, **{name: getattr(self, name).to(device) for name in SPLITS})


class RawPixels(nn.Module):
    """The floor every encoder must beat: the image itself, flattened; (N, C, H, W) -> (N, C * H * W).

    ``extract_splits`` subtracts from all three splits the mean of each channel over the training images.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Flatten."""
        return images.flatten(1)


@runtime_checkable
class Imageless(Protocol):
    """A floor that looks at no image: what it knows of the samples stands in for their features."""

    def features(self, dataset: Dataset, positions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Float32 (N, F) for each split's ``positions``; what is learnt of the numbers is learnt of ``train``."""
        ...


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A block in which ``module`` is in evaluation mode. Afterwards every submodule is in the mode it was in before
    (some may be frozen, and so in evaluation mode while others train)."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def occurrences(positions: Tensor) -> Tensor:
    """How often each position came before in the list, int64 (B,) -> (B,). This is the draw number, so an exam that is
    asked for again gives another slice."""
    # sorted, equal positions stand together: the rank of each within its run is how often it came before
    ranked, by_position = torch.sort(positions, stable=True)
    times_before = torch.arange(len(positions)) - torch.searchsorted(ranked, ranked, right=False)
    return torch.empty_like(positions).scatter_(0, by_position, times_before)


def extract(
    encoder: nn.Module,
    dataset: Dataset,
    positions: Tensor,
    *,
    views: nn.Module,
    device: torch.device | str,
    batch_size: int = 256,
    seed: int = 0,
) -> Features:
    """Features of the samples at ``positions`` (int64 (N,)) under the first view, on the CPU.

    The encoder runs in evaluation mode on ``device`` without gradients; its modes are put back afterwards. A position
    that comes again is fetched with the next draw number (0, 1, ...). The features of an exam of several slices
    (``data.clip``) are those of ``of_exams``. Non-finite features are a ``ValueError``.
    """
    positions = positions.cpu()
    draws = occurrences(positions)
    outputs: list[tuple[Tensor, Tensor, Tensor]] = []  # (x, labels, index) of each batch
    with torch.inference_mode(), evaluating(encoder), evaluating(views):
        for start in range(0, len(positions), batch_size):
            chunk = slice(start, start + batch_size)
            batch = dataset.fetch(positions[chunk], seed=seed, epoch=0, draw=draws[chunk])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            if batch["images"].ndim == 5:
                x = of_exams(encoder, batch, views=views, batch_size=batch_size, seed=seed)
            else:
                x = of_images(encoder, batch, views=views, seed=seed)
            outputs.append((x.cpu(), batch["labels"].cpu(), batch["index"].cpu()))
    groups = dataset.groups.cpu()[positions]
    if not outputs:
        return Features(torch.zeros(0, 0), dataset.labels.cpu()[positions], groups, dataset.ids.cpu()[positions])
    # clone(): tensors made in inference mode may not take part in autograd later.
    x, labels, index = (torch.cat(parts).clone() for parts in zip(*outputs, strict=True))
    finite = x.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"{dataset.name}: the encoder gives non-finite features for {int((~finite).sum())} of {len(x)} samples, "
            f"first for sample {int(index[~finite][0])}; is its checkpoint the last good one?"
        )
    return Features(x, labels, groups, index)


def of_images(encoder: nn.Module, batch: Item, *, views: nn.Module, seed: int) -> Tensor:
    """The features (B, D) of ``batch["images"]`` (B, C, H, W) under the first view."""
    features: Tensor = encoder(views(batch, seed=seed, epoch=0)["views_0"]).float().flatten(1)
    return features


def of_exams(encoder: nn.Module, batch: Item, *, views: nn.Module, batch_size: int, seed: int) -> Tensor:
    """The features of exams of several slices: the mean, then the greatest value over an exam's slices of each feature
    of the slices, (B, 2 D). "images" are (B, S, C, H, W), of which "length" (B,) are slices; the rest is left out. At
    most ``batch_size`` slices are in the encoder at once."""
    images, length = batch["images"], batch["length"]
    real = torch.arange(images.shape[1], device=images.device)[None] < length[:, None]  # (B, S)
    parts = torch.split(images[real], batch_size)
    slices = [of_images(encoder, {"images": part}, views=views, seed=seed) for part in parts]
    exams = torch.split(torch.cat(slices), length.tolist())
    return torch.stack([torch.cat([exam.mean(0), exam.amax(0)]) for exam in exams])


def extract_splits(
    encoder: nn.Module,
    dataset: Dataset,
    positions: Mapping[str, Tensor],
    *,
    views: nn.Module,
    device: torch.device | str,
    batch_size: int = 256,
    seed: int = 0,
    missing: bool = False,
) -> SplitFeatures:
    """``extract`` for the positions of ``train``, ``val`` (may be empty) and ``test``; arguments as for ``extract``,
    ``missing`` as for ``check``. What an ``Imageless`` floor says stands in for the features.

    ``ValueError`` for a missing or unlabelled split, an empty train or test, and where a sample or a patient of test is
    also in train or val.
    """
    check(dataset, positions, missing)
    if isinstance(encoder, Imageless):
        x = encoder.features(dataset, positions)
        known = (dataset.labels.cpu(), dataset.groups.cpu(), dataset.ids.cpu())
        parts = {name: Features(x[name], *(of[positions[name].cpu()] for of in known)) for name in SPLITS}
        return SplitFeatures(**parts, task=dataset.task, classes=tuple(dataset.classes))
    train, val, test = (
        extract(encoder, dataset, positions[name], views=views, device=device, batch_size=batch_size, seed=seed)
        for name in SPLITS
    )
    if not len(val):
        val = replace(val, x=train.x.new_zeros((0, train.x.shape[1])))
    if isinstance(encoder, RawPixels):
        # (N, C * H * W) -> the mean of each channel (C,) -> repeated for its H * W pixels (C * H * W,)
        centre = train.x.double().reshape(len(train), dataset.channels, -1).mean(dim=(0, 2)).float()
        centre = centre.repeat_interleave(train.x.shape[1] // dataset.channels)
        train, val, test = (replace(features, x=features.x - centre) for features in (train, val, test))
    return SplitFeatures(train, val, test, dataset.task, tuple(dataset.classes))


def check(dataset: Dataset, positions: Mapping[str, Tensor], missing: bool = False) -> None:
    """``ValueError`` unless the three splits are there, train and test hold samples, all samples are labelled, and no
    sample or patient of test is in train or val. ``missing``: of several labels some may be missing."""
    if set(positions) != set(SPLITS):
        raise ValueError(f"{dataset.name}: expected the splits {', '.join(SPLITS)}, got {', '.join(sorted(positions))}")
    for name in ("train", "test"):
        if not len(positions[name]):
            raise ValueError(f"{dataset.name}: the split {name} is empty")
    for name in SPLITS:
        labels = dataset.labels.cpu()[positions[name].cpu()]
        count = 0 if missing and labels.ndim == 2 else int(unlabelled(labels).sum())
        if not dataset.classes or count:
            what = f"unlabelled samples ({count}; one missing label is enough)"
            raise ValueError(f"{dataset.name}: the split {name} holds {what}; evaluation needs labels")
    test = positions["test"].cpu()
    for name in ("train", "val"):
        seen = positions[name].cpu()
        for kind, identifiers in (("sample", dataset.ids.cpu()), ("patient (group)", dataset.groups.cpu())):
            shared = torch.isin(identifiers[test], identifiers[seen])
            if shared.any():
                first = int(identifiers[test][shared][0])
                raise ValueError(f"{dataset.name}: {kind} {first} is in both {name} and test; the test would leak")
