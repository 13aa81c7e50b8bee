"""A folder in the layout of the Hugging Face hub, which timm loads where it has the network. Nothing is uploaded."""

from collections.abc import Mapping
from typing import Any

import torch

from sslmed_dist import outputs
from sslmed_dist.printable import note
from sslmed_dist.training.pretrained import Pretrained
from sslmed_dist.verbs.export.elsewhere import Counterpart, as_timm
from sslmed_dist.verbs.export.format import Exported, Format, require_library
from sslmed_dist.verbs.export.weight_files import as_json


class HubFolder(Format):
    """``README.md`` (the card), ``config.json``, ``model.safetensors`` and ``model.json``, our description.

    Where timm has the network, the tensors bear its names and ``timm.create_model("local-dir:FOLDER")`` loads them.
    ``timm``: any other network is refused. Our own programs read ``model.safetensors`` in either case.
    """

    suffix = ""

    def __init__(self, *, timm: bool = False) -> None:
        self.only_timm = timm

    @property
    def names(self) -> Mapping[str, outputs.Recogniser]:
        """The four files."""
        return {
            "README.md": outputs.is_card,
            "config.json": outputs.is_description,
            "model.safetensors": outputs.is_export,
            "model.json": outputs.is_description,
        }

    def require(self, trained: Pretrained | None) -> None:
        """``ValueError`` where safetensors is not installed, or timm is asked for and has no such network."""
        require_library("export", "safetensors", "report")
        if trained is not None and self.only_timm and as_timm(trained) is None:
            raise ValueError(
                f"--format timm: timm has no such network as {dict(trained.settings.method['encoder'])}; allowed: "
                "resnet of depth 18, 34, 50, 101 or 152, width 64 and stem imagenet, or the encoder timm without "
                "stages; others: --format huggingface"
            )

    def contents(self, what: Exported) -> Mapping[str, bytes]:
        """The four files."""
        from safetensors.torch import save

        network = as_timm(what.trained)
        prefix = "" if network is None else network.prefix
        tensors = {key.removeprefix(prefix): value for key, value in what.tensors().items()}
        weights = save(tensors, metadata={"format": "pt", outputs.MARK: outputs.EXPORT})
        lines = ["import sslmed_dist as sd", 'encoder = sd.load_encoder("FOLDER/model.safetensors")']
        if network is not None:
            lines += ["", "import timm", 'network = timm.create_model("local-dir:FOLDER", pretrained=True)']
        else:
            note("timm has no such network; only this program reads the folder back")
        config = {outputs.MARK: outputs.EXPORT, **(ours(what) if network is None else timms(what, network))}
        return {
            "README.md": what.card(lines).encode(),
            "config.json": as_json(config),
            "model.safetensors": bytes(weights),
            "model.json": as_json({**what.facts, "prefix": prefix}),
        }


def ours(what: Exported) -> dict[str, Any]:
    """``config.json`` of a network that no other library has."""
    facts = what.facts
    return {"library_name": "sslmed-dist", **{key: facts[key] for key in ("architecture", "channels", "feature_dim")}}


def timms(what: Exported, network: Counterpart) -> dict[str, Any]:
    """``config.json`` as timm reads it: the network's name, and how images are prepared for it."""
    scale = what.facts["input"]
    channels = network.channels
    repeated = channels // what.facts["channels"]  # of grey images that the encoder repeats to three channels
    pretrained = {
        "input_size": [channels, scale["size"], scale["size"]],
        "mean": list(scale["mean"]) * repeated,
        "std": list(scale["std"]) * repeated,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "num_classes": 0,
        "license": what.facts["licence"],
    }
    return {
        "architecture": network.name,
        "num_classes": 0,
        "num_features": what.trained.encoder.feature_dim,
        "model_args": {"in_chans": channels},
        "torch_version": torch.__version__,
        "pretrained_cfg": pretrained,
    }
