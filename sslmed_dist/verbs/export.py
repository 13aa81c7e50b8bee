"""``sslmed export``: the encoder for other programs, as safetensors and JSON."""

from pathlib import Path
from typing import Any

from sslmed_dist import outputs
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.printable import note, without_folders
from sslmed_dist.run_folder import write_json
from sslmed_dist.training.pretrained import Part, load

OTHER_FORMATS = (".pt", ".pth", ".onnx", ".npz", ".bin")


def export_encoder(
    source: Path, out: Path, which: str = "last", part: Part = "encoder", *, force: bool = False
) -> tuple[Path, Path]:
    """Write the encoder (with ``part`` ``momentum`` its slow copy) as ``OUT.safetensors``, and ``OUT.json`` with its
    architecture, its normalisation and the hash of the checkpoint. Returns both files. ``out`` may have either suffix.
    No path is in them: of a file of first weights only its name.

    The tensors bear torchvision's ResNet names without a prefix. Those of a dilated encoder bear DeepLabV3's names,
    beginning with ``backbone.``, and one of its own, ``project.weight``. Both files are read back by ``weights``,
    ``run.start_from`` and ``embed``. ``ValueError`` when safetensors is not installed, and where something is there
    already that ``outputs.require_writable`` keeps.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise ValueError("export needs safetensors: pip install 'sslmed-dist[report]'") from None
    if out.name in ("", "..") or out.is_dir():
        raise ValueError(f"{out}: is a folder; --out expects the name of the files in it, such as {out / 'encoder'}")
    if out.suffix in OTHER_FORMATS:
        raise ValueError(f"{out}: an encoder is written as .safetensors and .json; give a name without {out.suffix}")
    stem = out.name.removesuffix(".safetensors").removesuffix(".json")  # a name may have other dots: resnet18-v0.2
    weights, card = out.with_name(f"{stem}.safetensors"), out.with_name(f"{stem}.json")
    outputs.require_writable([(weights, outputs.is_export), (card, outputs.is_description)], force=force)
    trained = load(source, which, part=part)
    if trained.unfinished:
        note(f"{trained.file.name} is of {trained.unfinished}")
    tensors = {key: value.contiguous() for key, value in trained.encoder.state_dict().items()}
    write_atomically(weights, save(tensors, metadata={"format": "pt", outputs.MARK: outputs.EXPORT}))
    views = trained.settings.views
    description: dict[str, Any] = {
        outputs.MARK: outputs.EXPORT,
        "architecture": without_folders(trained.settings.method["encoder"]),
        "channels": trained.settings.method["channels"],
        "feature_dim": trained.encoder.feature_dim,
        "input": {"size": views["size"], "mean": views["mean"], "std": views["std"], "scale": "[0, 1] before mean"},
        "method": without_folders(trained.settings.method),
        "part": part,
        "source_sha256": trained.sha256,
        "use": "Research use only, not a medical device.",
    }
    write_json(card, description)
    return weights, card
