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
    """The checkpoint file: ``source`` itself where it is a file, else that of the run folder ``source`` which ``which``
    names: ``step_N``, ``round_N``, or ``last`` (the last round of a federation, else the last step). ``ValueError``
    lists what the folder has."""
    if source.is_file():
        return source
    folder = source / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"{source}: neither a checkpoint file nor a run folder with checkpoints")
    steps, rounds = sorted(folder.glob("step_*.pt")), sorted(folder.glob("round_*.pt"))
    # By name without leading zeros: step_000000120.pt is "step_120".
    by_name = {f"{path.stem.split('_')[0]}_{int(path.stem.split('_')[1])}": path for path in steps + rounds}
    if which == "last" and by_name:
        return (rounds or steps)[-1]
    if which not in by_name:
        raise ValueError(f"{source}: no checkpoint {which!r}; allowed: last, {', '.join(by_name) or '(none yet)'}")
    return by_name[which]


def untrained(settings: Config) -> Encoder:
    """A float32 encoder of the run's architecture with random weights: no ``weights`` file is read."""
    leaf = settings.method.get("encoder")
    if isinstance(leaf, Mapping) and "weights" in leaf:
        settings = config.replace(settings, method={"encoder": {"weights": None}})
    return build.build_method(settings).encoder.float()


def load(source: Path, which: str = "last", device: torch.device | str = "cpu", part: Part = "encoder") -> Pretrained:
    """Build the encoder that the checkpoint describes, in float32 and evaluation mode, and load its weights. ``part``
    ``momentum`` loads those of its slow copy, the momentum encoder. ``ValueError`` where the weights do not fit, or the
    checkpoint has no such copy."""
    path = find(source, which)
    saved = checkpoint.load(path)
    settings = config.from_tree(saved["config"], str(path))
    encoder = untrained(settings)
    fresh_state, prefix = encoder.state_dict(), PREFIXES[part]
    # Of the method's state only this part, under the names that the encoder itself uses.
    state = {key.removeprefix(prefix): value for key, value in saved["method"].items() if key.startswith(prefix)}
    if part == "momentum" and not state:
        raise ValueError(f"{path}: has no momentum encoder (method {settings.method['name']}); allowed part: encoder")
    # A federation leaves integer counters at the sites; in evaluation they play no part.
    counters = {key: value for key, value in fresh_state.items() if not value.is_floating_point()}
    checkpoint.load_method(encoder, {**counters, **state}, path)
    return Pretrained(encoder.to(device).eval(), settings, path, sha256(path))


def first_method(settings: Config) -> Method:
    """The method before its first step. Its weights are drawn (``build_method``), but where ``run.start_from`` names a
    run or file, the encoder's are loaded from there. ``ValueError`` names a checkpoint of another architecture."""
    method = build_method(settings)
    if settings.run.start_from is not None:
        from sslmed_dist.training import pretrained  # it builds its methods here

        start = pretrained.load(Path(settings.run.start_from))
        checkpoint.load_method(method.encoder, start.encoder.state_dict(), start.file)
    return method
