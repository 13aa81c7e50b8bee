"""Every method with a momentum encoder, a queue, a predictor or several crops, at the size of ``tests.tiny``."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslmed_dist import config, registry
from sslmed_dist.methods import METHODS, Method
from tests import tiny

ENCODER = {"name": "resnet", "depth": 9, "stem": "cifar", "width": 4}
HEAD = {"name": "projection", "hidden": 16, "out": 8, "batch_norm": True}
COLOUR = {"jitter": [0.4, 0.4, 0.0, 0.0], "grey": 0.0, "blur": 0.5}
TWO: dict[str, Any] = {"name": "contrastive", "size": 12, **COLOUR}
# A queue of 40 is no multiple of the batch of 16: every third step writes around its end.
QUEUE = {"encoder": ENCODER, "head": HEAD, "queue": 40, "temperature": 0.2, "momentum": 0.9}

METHOD: dict[str, dict[str, Any]] = {
    "moco": {"name": "moco_v2", **QUEUE},
    "moco_symmetric": {"name": "moco_v2", **QUEUE, "symmetric": True, "momentum_end": 1.0},
    "pirl": {"name": "pirl", **QUEUE},
    "moco_jigsaw": {"name": "moco_v2_jigsaw", **QUEUE},
    "byol": {"name": "byol", "encoder": ENCODER, "head": HEAD, "predictor": HEAD, "momentum": 0.9},
    "simsiam": {"name": "simsiam", "encoder": ENCODER, "head": {**HEAD, "last_norm": True}, "predictor": HEAD},
    "dino": {
        "name": "dino",
        "encoder": ENCODER,
        "head": {"name": "dino", "hidden": 16, "bottleneck": 8, "out": 32, "batch_norm": True, "layers": 2},
        "momentum": 0.9,
        "warmup_epochs": 1,
        "freeze_epochs": 0.5,
    },
}
# torch 2.12 on a CPU has bfloat16 weight gradients of garbage where a strided 3x3 convolution meets 1x1 pixels.
PUZZLES = {"name": "jigsaw", "size": 12, "cell": 8, "patch": 6, "image": COLOUR}
VIEWS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("pirl", "moco_jigsaw"), PUZZLES),
    "dino": {"name": "multi_crop", "size": 12, "large": COLOUR, "small": {"size": 8, "views": 2}},
}


def tree(folder: Path, name: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """The configuration tree of a tiny run of one of ``METHOD``."""
    return config.merge(tiny.tree(folder, method=METHOD[name], views=VIEWS.get(name, TWO)), sections)


def build(name: str, **arguments: Any) -> Any:
    """One of ``METHOD`` in float64, on one channel, from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        method: Method = registry.build(METHODS, {**METHOD[name], "channels": 1, **arguments}, "method")
    return method.double().train()


def batch(name: str, samples: int = 6, first: int = 0) -> dict[str, Tensor]:
    """A float64 batch of random views for ``build(name)``."""
    source = torch.Generator().manual_seed(first)
    sizes = [12, 12, 8, 8] if name == "dino" else [12, 12]
    made = {f"views_{view}": draw(source, samples, 1, size) for view, size in enumerate(sizes)}
    if VIEWS.get(name) is PUZZLES:
        made["patches"] = draw(source, samples, 9, 3)
    return {**made, "index": torch.arange(first, first + samples)}


def draw(source: torch.Generator, samples: int, channels: int, size: int) -> Tensor:
    """Standard normal pixels."""
    return torch.randn(samples, channels, size, size, dtype=torch.float64, generator=source)


def nudge(module: nn.Module) -> None:
    """Move every parameter that is trained, as an optimiser would."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(
                    0.1 * torch.sin(torch.arange(parameter.numel(), dtype=parameter.dtype)).view_as(parameter)
                )


def step(method: Any, given: dict[str, Tensor], epoch: float, progress: float) -> dict[str, Tensor]:
    """What ``fit`` calls in one step, with ``nudge`` in place of an optimiser; returns the terms."""
    method.step_begin(epoch, progress)
    terms: dict[str, Tensor] = method.objective(method.embed(given), given)
    method.zero_grad()
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    method.before_update()
    nudge(method)
    method.step_end(progress)
    return {name: value.detach() for name, value in terms.items()}
