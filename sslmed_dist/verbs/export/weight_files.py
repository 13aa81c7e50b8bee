"""Weights in one file, with a description and a card beside it: safetensors, and torch's own for torchvision."""

import hashlib
import io
import json
from collections.abc import Mapping

import torch

from sslmed_dist import outputs
from sslmed_dist.training.pretrained import Pretrained
from sslmed_dist.verbs.export.elsewhere import as_torchvision
from sslmed_dist.verbs.export.format import Exported, Format, Json, require_library

PAPERS: Mapping[str, outputs.Recogniser] = {".json": outputs.is_description, ".md": outputs.is_card}


def as_json(tree: Json) -> bytes:
    """JSON as a file holds it."""
    return (json.dumps(tree, indent=1) + "\n").encode()


def packed(what: Exported) -> bytes:
    """The encoder's tensors as safetensors, with the mark of an export."""
    from safetensors.torch import save

    return bytes(save(what.tensors(), metadata={"format": "pt", outputs.MARK: outputs.EXPORT}))


class Safetensors(Format):
    """``NAME.safetensors``, ``NAME.json`` and the model card ``NAME.md``.

    The tensors bear torchvision's ResNet names without a prefix. Those of a dilated encoder bear DeepLabV3's names,
    beginning with ``backbone.``, and one of its own, ``project.weight``. The files are read back by ``weights``,
    ``run.start_from``, ``embed``, ``segment`` and ``sd.load_encoder``.
    """

    suffix = ".safetensors"

    @property
    def names(self) -> Mapping[str, outputs.Recogniser]:
        """Weights, description, card."""
        return {self.suffix: outputs.is_export, **PAPERS}

    def require(self, trained: Pretrained | None) -> None:
        """``ValueError`` where safetensors is not installed."""
        require_library("export", "safetensors", "report")

    def contents(self, what: Exported) -> Mapping[str, bytes]:
        """The three files."""
        lines = ["import sslmed_dist as sd", f'encoder = sd.load_encoder("{what.name}{self.suffix}")']
        return {self.suffix: packed(what), ".json": as_json(what.facts), ".md": what.card(lines).encode()}


class Torchvision(Format):
    """``NAME.pth`` that ``torchvision.models.resnetN`` loads strictly once its ``fc`` is the identity, ``NAME.json``,
    ``NAME.md``. The description holds the SHA-256 of the weights, by which they are known again."""

    suffix = ".pth"

    @property
    def names(self) -> Mapping[str, outputs.Recogniser]:
        """Weights, description, card."""
        return {self.suffix: outputs.is_described, **PAPERS}

    def require(self, trained: Pretrained | None) -> None:
        """``ValueError`` for an encoder that torchvision has not."""
        if trained is not None and as_torchvision(trained) is None:
            raise ValueError(
                f"--format torchvision: torchvision has no such network as {dict(trained.settings.method['encoder'])}; "
                "allowed: resnet of depth 18, 34, 50, 101 or 152, width 64 and stem imagenet; others: --format onnx"
            )

    def contents(self, what: Exported) -> Mapping[str, bytes]:
        """The three files."""
        network = as_torchvision(what.trained)
        assert network is not None
        stream = io.BytesIO()
        torch.save(what.tensors(), stream)
        weights = stream.getvalue()
        facts = {**what.facts, outputs.WEIGHTS: hashlib.sha256(weights).hexdigest()}
        lines = ["import torch, torchvision", f"network = torchvision.models.{network.name}()"]
        if network.channels != 3:
            lines += [f"network.conv1 = torch.nn.Conv2d({network.channels}, 64, 7, 2, 3, bias=False)"]
        lines += ["network.fc = torch.nn.Identity()", f'network.load_state_dict(torch.load("{what.name}.pth"))']
        return {self.suffix: weights, ".json": as_json(facts), ".md": what.card(lines).encode()}
