"""A bundle installs and runs where there is no network at all."""

import os
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest

from sslmed_dist.training import job
from sslmed_dist.verbs import bundle
from tests import tiny


def test_the_closure_leaves_out_what_only_torch_needs() -> None:
    try:
        metadata.distribution(bundle.OWN)
    except metadata.PackageNotFoundError:
        pytest.skip("sslmed-dist itself is not installed here, so nothing says what it needs")
    names = {word.partition("==")[0] for word in bundle.third_party([])}
    assert {"numpy", "pyyaml"} <= names and not {"torch", "torchvision", "sympy", "networkx", "triton"} & names
    assert not [name for name in names if name.startswith("nvidia")]
    more = {word.partition("==")[0] for word in bundle.third_party(["report"])}
    assert {"safetensors", "matplotlib", "kiwisolver"} <= more - names


@pytest.mark.parametrize(
    ("options", "line"),
    [({"extras": ["nothing"]}, "--extras: nothing: unknown"), ({"extras": []}, "exists and is not empty")],
)
def test_a_wrong_bundle_is_one_line(tmp_path: Path, options: dict[str, list[str]], line: str) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match=line):
        bundle.bundle(tmp_path, **options)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture(autouse=True)
def builds() -> None:
    """Skips where no wheel can be built."""
    pytest.importorskip("packaging")
    if int(metadata.version("setuptools").split(".")[0]) < bundle.SETUPTOOLS:
        pytest.skip(f"a wheel is built without a network, which needs setuptools >= {bundle.SETUPTOOLS} (extra dev)")


def isolated() -> list[str]:
    """The words that run a command in an empty network namespace. Skips where this machine does not allow one."""
    words = ["unshare", "-rn"] if os.getuid() else ["unshare", "-n"]
    if shutil.which("unshare") is None or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("no empty network namespace can be made here (unshare -n)")
    return words


def parent(folder: Path) -> Path:
    """A folder of packages that holds torch, torchvision, what only they need, and pip: links to those of this
    environment."""
    names = bundle.of_the_machine()
    folder.mkdir()
    for name in names | {"pip"}:
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (folder / top).exists():
                (folder / top).symlink_to(source)
    return folder


def trained(folder: Path) -> Path:
    """A run of one step."""
    return job.train(tiny.settings(folder, plan={"epochs": 1, "steps_per_epoch": 1})).settings.folder


@pytest.mark.slow
def test_a_bundle_is_installed_and_runs_in_an_empty_network_namespace(tmp_path: Path) -> None:
    words = isolated()
    probe = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(tmp_path / "probe"),
        "pyyaml",
    ]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no package registry can be reached from here, so no wheels can be had")
    script = bundle.bundle(tmp_path / "bundle", model=trained(tmp_path), extras=[])
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    packages = next((tmp_path / "env" / "lib").glob("python3.*")) / "site-packages"
    (packages / "parent.pth").write_text(f"import site; site.addsitedir({str(parent(tmp_path / 'parent'))!r})\n")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}

    def alone(*command: str) -> str:
        done = subprocess.run(
            [*words, *command], env={**clean, "PYTHON": str(python)}, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    alone(str(script))
    where = alone(str(python), "-c", "import sslmed_dist, numpy, yaml; print(sslmed_dist.__file__, numpy.__file__)")
    assert all(Path(file).is_relative_to(packages) for file in where.split()), "from the bundle's wheels"
    read = "import sslmed_dist as sd; print(sd.load_encoder('bundle/encoder/encoder.safetensors').feature_dim)"
    assert alone(str(python), "-c", read).strip() == "32"
    few = ["run.device=cpu", "plan.batch_size=16", "plan.epochs=1", "plan.steps_per_epoch=1", "driver=local"]
    flat = ["data.root=tiny.npz", "optim.schedule.warmup_epochs=0"]
    alone(str(python), "-m", "sslmed_dist.cli", "train", "simsiam", *flat, *few)
    assert list(tmp_path.glob("runs/smoke-simsiam/checkpoints/step_*.pt"))

    page = tmp_path / "bundle" / "README.md"
    page.write_text(page.read_text() + "changed")
    changed = subprocess.run([str(script)], env={**clean, "PYTHON": str(python)}, capture_output=True, text=True)
    assert changed.returncode != 0 and "README.md" in changed.stdout + changed.stderr
