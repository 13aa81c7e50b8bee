"""``sslmed bundle``: one folder from which a machine without a network installs this program and an encoder.

It holds wheels (this program's and those that it needs, in the versions installed here), the exported encoder, the
pages of documentation, ``install.sh`` and ``SHA256SUMS``. torch and what it needs are left out: they are large, and
differ from machine to machine.
"""

import importlib.metadata as metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sslmed_dist import installation
from sslmed_dist.atomic_files import appearing, sha256
from sslmed_dist.printable import note, said_lines
from sslmed_dist.verbs.export.tool import export_encoder, require_new

OWN = "sslmed-dist"
SETUPTOOLS = 77  # the first that reads this pyproject.toml
OF_THE_MACHINE = ("torch", "torchvision")
READER = "safetensors"  # of an exported encoder
SCRIPT = """#!/bin/sh
# Checks every file of this folder, then installs from it alone. PYTHON: of an environment that has torch {torch} and
# torchvision {torchvision}; made with Python {python}.
set -eu
cd "$(dirname "$0")"
sha256sum --quiet -c SHA256SUMS
exec "${{PYTHON:-python3}}" -m pip install --no-index --find-links wheels {requirements}
"""


def canonical(name: str) -> str:
    """A package's name as the registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: Collection[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """(package, its extras) of everything that an installed package asks for on this machine."""
    from packaging.requirements import Requirement

    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonical(requirement.name), frozenset(requirement.extras)


def closure(name: str, extras: Collection[str] = (), without: Collection[str] = ()) -> set[str]:
    """Names of all packages that ``name`` needs, and those that these need, as they are installed here; not those of
    ``without``, nor what only they need. ``ValueError`` naming one that is not installed."""
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(canonical(name), frozenset(extras))]
    while todo:
        one, asked = todo.pop()
        if (one, asked) in seen or one in without:
            continue
        seen.add((one, asked))
        found.add(one)
        try:
            todo += needed(one, asked)
        except metadata.PackageNotFoundError:
            raise ValueError(
                f"bundle: {one} is not installed here, so its version is not known; pip install {one}"
            ) from None
    return found - {canonical(name)}


def of_the_machine() -> set[str]:
    """torch, torchvision and what they need, but for numpy, which this program needs itself."""
    return set().union(*({name} | closure(name) for name in OF_THE_MACHINE)) - {"numpy"}


def third_party(extras: Sequence[str], also: Sequence[str] = ()) -> list[str]:
    """``NAME==VERSION`` of the wheels that a machine with torch still needs, and of the packages ``also``."""
    names = closure(OWN, extras, without=of_the_machine()) | set(also)
    return [f"{name}=={metadata.version(name)}" for name in sorted(names)]


def bundle(out: Path, *, model: Path | None = None, which: str = "last", extras: Sequence[str] = ("report",)) -> Path:
    """Write the bundle as a whole to the new folder ``out``. ``model``: a run or checkpoint whose encoder goes with it.
    Returns ``install.sh``.

    ``ValueError``: not called from a checkout, an extra that is not there or not installed, wheels that the registry
    does not give, a model that cannot be exported, or something at ``out``.
    """
    if importlib.util.find_spec("packaging") is None:
        raise ValueError("bundle needs packaging: pip install packaging")
    if int(metadata.version("setuptools").split(".")[0]) < SETUPTOOLS:
        raise ValueError(f"bundle needs setuptools >= {SETUPTOOLS} here: pip install 'sslmed-dist[dev]'")
    root = installation.root()
    if not (root / "setup.py").is_file():
        raise ValueError("bundle: builds its own wheel from a checkout of the project; call it from one")
    unknown = sorted(set(extras) - set(metadata.metadata(OWN).get_all("Provides-Extra") or ()))
    if unknown:
        raise ValueError(f"--extras: {unknown[0]}: unknown; allowed: those of pyproject.toml")
    require_new(out)
    also = [] if model is None else [READER]
    packages = third_party(extras, also)
    with appearing(out) as folder:
        wheels = folder / "wheels"
        own_wheel(root, wheels)
        pip(["download", "--no-deps", "--only-binary", ":all:", "--dest", str(wheels), *packages])
        if model is not None:
            export_encoder(model, folder / "encoder" / "encoder", which)
        pages = [root / "README.md", *sorted((root / "docs").glob("*.md")), *sorted((root / "docs").glob("*.svg"))]
        for page in pages:
            target = folder / page.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, target)
        (folder / "install.sh").write_text(script(extras, also))
        (folder / "install.sh").chmod(0o755)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sums = "".join(f"{sha256(path)}  {path.relative_to(folder)}\n" for path in files)
        (folder / "SHA256SUMS").write_text(sums)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    note(
        f"{len(packages) + 1} wheels, {size / 2**20:.0f} MiB; left out: {', '.join(OF_THE_MACHINE)} and what they need"
    )
    return out / "install.sh"


def script(extras: Sequence[str], also: Sequence[str]) -> str:
    """``install.sh``."""
    versions = {name: metadata.version(name) for name in OF_THE_MACHINE}
    asked = f"[{','.join(extras)}]" if extras else ""
    requirements = " ".join([f"'{OWN}{asked}'", *also])
    return SCRIPT.format(**versions, python="{}.{}".format(*sys.version_info[:2]), requirements=requirements)


def own_wheel(root: Path, wheels: Path) -> None:
    """Build this program's wheel from a copy, so that the checkout keeps no ``build`` folder."""
    with tempfile.TemporaryDirectory() as copy:
        for name in ("sslmed_dist", "server", "clients", "configs"):
            shutil.copytree(root / name, Path(copy) / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            shutil.copyfile(root / name, Path(copy) / name)
        pip(["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), copy])


def pip(words: Sequence[str]) -> None:
    """Call pip of this environment. ``ValueError`` with its last line where it fails."""
    command = [sys.executable, "-m", "pip", words[0], "--quiet", "--disable-pip-version-check", *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = said_lines(done.stderr, "it said nothing")
        telling = [line for line in lines if "error:" in line.lower()] or lines
        raise ValueError(f"bundle: pip {words[0]} failed: {telling[0][:200]}")
