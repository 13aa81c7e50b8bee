"""The encoder as an ONNX graph, compared with torch before it is written."""

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sslmed_dist import outputs, randomness
from sslmed_dist.training.pretrained import Pretrained
from sslmed_dist.verbs.export.format import Exported, Format, require_library
from sslmed_dist.verbs.export.weight_files import PAPERS, as_json

TOLERANCE = 1e-4  # of the largest difference to torch, relative to the largest feature
IMAGES = (1, 3)  # of two batches that are compared: the number of images is free in the graph
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


class Normalised(nn.Module):
    """Images (N, C, size, size) in [0, 1] -> features (N, D): what the graph computes. Normalisation is part of it, so
    nobody can forget it."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """The encoder's features of normalised images."""
        features: Tensor = self.encoder((images - self.mean) / self.std)
        return features


class Onnx(Format):
    """``NAME.onnx``, ``NAME.json``, ``NAME.md``. The graph takes ``images``, float32 (N, C, size, size) in [0, 1], any
    N, and gives ``features`` (N, D). It is run by onnxruntime and refused where it differs from torch by more than
    ``TOLERANCE``; ``onnx_difference`` of the description says by how much it does."""

    suffix = ".onnx"

    @property
    def names(self) -> Mapping[str, outputs.Recogniser]:
        """Graph, description, card."""
        return {self.suffix: outputs.is_described, **PAPERS}

    def require(self, trained: Pretrained | None) -> None:
        """``ValueError`` where one of ``LIBRARIES`` is not installed."""
        for module in LIBRARIES:
            require_library("--format onnx", module, "onnx")

    def contents(self, what: Exported) -> Mapping[str, bytes]:
        """The three files."""
        scale, channels = what.facts["input"], what.facts["channels"]
        model = Normalised(what.trained.encoder, scale["mean"], scale["std"]).eval()
        graph = converted(model, channels, scale["size"])
        difference = compared(graph, model, channels, scale["size"])
        facts = {
            **what.facts,
            outputs.WEIGHTS: hashlib.sha256(graph).hexdigest(),
            "onnx_difference": difference,
            "onnx_input": f"images float32 (N, {channels}, {scale['size']}, {scale['size']}) in [0, 1], not normalised",
        }
        lines = [
            "import onnxruntime",
            f'session = onnxruntime.InferenceSession("{what.name}.onnx")',
            'features = session.run(None, {"images": images})[0]  # float32 (N, C, H, W) in [0, 1], not normalised',
        ]
        return {self.suffix: graph, ".json": as_json(facts), ".md": what.card(lines).encode()}


def example(count: int, channels: int, size: int) -> Tensor:
    """Images float32 (count, channels, size, size) in [0, 1], the same at every call."""
    pixels = torch.arange(channels * size * size)
    return randomness.uniform(0, torch.arange(count)[:, None], pixels[None]).view(count, channels, size, size).float()


def converted(model: nn.Module, channels: int, size: int) -> bytes:
    """The graph of ``model``. ``ValueError`` where torch cannot express it in ONNX."""
    images = example(2, channels, size)
    free = ({0: torch.export.Dim.DYNAMIC},)
    try:
        with quietly():
            program = torch.onnx.export(
                model, (images,), dynamo=True, dynamic_shapes=free, input_names=["images"], output_names=["features"],
                verbose=False,
            )  # fmt: skip
    except Exception as error:  # what the exporter meets, it raises in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"--format onnx: torch could not write this encoder as a graph: {reason}") from None
    assert program is not None
    proto = program.model_proto
    proto.producer_name = outputs.EXPORT
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        del node.metadata_props[:]  # stack traces with the paths of this machine
    return bytes(proto.SerializeToString())


def compared(graph: bytes, model: nn.Module, channels: int, size: int) -> float:
    """The largest difference of onnxruntime to torch, relative to the largest feature. ``ValueError`` above
    ``TOLERANCE``."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in IMAGES:
        images = example(count, channels, size)
        with torch.no_grad():
            expected = model(images).numpy()
        actual = session.run(None, {"images": images.numpy()})[0]
        worst = max(worst, float(np.abs(actual - expected).max() / max(float(np.abs(expected).max()), 1e-12)))
    if not worst <= TOLERANCE:
        raise ValueError(f"--format onnx: the graph differs from torch by {worst:.1e}; allowed: {TOLERANCE:g}")
    return worst


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the exporter's remarks on its own progress, which tell a user nothing."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
