"""Exams that no run has seen, as the data of a part: the slices in the layout that the part was trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslmed_dist import registry
from sslmed_dist.config import Config
from sslmed_dist.data import DATASETS
from sslmed_dist.data.dataset import Dataset
from sslmed_dist.data.exams.exam_dataset import ExamDataset, NoSeries, exams_of
from sslmed_dist.data.exams.exam_files import by_study, files_below, folders_of
from sslmed_dist.data.exams.mrnet import open_stack

ENDING = ".npy"


class StackedExams(ExamDataset):
    """Unlabelled exams in files like MRNet's, uint8 (S, 256, 256) each, of one plane; ids are 0, 1, ... in the order of
    the files."""

    def __init__(self, files: Sequence[Path], names: Sequence[str], plane: str) -> None:
        """``ValueError`` naming a file that cannot be read or holds something else."""
        self.files = list(files)
        counts = torch.tensor([len(open_stack(path)) for path in self.files])
        ids = torch.arange(len(self.files))
        records = [{"exam": name} for name in names]
        facts: dict[str, Any] = {"name": plane, "labels": torch.full((len(ids),), -1), "classes": (), "channels": 1}
        super().__init__(counts=counts, ids=ids, records=records, **facts)

    def slices(self, position: int, numbers: Tensor) -> Tensor:
        return torch.from_numpy(open_stack(self.files[position])[numbers.numpy()]).unsqueeze(1)

    def value_range(self) -> tuple[float, float]:
        return (0.0, 255.0)


def names_of_studies(folder: Path) -> dict[str, str]:
    """What each study of ``folder`` is called: by its folder below it, where it is the only one by the name of
    ``folder``. Studies of one folder are told apart by a number, in the order of their UIDs."""
    studies = by_study(files_below(folder), folder)
    places = folders_of(studies, folder) if len(studies) > 1 else dict.fromkeys(studies, ".")
    shared: dict[str, list[str]] = {}
    for study, place in places.items():
        shared.setdefault(place, []).append(study)
    names: dict[str, str] = {}
    for place, those in shared.items():
        name = folder.resolve().name if place == "." else place
        names |= {study: f"{name}, study {k}" if len(those) > 1 else name for k, study in enumerate(those, start=1)}
    return names


def shown_names(folder: Path, names: Sequence[str], anonymous: bool) -> dict[str, str]:
    """What each of the exams ``names`` of ``folder`` is called in what is written of it, in that order. An exam that
    its data call by its StudyInstanceUID is named by its folder. ``anonymous``: by its place in the order."""
    folders = names_of_studies(folder)
    called = dict(sorted(((name, folders.get(name, name)) for name in names), key=lambda pair: pair[1]))
    return {name: f"exam {number}" for number, name in enumerate(called, start=1)} if anonymous else called


# What says where the training exams and their table lie, and which are trained on: nothing about how an exam is read.
TRAINING = ("root", "labels", "subset", "oversample", "val_fraction", "test_fraction", "experts")


def read_exams(folder: Path, settings: Config, reading: Mapping[str, Any]) -> Dataset | None:
    """The exams in ``folder`` that have what the part of these ``settings`` looks at; None where there is none.

    A part that was trained on MRNet's layout takes ``PLANE.npy`` (one exam) or ``PLANE/NAME.npy`` (the exams NAME). Any
    other is read by its own dataset with the folder as its root, prepared as the training exams were: ``reading`` are
    the arguments that say how. ``ValueError`` for what cannot be read."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder of exams")
    if settings.data["name"] != "mrnet":
        leaf = {key: value for key, value in settings.data.items() if key not in TRAINING}
        try:
            dataset: Dataset = registry.build(DATASETS, {**leaf, **reading, "root": str(folder)}, "data", split="all")
        except NoSeries:
            return None
        exams_of(dataset)
        return dataset
    plane = str(settings.data.get("plane", "sagittal"))
    alone, several = folder / f"{plane}{ENDING}", sorted((folder / plane).glob(f"*{ENDING}"))
    if alone.is_file():
        return StackedExams([alone], [folder.name], plane)
    return StackedExams(several, [path.stem for path in several], plane) if several else None
