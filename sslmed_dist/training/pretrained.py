"""Loading a pretrained encoder from a run folder or a checkpoint file, and exporting it for other programs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from sslmed_dist import checkpoint, config
from sslmed_dist.atomic_files import sha256
from sslmed_dist.config import Config
from sslmed_dist.methods import Method
from sslmed_dist.models.interfaces import Encoder
from sslmed_dist.training import build
from sslmed_dist.training.build import build_method

Part = Literal["encoder", "momentum"]
PREFIXES: dict[Part, str] = {"encoder": "encoder.", "momentum": "momentum_encoder."}


@dataclass(frozen=True)
class Pretrained:
    """An encoder with its weights, the resolved settings it was trained under, and which file it came from."""

    encoder: Encoder
    settings: Config
    file: Path
    sha256: str


def find(source: Path, which: str = "last") -> Path:
    """The checkpoint file that ``source`` (a run folder or a file) and ``which`` (``last``, ``step_N``, ``round_N``)
    mean. ``ValueError`` lists what the folder has."""
    if source.is_file():
        return source
    folder = source / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"{source}: neither a checkpoint file nor a run folder with checkpoints")
    steps, rounds = sorted(folder.glob("step_*.pt")), sorted(folder.glob("round_*.pt"))
    named = {f"{path.stem.split('_')[0]}_{int(path.stem.split('_')[1])}": path for path in steps + rounds}
    if which == "last" and named:
        return (rounds or steps)[-1]
    if which not in named:
        raise ValueError(f"{source}: no checkpoint {which!r}; allowed: last, {', '.join(named) or '(none yet)'}")
    return named[which]


def untrained(settings: Config) -> Encoder:
    """A float32 encoder of the run's architecture with random weights: no ``weights`` file is read."""
    leaf = settings.method.get("encoder")
    if isinstance(leaf, Mapping) and "weights" in leaf:
        settings = config.replace(settings, method={"encoder": {"weights": None}})
    return build.build_method(settings).encoder.float()


def load(source: Path, which: str = "last", device: torch.device | str = "cpu", part: Part = "encoder") -> Pretrained:
    """Build the encoder that the checkpoint describes and load its weights (float32), or with ``part`` ``momentum``
    those of its slow copy. ``ValueError`` if they do not fit, or if the checkpoint has no such copy."""
    path = find(source, which)
    saved = checkpoint.load(path)
    settings = config.from_tree(saved["config"], str(path))
    encoder = untrained(settings)
    own, prefix = encoder.state_dict(), PREFIXES[part]
    state = {key.removeprefix(prefix): v for key, v in saved["method"].items() if key.startswith(prefix)}
    if part == "momentum" and not state:
        raise ValueError(f"{path}: has no momentum encoder (method {settings.method['name']}); allowed part: encoder")
    # A federation leaves integer counters at the sites; in evaluation they play no part.
    counters = {key: value for key, value in own.items() if not value.is_floating_point()}
    checkpoint.load_method(encoder, {**counters, **state}, path)
    return Pretrained(encoder.to(device).eval(), settings, path, sha256(path))


def first_method(settings: Config) -> Method:
    """``build_method``, its encoder replaced by that of ``run.start_from`` where one is named. ``ValueError`` names
    a checkpoint whose architecture is another."""
    method = build_method(settings)
    if settings.run.start_from is not None:
        from sslmed_dist.training import pretrained  # it builds its methods here

        start = pretrained.load(Path(settings.run.start_from))
        checkpoint.load_method(method.encoder, start.encoder.state_dict(), start.file)
    return method
