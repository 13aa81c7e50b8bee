"""A toy for the tests of ``fit``: twelve keyed images, two views by flipping, convolution, norm, dropout and a head."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import randomness
from sslmed_dist.config import Plan
from sslmed_dist.data.batches import Batches
from sslmed_dist.data.dataset import ArrayDataset
from sslmed_dist.methods.method import Method
from sslmed_dist.training import engine, optim
from sslmed_dist.training.state import TrainState, begin


class Flips(nn.Module):
    """views_0: the image as floats in [0, 1]; views_1: the same flipped."""

    def forward(self, batch: Mapping[str, Tensor], *, seed: int, epoch: int) -> dict[str, Tensor]:
        view = batch["images"].float() / 255
        rest = {name: value for name, value in batch.items() if name != "images"}
        return rest | {"views_0": view, "views_1": view.flip(-1)}


class Toy(Method):
    """Records what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential()
        self.encoder.conv = nn.Conv2d(1, 4, 3)
        self.encoder.bn = nn.BatchNorm2d(4)
        self.encoder.relu = nn.ReLU()
        self.encoder.pool = nn.AdaptiveAvgPool2d(2)
        self.encoder.flat = nn.Flatten()
        self.encoder.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(16, 4)
        self.dtypes: set[torch.dtype] = set()
        self.encoder_dtypes: set[torch.dtype] = set()
        self.calls: list[str] = []
        self.progress: list[float] = []
        self.large = 1.0

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = self.encoder(torch.cat([batch["views_0"], batch["views_1"]]))
        self.encoder_dtypes.add(features.dtype)
        z0, z1 = self.head(features).chunk(2)
        return {"z0": z0, "z1": z1}

    def objective(self, embeddings: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        z0, z1 = embeddings["z0"], embeddings["z1"]
        self.dtypes |= {z0.dtype, z1.dtype}
        distance = (z0 - z1).square().mean()
        return {"loss": (distance + 1 / (0.1 + z0.var(0).mean())) * self.large, "distance": distance.detach()}

    def measures(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        self.calls.append("measures")
        return {"spread": embeddings["z0"].std()}

    def before_update(self) -> None:
        self.calls.append("before_update")

    def step_end(self, progress: float) -> None:
        self.progress.append(progress)


@dataclass
class Bench:
    """Everything that ``fit`` takes, and what it called back."""

    method: Toy
    batches: Batches
    plan: Plan
    state: TrainState
    steps: list[tuple[int, dict[str, float]]]
    saved: list[int]
    epochs: list[int]

    def fit(self, **arguments: Any) -> "Bench":
        """Train; returns itself."""
        callbacks = {
            "on_step": lambda state, values: self.steps.append((state.step, values)),
            "on_checkpoint": lambda state: self.saved.append(state.step),
            "on_epoch": lambda state: self.epochs.append(state.step),
        }
        kept: dict[str, Any] = {"views": Flips(), "state": self.state, **callbacks, **arguments}
        assert engine.fit(self.method, self.batches, self.plan, **kept) is self.state
        return self

    def losses(self) -> list[float]:
        """The logged losses."""
        return [values["loss"] for _, values in self.steps]


def images(broken: bool = False) -> Tensor:
    """Twelve images 1 x 6 x 6; ``broken`` puts a NaN into each (they are float32 then)."""
    noise = randomness.uniform(5, torch.arange(12)[:, None], torch.arange(36)[None]).view(12, 1, 6, 6)
    if not broken:
        return (noise * 255).to(torch.uint8)
    noise[:, 0, 0, 0] = torch.nan
    return noise.float()


def bench(*, rank: int = 0, world: int = 1, broken: bool = False, lr: float = 0.1, **plan: Any) -> Bench:
    """Three epochs of three steps of four images, everything logged, unless ``plan`` says otherwise."""
    settings = Plan(**{"epochs": 3, "batch_size": 4, "log_every": 1, **plan})
    torch.manual_seed(3)
    method = Toy()
    if settings.precision == "float64":
        method = method.double()
    if settings.channels_last:
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = images(broken)
    dataset = ArrayDataset(name="toy", images=pixels, labels=torch.zeros(12, dtype=torch.int64), classes=("a",))
    batches = Batches(dataset, global_batch=settings.batch_size, seed=1, rank=rank, world=world)
    leaf = {"name": "sgd", "lr": lr, "momentum": 0.9, "weight_decay": 0.0}
    sizes = {"batch_size": settings.batch_size, "epochs": settings.epochs, "per_epoch": batches.steps}
    state = begin(method, optim.build(leaf, method, **sizes), settings, batches.steps)
    return Bench(method, batches, settings, state, [], [], [])


def tensors(made: Bench) -> dict[str, Tensor]:
    """Copies of parameters, buffers and momentum, by name."""
    found = {name: value.clone() for name, value in made.method.state_dict().items()}
    for number, kept in made.state.optimisation.optimizer.state_dict()["state"].items():
        found[f"momentum.{number}"] = kept["momentum_buffer"].clone()
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
