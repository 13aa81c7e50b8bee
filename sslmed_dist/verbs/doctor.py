"""``sslmed doctor``: what this machine has, and what will not work on it."""

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from sslmed_dist import __version__

# All that a user may want to install, with a package of each by which it is known.
EXTRAS = {
    "ray": ("ray", "ray"),
    "flower": ("flwr", "flwr"),
    "medical": ("nibabel", "nibabel"),
    "site": ("cryptography", "cryptography"),
    "dicom": ("highdicom", "highdicom"),
    "report": ("matplotlib", "matplotlib"),
    "cloud": ("s3fs", "s3fs"),  # fsspec comes with torch
    "timm": ("timm", "timm"),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "wandb": ("wandb", "wandb"),
    "onnx": ("onnxscript", "onnxscript"),
    "completion": ("argcomplete", "argcomplete"),
}
DISK, SHARED_MEMORY = 2 * 2**30, 64 * 2**20


def examine() -> tuple[list[str], list[str]]:
    """(what this machine has, what will not work on it), one line each."""
    import torch

    lines = [f"sslmed-dist {__version__}, Python {sys.version.split()[0]}, torch {torch.__version__}"]
    problems = []
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        problems.append(f"Python {sys.version.split()[0]}: 3.11 and 3.12 are supported")
    cores = len(os.sched_getaffinity(0))
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none that torch sees"
    lines.append(f"{cores} cores, GPU: {gpu}")
    problems += vision()
    for extra, (module, package) in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            lines.append(f"extra {extra}: not installed (pip install 'sslmed-dist[{extra}]')")
        else:
            lines.append(f"extra {extra}: {package} {importlib.metadata.version(package)}")
    free = shutil.disk_usage(Path.cwd()).free
    lines.append(f"free disk here: {free / 2**30:.1f} GiB")
    if free < DISK:
        problems.append(f"only {free / 2**30:.1f} GiB of disk free here; a run wants at least {DISK / 2**30:.0f}")
    problems += shared_memory() + writable() + loopback()
    return lines, problems


def vision() -> list[str]:
    """torchvision must fit torch: a mismatched pair fails at import with a message about ``torchvision::nms``."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        return [f"torchvision does not fit torch ({str(error).splitlines()[0]}); install a matched pair"]
    return []


def shared_memory() -> list[str]:
    """Ray keeps objects in /dev/shm; containers often give 64 MiB."""
    path = Path("/dev/shm")
    if path.is_dir() and shutil.disk_usage(path).total <= SHARED_MEMORY:
        return ["/dev/shm has 64 MiB or less; give the container more (--shm-size=8g) before using Ray"]
    return []


def writable() -> list[str]:
    """A temporary folder is needed by Ray and Flower."""
    try:
        with tempfile.TemporaryFile():
            return []
    except OSError as error:
        return [f"no temporary folder can be written: {error.strerror}"]


def loopback() -> list[str]:
    """A port on the loopback interface can be opened."""
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return []
    except OSError as error:
        return [f"no port on 127.0.0.1 can be opened: {error.strerror}"]
