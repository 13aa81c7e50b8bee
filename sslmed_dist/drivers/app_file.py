"""The Flower app as the file that Flower sends: packed from nothing but the app's own files, so that a checkout and a
wheel give the same bytes (with flwr 1.41, whose packing is deterministic)."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Run by a process of its own, because only the programs of ``server`` and ``clients`` import Flower.
PACK = """
import sys
from pathlib import Path
from flwr.cli.build import build_fab_from_disk
sys.stdout.buffer.write(build_fab_from_disk(Path(sys.argv[1])))
"""


def copy_app(app: Path, copy: Path) -> Path:
    """Copy the app's own files and no others into the new folder ``copy``; returns it."""
    for part in ("server", "clients"):
        shutil.copytree(app / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(app / "pyproject.toml", copy)
    return copy


def packed(copy: Path) -> bytes:
    """The app in a folder of ``copy_app`` as ``flwr run`` packs and sends it. ``RuntimeError`` where Flower cannot."""
    done = subprocess.run([sys.executable, "-c", PACK, str(copy)], cwd=copy.parent, capture_output=True)
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise RuntimeError(f"{copy}: Flower cannot pack this app: {said}")
    return done.stdout


def digest(app: Path, folder: Path | None = None) -> str:
    """The SHA-256 of the packed app, by which Flower knows it. It is copied into ``folder`` first, which is not kept
    where it is None."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="sslmed-app-") as temporary:
            return digest(app, Path(temporary))
    return hashlib.sha256(packed(copy_app(app, folder / "app"))).hexdigest()
