"""Datasets and their tables: what can be read (``DATASETS``), cut (``SUBSETS``) and dealt to sites (``PARTITIONS``)."""

from collections.abc import Callable

from sslmed_dist.data.abdominal import Abdominal
from sslmed_dist.data.batches import Batches
from sslmed_dist.data.dataset import ArrayDataset, Dataset, Subset, duplicates
from sslmed_dist.data.folder import ImageFolder
from sslmed_dist.data.medical2d import medmnist
from sslmed_dist.data.mrnet import MRNet
from sslmed_dist.data.natural import cifar10, cifar10_jpeg, cifar100
from sslmed_dist.data.partition import PARTITIONS, hold_out
from sslmed_dist.data.subsets import SUBSETS

DATASETS: dict[str, Callable[..., Dataset]] = {
    "abdominal": Abdominal,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cifar10_jpeg": cifar10_jpeg,
    "image_folder": ImageFolder,
    "medmnist": medmnist,
    "mrnet": MRNet,
}

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "SUBSETS",
    "ArrayDataset",
    "Batches",
    "Dataset",
    "Subset",
    "duplicates",
    "hold_out",
]
