"""Loading a pretrained encoder from a run folder or a checkpoint file, and exporting it for other programs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sslmed_dist import checkpoint, config
from sslmed_dist.config import Config
from sslmed_dist.drivers import job
from sslmed_dist.run_folder import write_json

Part = Literal["encoder", "momentum"]
PREFIXES: dict[Part, str] = {"encoder": "encoder.", "momentum": "momentum_encoder."}


@dataclass(frozen=True)
class Pretrained:
    """An encoder with its weights, the resolved settings it was trained under, and which file it came from."""

    encoder: nn.Module
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


def untrained(settings: Config) -> nn.Module:
    """A float32 encoder of the run's architecture with random weights: no ``weights`` file is read."""
    leaf = settings.method.get("encoder")
    if isinstance(leaf, Mapping) and "weights" in leaf:
        settings = config.replace(settings, method={"encoder": {"weights": None}})
    encoder: nn.Module = job.build_method(settings).encoder.float()  # type: ignore[assignment]
    return encoder


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
    return Pretrained(encoder.to(device).eval(), settings, path, checkpoint.sha256(path))


def export(source: Path, out: Path, which: str = "last", part: Part = "encoder") -> tuple[Path, Path]:
    """Write the encoder (or its slow copy: ``part``) as ``OUT.safetensors`` with ``OUT.json`` (architecture,
    normalisation, source hash). ``out`` may end in either suffix itself.

    Keys are torchvision's ResNet names without a prefix (a dilated encoder's: DeepLabV3's ``backbone.`` and its own
    ``project.weight``). ``ValueError`` when safetensors is not installed.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise ValueError("export needs safetensors: pip install 'sslmed-dist[report]'") from None
    found = load(source, which, part=part)
    tensors = {key: value.contiguous() for key, value in found.encoder.state_dict().items()}
    stem = out.name.removesuffix(".safetensors").removesuffix(".json")  # a name may have other dots: resnet18-v0.2
    weights, card = out.with_name(f"{stem}.safetensors"), out.with_name(f"{stem}.json")
    checkpoint.write_atomically(weights, save(tensors))
    views = found.settings.views
    facts: dict[str, Any] = {
        "architecture": found.settings.method["encoder"],
        "channels": found.settings.method["channels"],
        "feature_dim": int(found.encoder.feature_dim),  # type: ignore[arg-type]
        "input": {"size": views["size"], "mean": views["mean"], "std": views["std"], "scale": "[0, 1] before mean"},
        "method": found.settings.method,
        "part": part,
        "source_sha256": found.sha256,
        "use": "Research use only, not a medical device.",
    }
    write_json(card, facts)
    return weights, card
