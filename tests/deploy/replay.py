"""The steps of ``deploy/cluster/Dockerfile`` without Docker: in a clean folder, by a Python that has nothing installed.

    python -m tests.deploy.replay --python /usr/bin/python3.12 [--into FOLDER]

What the first stage copies is copied, and its RUN lines are run as they stand, but for the paths ``/opt/sslmed``,
``/wheels`` and ``/source``, which lie in the folder. Of the second stage the variables of ENV are set; then the
installed program says its version, looks at the machine, and trains ``smoke/moco_v2`` by two Ray workers on phantoms
that it has made, away from the checkout. The base image, its user and ``COPY --from`` are not replayed. It downloads
about 3 GB (CUDA's libraries come with torch) and needs 6 GB of disk, so it is no test of ``make test``. It needs Linux
x86_64, Python 3.12 and a package registry.
Each command and how long it took is printed; the exit code is 1 at the first that fails.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "cluster" / "Dockerfile"
CHECKS = (
    "sslmed --help > /dev/null",
    "sslmed doctor",
    "sslmed data phantom shapes phantom",
    "sslmed train moco_v2 data.root=phantom/shapes.npz run.dir=runs driver=ray ray.num_workers=2",
    "python -c 'import ray, torch; print(ray.__version__, torch.__version__, torch.version.cuda)'",
)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(word, rest) of a Dockerfile, comments left out and continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        yield word, rest.strip()


def stages(text: str) -> list[list[tuple[str, str]]]:
    """The instructions of each stage, what stands before the first FROM left out."""
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions(text):
        if word == "FROM":
            found.append([])
        elif found:
            found[-1].append((word, rest))
    return found


def steps(folder: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The shell commands of the first stage and then ``CHECKS``, each with what its environment has besides. Files are
    copied on the way."""
    first, second = stages(DOCKERFILE.read_text())
    here = {"/opt/sslmed": "venv", "/wheels": "wheels", "/source": "source"}
    arguments: dict[str, str] = {}
    for word, rest in first:
        if word == "ARG" and "=" in rest:
            arguments |= [rest.split("=", 1)]  # type: ignore[arg-type]
        elif word == "COPY":
            *sources, target = shlex.split(rest)
            for source in sources:
                place = folder / "source" / (Path(source).name if target.endswith("/") else target)
                copy(ROOT / source, place)
        elif word == "RUN":
            for path, name in here.items():
                rest = rest.replace(path, str(folder / name))
            for command in rest.split(" && "):
                yield command.strip(), arguments
        elif word != "WORKDIR":
            raise ValueError(f"{DOCKERFILE}: {word}: this script does not know it")
    told = dict(pair.split("=", 1) for word, rest in second if word == "ENV" for pair in shlex.split(rest))
    env = {key: value.replace("/opt/sslmed", str(folder / "venv")) for key, value in told.items()}
    env["PATH"] = env["PATH"].replace("$PATH", os.environ["PATH"])
    yield from ((command, env) for command in CHECKS)


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder without what Python has compiled."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def replay(folder: Path, python: Path) -> int:
    """Run all of it; the exit code."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(python)  # what the base image calls python
    bare = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    bare |= {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_", "https_", "HTTPS_"))}
    for command, more in steps(folder):
        place = folder / ("home" if command in CHECKS else "source")
        place.mkdir(exist_ok=True)
        print(f"$ {command.replace(str(folder), '')}", flush=True)
        begun = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", command],
            env=bare | more,
            cwd=place,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for line in done.stdout.splitlines()[-12 if command in CHECKS or done.returncode else -1 :]:
            print(f"  {line.replace(str(folder), '')[:200]}")
        print(f"  exit code {done.returncode}, {time.monotonic() - begun:.0f} s", flush=True)
        if done.returncode:
            return 1
    return 0


def main() -> int:
    """Read the options and replay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="the base image's Python, 3.12")
    parser.add_argument("--into", type=Path, help="a folder to keep; else a temporary one")
    asked = parser.parse_args()
    if asked.into is not None:
        return replay(asked.into.resolve(), asked.python)
    with tempfile.TemporaryDirectory() as name:
        return replay(Path(name), asked.python)


if __name__ == "__main__":
    raise SystemExit(main())
