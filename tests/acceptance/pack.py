"""``make gpu-pack DATA=FOLDER``: the data of the GPU acceptance in one small folder, checked.

    python -m tests.acceptance.pack SOURCE OUT

SOURCE holds ``cifar10-jpeg.npz`` and ``chaos-t2spir/`` (image_PP.nii.gz, label_PP.nii.gz), and perhaps ``weights/``
with a file of a ResNet's weights. OUT gets

    cifar10-jpeg.npz        as it is
    cifar10-jpeg-5k1k.npz   its first 5,000 training and 1,000 test images: what the CPU's figures were measured on
    episodes.npz            all exams with superpixels (``sslmed data pack episodes``), compressed by LZMA
    weights.pt, .json       the first file of weights that fits a ResNet or DeepLabV3 of torchvision, and its encoder

Every file is read back. With the tracked files of the source tree all of it stays below 60 MB. Says what is missing;
exit code 2 where a part of the acceptance could then not run.
"""

import argparse
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from sslmed_dist import registry, weights
from sslmed_dist.atomic_files import write_atomically, writing
from sslmed_dist.data import DATASETS
from sslmed_dist.data.dataset import Split
from sslmed_dist.data.exams.exam_archive import pack_episodes
from sslmed_dist.data.images.natural import read_packed
from sslmed_dist.models import ENCODERS
from sslmed_dist.printable import say

CIFAR, CIFAR_SMALL, EPISODES = "cifar10-jpeg.npz", "cifar10-jpeg-5k1k.npz", "episodes.npz"
WEIGHTS, DESCRIPTION = "weights.pt", "weights.json"
EXAMS, NETWORKS = "chaos-t2spir", "weights"  # folders of the source
CODES: tuple[Split, ...] = ("train", "test")  # what 0 and 1 in the file stand for
SMALL: Mapping[Split, int] = {"train": 5000, "test": 1000}  # images
MOST = 60_000_000  # bytes, source tree included
ROOT = Path(__file__).parents[2]
DEPTHS = (101, 50, 34, 18)


def pack(source: Path, out: Path) -> list[str]:
    """Write and check everything; returns what is missing, in words. ``ValueError``: no such source, a damaged file,
    too much in all, or an ``out`` that is no folder for it alone."""
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder; give DATA=FOLDER with {CIFAR} and {EXAMS}/")
    require_own(out, source)
    missing = []
    if (source / CIFAR).is_file():
        write_atomically(out / CIFAR, (source / CIFAR).read_bytes())
        write_small(out / CIFAR, out / CIFAR_SMALL)
    else:
        missing.append(f"{CIFAR}: not in {source}; without it no speed and no learning on CIFAR-10 is measured")
    if (source / EXAMS).is_dir():
        write_episodes(source / EXAMS, out / EPISODES)
    else:
        missing.append(f"{EPISODES}: no {EXAMS}/ in {source}; without it CoWPro is not trained")
    if len(missing) == 2 and not any(out.iterdir()):
        out.rmdir()  # nothing was found: no empty folder stays behind
        raise ValueError("; ".join(missing))
    check(out)
    return missing + write_weights(source / NETWORKS, out)


def require_own(out: Path, source: Path) -> None:
    """Make the folder ``out``. ``ValueError`` where that cannot be, or it holds something else than an earlier pack,
    the data itself, say."""
    place, taken = out.resolve(), [folder.resolve() for folder in (source / EXAMS, source / NETWORKS)]
    if place == source.resolve() or any(folder in (place, *place.parents) for folder in taken):
        raise ValueError(f"{out}: is a folder of the data in {source}; give another PACK=FOLDER")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out}: cannot be a folder for the pack: {error.strerror}") from None
    ours = {CIFAR, CIFAR_SMALL, EPISODES, WEIGHTS, DESCRIPTION}
    other = sorted(path.name for path in out.iterdir() if path.name not in ours or not path.is_file())
    if other:
        raise ValueError(f"{out}: holds {other[0]}, which is of no pack; give an empty or new PACK=FOLDER")


def write_small(whole: Path, small: Path, sizes: Mapping[Split, int] = SMALL) -> None:
    """The first images of both splits; classes take turns in the file, so they are balanced."""
    arrays = read_packed(whole)
    rows = np.concatenate([np.flatnonzero(arrays["split"] == code)[: sizes[split]] for code, split in enumerate(CODES)])
    files = [arrays["jpeg"][arrays["offsets"][row] : arrays["offsets"][row + 1]] for row in rows]
    kept = {key: arrays[key][rows] for key in ("labels", "split")} | {"class_names": arrays["class_names"]}
    with writing(small) as file:
        offsets = np.cumsum([0, *map(len, files)])
        np.savez_compressed(file, jpeg=np.concatenate(files), offsets=offsets, **kept)


