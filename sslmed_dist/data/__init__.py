"""Datasets and their tables: what can be read (``DATASETS``), cut (``SUBSETS``) and dealt to sites (``PARTITIONS``)."""

from collections.abc import Callable

from torch import Tensor

from sslmed_dist.data.arrangements import arrangements as draw_arrangements
from sslmed_dist.data.batches import Batches
from sslmed_dist.data.dataset import ArrayDataset, Dataset, Subset, duplicates
from sslmed_dist.data.exams.abdominal import Abdominal
from sslmed_dist.data.exams.episodes import Episodes
from sslmed_dist.data.exams.exams import Exams
from sslmed_dist.data.exams.kneemri import KneeMRI
from sslmed_dist.data.exams.mrnet import MRNet
from sslmed_dist.data.images.flowers import flowers17
from sslmed_dist.data.images.folder import image_folder
from sslmed_dist.data.images.medical2d import medmnist
from sslmed_dist.data.images.medical_files import chaoyang, isic2016, mhist, mura
from sslmed_dist.data.images.natural import cifar10, cifar10_jpeg, cifar100
from sslmed_dist.data.images.packed import Packed
from sslmed_dist.data.images.stl10 import stl10
from sslmed_dist.data.images.synthetic import Synthetic
from sslmed_dist.data.images.wordnet import imagenet, tiny_imagenet
from sslmed_dist.data.partition import PARTITIONS, hold_out
from sslmed_dist.data.subsets import SUBSETS

DATASETS: dict[str, Callable[..., Dataset]] = {
    "abdominal": Abdominal,
    "chaoyang": chaoyang,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cifar10_jpeg": cifar10_jpeg,
    "episodes": Episodes,
    "exams": Exams,
    "flowers17": flowers17,
    "image_folder": image_folder,
    "imagenet": imagenet,
    "isic2016": isic2016,
    "kneemri": KneeMRI,
    "medmnist": medmnist,
    "mhist": mhist,
    "mrnet": MRNet,
    "mura": mura,
    "packed": Packed,
    "stl10": stl10,
    "synthetic": Synthetic,
    "tiny_imagenet": tiny_imagenet,
}

# What views may ask for by the name of an argument: it is made here, with the arguments that stand in the recipe under
# that name (``views.arrangements: {rule: setarr, classes: 500}``), because views do not import data.
SUPPLIES: dict[str, Callable[..., Tensor]] = {"arrangements": draw_arrangements}

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "SUPPLIES",
    "SUBSETS",
    "ArrayDataset",
    "Batches",
    "Dataset",
    "Subset",
    "duplicates",
    "hold_out",
]
