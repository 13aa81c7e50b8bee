"""What a program calls: a trained encoder with the view it was evaluated under, kNN on features, training.

``sslmed_dist`` itself has these as attributes: ``import sslmed_dist as sd; encoder = sd.load_encoder("runs/mine")``.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sslmed_dist import config, installation
from sslmed_dist.config import Config
from sslmed_dist.data import Dataset
from sslmed_dist.downstream.knn import KNN, neighbours_of
from sslmed_dist.drivers import choice
from sslmed_dist.models.interfaces import Encoder
from sslmed_dist.training import build, pretrained
from sslmed_dist.views.intensity import require_range


class FrozenEncoder(nn.Module):
    """Images as they are stored -> features, without gradient: the view of evaluation, then the encoder.

    ``expects`` says in words what images it takes; images whose values cannot be such are refused (``require_range``).
    ``encoder`` alone takes what ``view`` gives (float32, normalised); fine-tune that one.
    ``source`` and ``sha256`` are the file of the weights. ``settings`` is the configuration that it was trained under.
    """

    def __init__(self, trained: pretrained.Pretrained, value_range: tuple[float, float]) -> None:
        super().__init__()
        self.encoder: Encoder = trained.encoder
        self.settings, self.source, self.sha256 = trained.settings, trained.file, trained.sha256
        leaf = {"name": "standard", **{key: trained.settings.views[key] for key in ("size", "mean", "std")}}
        self.channels: int = trained.settings.method["channels"]
        self.standard = build.views_for(leaf, self.channels, value_range)
        self.value_range = value_range
        size, mean, std = (leaf[key] for key in ("size", "mean", "std"))
        self.expects = (
            f"(N, {self.channels}, H, W), {value_range[0]:g} black to {value_range[1]:g} white, not normalised: they "
            f"are brought to {size} x {size} and [0, 1], then less mean {list(mean)} over std {list(std)}"
        )

    def extra_repr(self) -> str:
        """What it expects, when it is printed."""
        return f"expects images {self.expects}"

    @property
    def feature_dim(self) -> int:
        """How many features an image has."""
        return self.encoder.feature_dim

    def view(self, images: Tensor) -> Tensor:
        """(N, C, H, W) as stored (uint8 0 to 255, or what ``value_range`` says) -> float32 (N, C, size, size), resized,
        cropped at the centre and normalised as in training. ``ValueError`` for other channels, and for values that
        cannot be of that range."""
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images: expected (N, {self.channels}, H, W), got {tuple(images.shape)}")
        require_range(images, self.value_range, self.expects)
        view: Tensor = self.standard({"images": images}, seed=0, epoch=0)["views_0"]
        return view

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (N, ``feature_dim``) float32 of images as ``view`` takes them."""
        device = next(self.encoder.parameters()).device
        features: Tensor = self.encoder(self.view(images.to(device)))
        return features

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stays in evaluation mode: batch norm with the batch's own statistics would be another encoder."""
        return super().train(False)


def load_encoder(
    source: str | Path,
    which: str = "last",
    part: pretrained.Part = "encoder",
    device: torch.device | str = "cpu",
    value_range: tuple[float, float] = (0.0, 255.0),
) -> FrozenEncoder:
    """The encoder of a run folder, a checkpoint, an export, or another program's described weights.

    ``which``: last, best, step_N or round_N. ``part``: encoder, or momentum for its slow copy. ``value_range``: what
    stands for black and white in the images that it will be given; uint8 has 0 and 255. What the encoder then
    ``expects`` stands in its text, and images that cannot be of that range are refused.
    ``ValueError`` as ``training.pretrained.load``; also for a file of weights that says nothing of its input.
    """
    trained = pretrained.load(Path(source), which, device, part)
    return FrozenEncoder(trained, value_range).to(device).eval()


def images_of(dataset: Dataset) -> Tensor:
    """All images of a dataset in their order, (N, C, H, W) as they are stored; of an examination one of its slices.

    For sets that fit into memory: a loop of your own over larger ones calls ``dataset.fetch`` with the positions of a
    batch, and gets their labels and keys with them.
    """
    positions = torch.arange(len(dataset))
    return dataset.fetch(positions, seed=0, epoch=0, draw=torch.zeros_like(positions))["images"]


def knn(
    features: Tensor, labels: Tensor, queries: Tensor | None = None, *, k: int = 200, temperature: float = 0.1
) -> Tensor:
    """Votes of the ``k`` nearest of ``features`` (N, D) with class numbers ``labels`` (N,), by cosine, weighted by
    exp(cosine / ``temperature``) (Wu et al. 2018): float64 (M, C) for ``queries`` (M, D), each row of sum 1.

    Without queries each row of ``features`` is asked by the others (leave one out): ``(knn(x, y).argmax(1) == y)``
    is then an honest accuracy. ``ValueError`` for shapes that do not fit, labels that are no class numbers, features
    that are not finite, or more neighbours than there are.
    """
    for name, given in (("features", features), ("labels", labels), ("queries", queries)):
        if given is not None and not isinstance(given, Tensor):
            raise ValueError(f"knn: expected {name} as a tensor, got {type(given).__name__}")
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"knn: expected features (N, D) and labels (N,), got {features.shape} and {labels.shape}")
    alone = queries is None
    asked = features if queries is None else queries
    if asked.ndim != 2 or asked.shape[1] != features.shape[1]:
        raise ValueError(f"knn: expected queries (M, {features.shape[1]}), got {tuple(asked.shape)}")
    if labels.is_floating_point() or labels.is_complex() or int(labels.min()) < 0:
        raise ValueError(
            f"knn: expected labels that are class numbers from 0 on, got {labels.dtype} from {labels.min()}"
        )
    if not (features.isfinite().all() and asked.isfinite().all()):
        raise ValueError("knn: expected finite features; some are NaN or infinite")
    judge = KNN(k, temperature)
    judge.require(len(features) - alone, 0)
    similarity, neighbours = neighbours_of(features.float(), asked.float(), k + alone)  # both (M, k or k + 1)
    if alone:
        others = neighbours != torch.arange(len(asked), device=neighbours.device)[:, None]
        # Of several equal rows a row may not be among its own nearest: then the last of them goes.
        others[others.all(dim=1), -1] = False
        similarity, neighbours = similarity[others].view(-1, k), neighbours[others].view(-1, k)
    weights = judge.weigh(similarity.double())
    weights = weights / weights.sum(dim=1, keepdim=True)
    classes = int(labels.max()) + 1
    return weights.new_zeros((len(asked), classes)).scatter_add_(1, labels.long()[neighbours], weights)


def train(settings: Config | str | Path, overrides: Sequence[str] = (), resume: str = "auto") -> Path:
    """Train a configuration, the file of one, or a recipe by its name, as ``sslmed train`` does. Returns its folder.

    ``overrides``: words as on the command line, ``"plan.epochs=3"``. A run that was stopped is gone on with (``resume``
    ``auto``) or refused (``never``). ``ValueError`` for a configuration that is wrong; for overrides of one that is
    read already.
    """
    if isinstance(settings, Config):
        if overrides:
            raise ValueError("train: overrides belong to a file or a recipe; change the Config with config.replace")
    else:
        settings = config.load(installation.recipe(str(settings)), overrides)
    choice.train(settings, resume)
    return settings.folder
