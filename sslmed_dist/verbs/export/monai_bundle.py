"""A MONAI bundle that segments: one annotated scan in, masks for others out, by ``sslmed segment``'s own code.

MONAI's ``python -m monai.bundle run`` reads ``configs/inference.json``. It needs sslmed-dist installed beside MONAI,
which the metadata say: scans are read, resampled and searched by the tool, not by a second version of it.
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sslmed_dist import __version__, outputs
from sslmed_dist.training.pretrained import Pretrained
from sslmed_dist.verbs.export.format import Exported, Format, Json, require_library
from sslmed_dist.verbs.export.weight_files import as_json, packed

RUN = (
    "python -m monai.bundle run --config_file configs/inference.json --bundle_root . "
    "--support IMG --support_mask MASK --query IMG_OR_FOLDER --out DIR"
)
LIBRARIES = ("torch", "numpy", "monai", "nibabel", "scikit-image", "matplotlib", "safetensors")


class MonaiBundle(Format):
    """``configs/metadata.json``, ``configs/inference.json``, ``models/model.safetensors`` with ``models/model.json``,
    and ``docs/README.md``, the card. ``network_def`` of the inference is the encoder of feature maps, for programs that
    want it alone."""

    suffix = ""

    @property
    def names(self) -> Mapping[str, outputs.Recogniser]:
        """The five files."""
        return {
            "configs/metadata.json": outputs.is_description,
            "configs/inference.json": outputs.is_description,
            "models/model.safetensors": outputs.is_export,
            "models/model.json": outputs.is_description,
            "docs/README.md": outputs.is_card,
        }

    def require(self, trained: Pretrained | None) -> None:
        """``ValueError`` where safetensors is not installed, or the encoder cannot segment."""
        require_library("export", "safetensors", "report")
        if trained is None:
            return
        if not callable(getattr(trained.encoder, "maps", None)) or trained.settings.method["channels"] != 1:
            raise ValueError(
                f"--format monai: {trained.file.name}: this encoder does not segment; allowed: one with feature maps "
                "and 1 channel, such as that of the method cowpro"
            )
        if trained.settings.views.get("pixel_mm") is None:
            raise ValueError(
                f"--format monai: {trained.file.name}: does not say how large the pixels of its training slices were "
                "(views.pixel_mm), which a bundle has to; train again with this version"
            )

    def contents(self, what: Exported) -> Mapping[str, bytes]:
        """The five files."""
        return {
            "configs/metadata.json": as_json(metadata(what)),
            "configs/inference.json": as_json(inference(what)),
            "models/model.safetensors": packed(what),
            "models/model.json": as_json(what.facts),
            "docs/README.md": what.card(RUN.replace(" --", " \\\n        --").splitlines()).encode(),
        }


def metadata(what: Exported) -> Json:
    """``metadata.json`` with the fields that MONAI's specification of bundles asks for."""
    size, dim = what.facts["input"]["size"], what.facts["feature_dim"]
    image: Json = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR or CT",
        "num_channels": 1,
        "spatial_shape": [size] * 2,
    }
    maps = {"type": "feature", "format": "maps", "num_channels": dim, "spatial_shape": ["*", "*"]}
    found = installed(LIBRARIES)
    return {
        outputs.MARK: outputs.EXPORT,
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": __version__,
        "changelog": {__version__: "exported"},
        "monai_version": found.pop("monai", "unknown"),
        "pytorch_version": found.pop("torch", "unknown"),
        "numpy_version": found.pop("numpy", "unknown"),
        "required_packages_version": {"sslmed-dist": __version__, **found},
        "task": "one-shot segmentation: an organ shown on one scan is found on others",
        "description": f"A frozen encoder with a head of prototypes. {outputs.RESEARCH}",
        "authors": "not stated",
        "copyright": what.facts["licence"] or "not stated",
        "intended_use": outputs.RESEARCH,
        "network_data_format": {
            "inputs": {"image": {**image, "dtype": "float32", "value_range": [], "is_patch_data": False,
                                 "channel_def": {"0": "slice, mean 0 and deviation 1 over the volume"}}},
            "outputs": {"pred": {**maps, "dtype": "float32", "value_range": [], "is_patch_data": False,
                                 "channel_def": {"0": "features"}}},
        },
    }  # fmt: skip


def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of those packages that are installed here."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def inference(what: Exported) -> Json:
    """``inference.json``: the encoder (``network_def``) and the call that segments (``run``)."""
    arguments = "Path(@support), Path(@support_mask), Path(@query), Path(@out), device=@device, force=@force"
    weights = "Path(@bundle_root) / 'models' / 'model.safetensors'"
    tree: dict[str, Any] = {
        outputs.MARK: outputs.EXPORT,
        "imports": [
            "$from pathlib import Path",
            "$from sslmed_dist.training import pretrained",
            "$from sslmed_dist.verbs.segment import tool",
        ],
        "bundle_root": ".",
        "support": "support.nii.gz",
        "support_mask": "support_mask.nii.gz",
        "query": "query.nii.gz",
        "out": "masks",
        "device": "auto",
        "force": False,
        "network_def": f"$pretrained.load({weights}).encoder",
        "run": [f"$tool.segment({weights}, {arguments})"],
    }
    return tree