def write_episodes(exams: Path, out: Path) -> None:
    """The packed exams, their arrays compressed by LZMA: a sixth less than deflated, and numpy reads them all the
    same."""
    deflated = out.with_name("deflated.npz")
    try:
        pack_episodes(exams, deflated, note=say, force=True)
        with (
            zipfile.ZipFile(deflated) as archive,
            writing(out) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as smaller,
        ):
            for member in archive.infolist():
                smaller.writestr(member.filename, archive.read(member))
    finally:
        deflated.unlink(missing_ok=True)


def write_weights(folder: Path, out: Path) -> list[str]:
    """The first file of weights that is a ResNet's, as torch saves it; returns why there is none."""
    reasons = []
    for file in sorted(path for path in folder.glob("*") if path.is_file()):
        tensors = weights.read(file, file.name)
        for depth in DEPTHS:
            leaf = {"name": "resnet", "depth": depth}
            expected = registry.build(ENCODERS, leaf, "encoder", channels=3).state_dict()
            try:
                found = weights.find(tensors, expected, file.name)
            except ValueError:
                continue
            with writing(out / WEIGHTS) as stream:
                torch.save(found.state, stream)
            encoder = {"name": "dilated_resnet", "depth": depth, "out": 256}
            description = json.dumps({"encoder": encoder, "source": file.name}) + "\n"
            write_atomically(out / DESCRIPTION, description.encode())
            if tree_size() + size(out) > MOST:
                for written in (WEIGHTS, DESCRIPTION):
                    (out / written).unlink()
                return [f"{WEIGHTS}: {file.name} would make more than {MOST:,} bytes; left out"]
            return []
        reasons.append(f"{file.name} is none of ResNet-{', '.join(map(str, DEPTHS))} under torchvision's names")
    return [f"{WEIGHTS}: {'; '.join(reasons) or f'no file in {NETWORKS}/'}; CoWPro is trained from random weights only"]


def check(out: Path) -> None:
    """Read every file back as the parts read it. ``ValueError`` names one that cannot be read, or the sizes where they
    are too large together."""
    for name in (CIFAR, CIFAR_SMALL):
        if (out / name).is_file():
            for split in ("train", "test"):
                data = DATASETS["cifar10_jpeg"](root=str(out / name), split=split)
                say(f"{name}, {split}: {len(data)} images")
    if (out / EPISODES).is_file():
        for split in ("train", "test"):
            for masks in ("superpixels", "organs"):
                data = DATASETS["episodes"](root=str(out / EPISODES), fold=0, split=split, masks=masks)
                say(f"{EPISODES}, fold 0, {split}, {masks}: {len(data)} slices")
    if tree_size() + size(out) > MOST:
        files = ", ".join(f"{path.name} {path.stat().st_size:,}" for path in sorted(out.iterdir()))
        raise ValueError(f"{out}: {files} and the source tree {tree_size():,} bytes: more than {MOST:,} in all")


def size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def tree_size() -> int:
    """Bytes of the source tree: its tracked files, or, where git does not know, the package, its tests and recipes."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        files = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        files = [path for part in ("sslmed_dist", "tests", "configs", "docs") for path in (ROOT / part).rglob("*")]
    return sum(path.stat().st_size for path in files if path.is_file() and "__pycache__" not in path.parts)


def main(given: Sequence[str] | None = None) -> int:
    """Parse, pack, and say what there is; returns the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("source", type=Path)
    arguments.add_argument("out", type=Path)
    options = arguments.parse_args(given)
    try:
        missing = pack(options.source, options.out)
    except ValueError as error:
        say(str(error))
        return 2
    for line in missing:
        say(f"missing: {line}")
    for path in sorted(options.out.iterdir()):
        print(f"{path.stat().st_size:12,}  {path.name}")
    print(f"{tree_size():12,}  source tree\n{tree_size() + size(options.out):12,}  in all; at most {MOST:,}")
    return 2 if any(not line.startswith(WEIGHTS) for line in missing) else 0


if __name__ == "__main__":
    sys.exit(main())
