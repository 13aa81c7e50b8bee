"""The formats that ``sslmed export --format`` knows: one table, one leaf each."""

from collections.abc import Mapping

from sslmed_dist.verbs.export.format import Format
from sslmed_dist.verbs.export.hub_folder import HubFolder
from sslmed_dist.verbs.export.monai_bundle import MonaiBundle
from sslmed_dist.verbs.export.onnx_graph import Onnx
from sslmed_dist.verbs.export.weight_files import Safetensors, Torchvision

FORMATS: Mapping[str, Format] = {
    "safetensors": Safetensors(),
    "torchvision": Torchvision(),
    "timm": HubFolder(timm=True),
    "huggingface": HubFolder(),
    "onnx": Onnx(),
    "monai": MonaiBundle(),
}
