"""``sslmed export``: the encoder for other programs, as safetensors and JSON."""

from pathlib import Path
from typing import Any

from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.run_folder import write_json
from sslmed_dist.training.pretrained import Part, load


def export_encoder(source: Path, out: Path, which: str = "last", part: Part = "encoder") -> tuple[Path, Path]:
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
    write_atomically(weights, save(tensors))
    views = found.settings.views
    facts: dict[str, Any] = {
        "architecture": found.settings.method["encoder"],
        "channels": found.settings.method["channels"],
        "feature_dim": found.encoder.feature_dim,
        "input": {"size": views["size"], "mean": views["mean"], "std": views["std"], "scale": "[0, 1] before mean"},
        "method": found.settings.method,
        "part": part,
        "source_sha256": found.sha256,
        "use": "Research use only, not a medical device.",
    }
    write_json(card, facts)
    return weights, card
