"""Damaged and hostile files, drawn by seed: a reader succeeds, or says one line that names the file.

``SSLMED_FUZZ_CASES`` and ``SSLMED_FUZZ_SEED`` ask for more cases, or others.
"""

import gzip
import os
import pickle
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslmed_dist.data import DATASETS
from sslmed_dist.data.check import inspect
from sslmed_dist.data.images.flowers import read_splits, write_matlab
from sslmed_dist.data.pack import pack, pack_any
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.data.scans.scan import read_scan
from tests.data.images.test_natural import write_cifar10, write_packed
from tests.data.mutations import mutate

CASES = int(os.environ.get("SSLMED_FUZZ_CASES", "500"))
SEED = int(os.environ.get("SSLMED_FUZZ_SEED", "1"))
SMALL = {"train": 10, "test": 10}
EXAMS = {"exams": 3, "size": 32, "slices": 8}
Read = Callable[[Path], object]


def dataset(name: str, **arguments: Any) -> Read:
    """Builds the dataset, fetches every sample, and inspects the folder."""

    def read(root: Path) -> None:
        made = DATASETS[name](str(root), split="all", **arguments)
        positions = torch.arange(min(len(made), 8))
        made.fetch(positions, seed=0, epoch=0, draw=torch.zeros_like(positions))

    return read


EPISODES = {"min_size": 24, "body_threshold": 20.0, "workers": 1, "cache": ""}
# what is read (the folder below the templates) and how
READERS: Mapping[str, Read] = {
    "image_folder": dataset("image_folder", size=16, workers=0),
    "sixteen": dataset("image_folder", size=16, channels=1, bits=16, workers=0),
    "shapes": dataset("medmnist"),
    "cifar10": dataset("cifar10"),
    "cifar100": dataset("cifar100"),
    "cifar10_jpeg": dataset("cifar10_jpeg"),
    "stl10": dataset("stl10"),
    "tiny_imagenet": dataset("tiny_imagenet", size=16, workers=0),
    "imagenet": dataset("imagenet", size=16, workers=0),
    "mura": dataset("mura", size=16, workers=0),
    "chaoyang": dataset("chaoyang", size=16, workers=0),
    "isic2016": dataset("isic2016", size=16, workers=0),
    "mhist": dataset("mhist", size=16, workers=0),
    "raw": dataset("packed", workers=0),
    "jpeg": dataset("packed", workers=0),
    "knee": dataset("mrnet"),
    "abdomen": dataset("abdominal", size=16),
    "nifti": dataset("abdominal", size=16),
    "episodes": dataset("episodes", **EPISODES),
    "packed_episodes": lambda root: dataset("episodes", size=16, **EPISODES)(root / "set.npz"),
    "series": read_scan,
    "matlab": lambda root: read_splits(root, 1, 40),
}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small valid set of every kind."""
    root = tmp_path_factory.mktemp("templates")
    rng = np.random.default_rng(0)
    formats = {"image_folder": [("png", np.uint8), ("jpg", np.uint8), ("tif", np.uint8), ("bmp", np.uint8)]}
    formats["sixteen"] = [("png", np.uint16), ("tif", np.uint16), ("png", np.uint8)]
    for name, kinds in formats.items():
        for number, (suffix, kind) in enumerate(kinds):
            folder = root / name / f"class {number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, np.iinfo(kind).max, (20, 24), kind)
            Image.fromarray(pixels).save(folder / f"{number}.{suffix}")
    PHANTOMS["shapes"](root / "shapes", train=6, val=3, test=3)
    write_cifar(root)
    for kind in ("stl10", "tiny_imagenet", "imagenet", "mura", "chaoyang", "isic2016", "mhist"):
        PHANTOMS[kind](root / kind, **SMALL)
    PHANTOMS["knee"](root / "knee", train=2, valid=1)
    PHANTOMS["abdomen"](root / "abdomen", **EXAMS)
    shutil.copytree(root / "abdomen", root / "episodes")
    (root / "nifti").mkdir()
    for path in (root / "abdomen").glob("*.nii.gz"):
        (root / "nifti" / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    (root / "packed_episodes").mkdir()
    leaf = {"name": "episodes", "root": str(root / "abdomen"), **{k: v for k, v in EPISODES.items() if k != "workers"}}
    pack_any(leaf, root / "packed_episodes" / "set.npz", workers=1, note=lambda line: None)
    for form in ("raw", "jpeg"):
        leaf = {"name": "image_folder", "root": str(root / "image_folder")}
        pack(leaf, root / form, form=form, short=16, rows=2)
    PHANTOMS["chaos"](root / "chaos", **(EXAMS | {"exams": 1}))
    shutil.copytree(root / "chaos" / "1" / "T2SPIR" / "DICOM_anon", root / "series")
    (root / "matlab").mkdir()
    order = np.arange(1, 41)
    write_matlab(root / "matlab" / "datasplits.mat", {"trn1": order[:20], "val1": order[20:30], "tst1": order[30:]})
    return root


def write_cifar(root: Path) -> None:
    """CIFAR-10 and -100 of a few images, and CIFAR-10 as JPEG."""
    for name in ("cifar10", "cifar100", "cifar10_jpeg"):
        (root / name).mkdir()
    write_cifar10(root / "cifar10")
    write_packed(root / "cifar10_jpeg" / "set.npz")
    folder = root / "cifar100" / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        content = {"data": np.zeros((3, 3072), np.uint8), "fine_labels": [0, 1, 2]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a", "b", "c"]}))


def judge(read: Read, root: Path, where: str, file: Path) -> tuple[list[str], bool]:
    """(what is wrong with how a reader answered, whether it read the file): nothing is wrong with success, nor with one
    line that names what was read."""
    try:
        answer = read(root)
    except ValueError as error:
        line = str(error)
        if type(error) is not ValueError:
            return [f"{where}: {type(error).__name__}: {line[:200]}"], False
        if "\n" in line or not line.isprintable():
            return [f"{where}: not one line: {line[:300]!r}"], False
        if str(root) not in line and file.name not in line:
            return [f"{where}: names no file: {line[:300]!r}"], False
        return [], False
    except Exception as error:  # what this test is for
        return [f"{where}: {type(error).__name__}: {str(error)[:200]}"], False
    lines = [line for part in answer for line in part] if isinstance(answer, tuple) else []
    bad = [line for line in lines if not line.isprintable()]
    return ([f"{where}: reports {bad[0]!r}"] if bad else []), True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_reader_answers_damage_in_one_line(templates: Path, tmp_path: Path) -> None:
    draw, faults, refused = random.Random(SEED), list[str](), 0
    kinds = sorted(READERS)
    for kind in kinds:
        READERS[kind](templates / kind)  # undamaged, every set is read
    for case in range(CASES):
        kind = kinds[case % len(kinds)]
        root = shutil.copytree(templates / kind, tmp_path / str(case) / kind)
        files = sorted(p for p in root.rglob("*") if p.is_file() and p.name != "phantom.json" and p.stat().st_size)
        lists = [p for p in files if p.suffix in (".csv", ".txt", ".json", ".meta")]
        file = draw.choice(lists if lists and draw.random() < 0.4 else files)
        mutate(file, draw)
        where = f"seed {SEED}, case {case}, {file.relative_to(root.parent)}"
        fault, answered = judge(READERS[kind], root, where, file)
        faults, refused = faults + fault, refused + (not answered)
        if kind not in ("series", "matlab"):
            faults += judge(inspect, root, f"{where}, data check", file)[0]
        shutil.rmtree(root.parent)
    assert refused > CASES // 4  # else the files were hardly damaged
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)
