"""Damaged and hostile files, drawn by seed: a reader succeeds, or says one line that names the file.

``SSLMED_FUZZ_CASES`` and ``SSLMED_FUZZ_SEED`` ask for more cases, or others.
"""

import gzip
import json
import os
import pickle
import random
import shutil
import warnings
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

CASES = int(os.environ.get("SSLMED_FUZZ_CASES", "400"))
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


def flip(data: bytes, draw: random.Random) -> bytes:
    """Some bits turned, most of them near the beginning, where headers are."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 2, 8, 64))):
        reach = len(changed) if draw.random() < 0.5 else min(len(changed), 400)
        changed[draw.randrange(reach)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def splice(data: bytes, draw: random.Random) -> bytes:
    """A part replaced by another part, by extreme numbers, or left out."""
    start = draw.randrange(min(len(data), draw.choice((64, 400, len(data)))))
    end = min(len(data), start + draw.choice((1, 2, 4, 8, 32)))
    other = draw.choice((b"", b"\xff" * (end - start), b"\0" * (end - start), b"\x7f\xff\xff\xff", data[:32]))
    return data[:start] + other + data[end:]


def foreign(data: bytes, draw: random.Random) -> bytes:
    """The content of another kind of file."""
    return draw.choice(
        (
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff\xe0",
            b"PK\x05\x06" + bytes(18),
            b"[]",
            b"\x80\x04N.",
            b"\xff\xfe,1\n",
        )
    )


def alter_text(data: bytes, draw: random.Random) -> bytes:
    """Lines doubled, left out, cells changed."""
    lines = data.decode("latin1").split("\n")
    at = draw.randrange(len(lines))
    cells = lines[at].split(",")
    cells[draw.randrange(len(cells))] = draw.choice(
        ("", "-1", "nan", "9" * 30, "../../x", "/etc/passwd", "a\0b", "²", '"', "0x1", "1e9", "[1]", "null", "\x1b[2J")
    )
    lines[at : at + 1] = draw.choice(([lines[at]] * 2, [], [",".join(cells)], ["", ",".join(cells)]))
    return "\n".join(lines).encode("latin1")


def alter_json(data: bytes, draw: random.Random) -> bytes:
    """One value of the document replaced by another, or left out."""
    content = json.loads(data)
    at = content
    for _ in range(draw.randrange(1, 4)):
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = draw.choice(keys)
        if not isinstance(at[key], dict | list) or draw.random() < 0.3:
            at[key] = draw.choice((None, -1, 2**70, 1e400, "x", "../x", [], {}, True, [None], 3.5))
            break
        at = at[key]
    return json.dumps(content).encode()


def alter_array(array: Any, draw: random.Random) -> Any:
    """An array of another type, shape or content."""
    values = np.asarray(array)
    numbers = values.dtype.kind in "biuf"
    changes: list[Callable[[], Any]] = [
        lambda: values[:1] if values.ndim else values[None],
        lambda: values[:0] if values.ndim else np.zeros(0),
        lambda: values[None],
        lambda: np.array([None, "x"], dtype=object),
        lambda: np.array("text"),
        lambda: np.array(7),
        lambda: np.zeros(values.shape, [("a", "u1"), ("b", "f4")]),
        lambda: np.full(values.shape, 2**40),
        lambda: np.full(values.shape, -3),
        lambda: np.full(values.shape, np.nan),
        lambda: np.full(values.shape, 300, np.uint64),
        lambda: values.astype("f2") if numbers else values[..., None],
        lambda: values.astype("c8") if numbers else values,
        lambda: np.zeros(values.shape, "M8[s]"),
    ]
    return draw.choice(changes)()


def alter_arrays(path: Path, draw: random.Random) -> None:
    """One array of an archive altered, left out or added."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    name = draw.choice(list(arrays))
    if draw.random() < 0.15:
        del arrays[name]
    elif arrays[name].dtype.kind == "U" and arrays[name].ndim == 0 and draw.random() < 0.7:
        text = arrays[name].item()
        altered = alter_json(text.encode(), draw).decode() if text.startswith("{") else text[:-3]
        arrays[name] = np.array(altered)
    else:
        arrays[name] = alter_array(arrays[name], draw)
    np.savez(path, **arrays)


def alter_pickle(data: bytes, draw: random.Random) -> bytes:
    """One value of the pickled dictionary altered."""
    content = pickle.loads(data)  # written by this test's own templates
    key = draw.choice(list(content))
    content[key] = draw.choice((None, [], {}, alter_array(content[key], draw), "x", [None] * 3, [[1], [2, 3]]))
    return pickle.dumps(content, protocol=draw.choice((2, 4, 5)))


def alter_header(path: Path, draw: random.Random) -> None:
    """One value of a DICOM file changed."""
    import pydicom

    header: Any = pydicom.dcmread(path)
    name = draw.choice(
        ("Rows", "Columns", "InstanceNumber", "PixelSpacing", "ImagePositionPatient", "BitsAllocated", "BitsStored")
        + ("ImageOrientationPatient", "RescaleSlope", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = draw.choice((0, 65535, "MONOCHROME1", [1, 2], ["1", "2", "3"], "", None, "x", "1e400", "nan", "-1"))
        try:
            setattr(header, name, value)
            header.save_as(path)
        except Exception:  # pydicom itself does not write such a value: the bytes are changed instead
            path.write_bytes(flip(path.read_bytes(), draw))


def mutate(path: Path, draw: random.Random) -> None:
    """Change one file, in a way that its kind has or in one that any has."""
    data, own = path.read_bytes(), draw.random() < 0.6
    if own and path.suffix == ".npz":
        alter_arrays(path, draw)
    elif own and path.suffix == ".npy":
        np.save(path, alter_array(np.load(path), draw))
    elif own and path.suffix == ".dcm":
        alter_header(path, draw)
    elif own and path.suffix == ".json":
        path.write_bytes(alter_json(data, draw))
    elif own and path.suffix in (".csv", ".txt"):
        path.write_bytes(alter_text(data, draw))
    elif own and "cifar" in str(path) and path.suffix in ("", ".meta") and data[:1] == b"\x80":
        path.write_bytes(alter_pickle(data, draw))
    elif data:
        path.write_bytes(draw.choice((flip, flip, splice, cut, foreign))(data, draw))


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
