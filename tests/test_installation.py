"""What comes with the program: recipes by name, and a wheel that gives the bytes of the checkout in a bare folder."""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from sslmed_dist import cli, installation
from sslmed_dist.verbs import recipes

ROOT = Path(__file__).parents[1]
TREES = ("sslmed_dist", "server", "clients", "configs")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
DIGEST = """
import sslmed_dist
from sslmed_dist.drivers import app_file, launcher
print(sslmed_dist.__file__, app_file.digest(launcher.app_folder()))
"""


def test_a_recipe_is_found_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = ROOT / "configs" / "federated" / "pneumonia_mio_v3.yaml"
    for text in ("pneumonia_mio_v3", "federated/pneumonia_mio_v3", "configs/federated/pneumonia_mio_v3.yaml"):
        assert installation.recipe(text) == path
    (tmp_path / "pneumonia_mio_v3").touch()
    assert installation.recipe("pneumonia_mio_v3") == Path("pneumonia_mio_v3"), "a file of this folder goes first"


@pytest.mark.parametrize("text", ["mine.yaml", "runs/a/config.yaml", "knee/pneumonia_mio_v3.yaml", "configs/gone.yaml"])
def test_the_path_of_a_file_that_is_not_there_stays(text: str) -> None:
    assert installation.recipe(text) == Path(text)


@pytest.mark.parametrize("text", ["nothing", "knee/pneumonia_mio_v3", "table-5.2x/y"])
def test_a_name_that_no_recipe_has_is_a_mistake(text: str) -> None:
    with pytest.raises(ValueError, match="no recipe of this program has that name; `sslmed list recipes` names them"):
        installation.recipe(text)


def test_every_recipe_is_listed_and_no_two_share_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    files = [p for p in (ROOT / "configs").glob("*/*.yaml") if p.parent.name not in installation.TABLES]
    assert len(installation.recipes()) == len(files) > 40
    assert cli.main(["list", "recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(files) + 1 and "table-5.2" in lines[-1]
    assert all(len(line.split("  ", 1)[1].strip()) > 10 for line in lines[:-1]), "each says what it is for"
    assert cli.main(["list", "recipes", "simsiam"]) == 0
    assert capsys.readouterr().out == recipes.text(ROOT / "configs" / "smoke" / "simsiam.yaml")
    for words in (["recipes"], ["recipes", "simsiam"]):
        assert cli.main(words) == 2
        line = f"sslmed recipes: is now `{' '.join(['sslmed list', *words])}`"
        assert capsys.readouterr() == ("", f"{line}\n"), "one way, and the other says where it is"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel in place of the checkout, and all else of this one. The wheel is
    built from a copy, so that the checkout keeps no ``build`` folder."""
    try:
        new_enough = int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        new_enough = False
    if not new_enough:
        pytest.skip("the wheel is built without a network, which needs setuptools >= 77 here (extra dev)")
    folder = tmp_path_factory.mktemp("wheel")
    for name in TREES:
        shutil.copytree(ROOT / name, folder / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / "copy" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*pip, str(folder), str(folder / "copy")], check=True, cwd=folder)
    venv.create(folder / "env", with_pip=False)
    packages = folder / "env" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(packages)
    above = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "above.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in above))
    return folder / "env" / "bin" / "python"


def bare(python: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """One command of that environment, in a bare folder. Fails with what it said where it fails."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SSLMED_APP")}
    done = subprocess.run([str(python), *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_app_and_recipes_and_nothing_else_of_the_root(installed: Path) -> None:
    shipped = next(installed.parents[1].rglob("shipped"))
    there = {str(path.relative_to(shipped)) for path in shipped.rglob("*") if path.is_file()}
    wanted = [p for tree in ("server", "clients", "configs") for p in (ROOT / tree).rglob("*") if p.is_file()]
    names = {str(path.relative_to(ROOT)) for path in wanted if path.suffix in (".py", ".yaml", ".md")}
    assert there == names | {"pyproject.toml"}
    assert all((shipped / name).read_bytes() == (ROOT / name).read_bytes() for name in there)


@pytest.mark.slow
def test_wheel_and_checkout_give_the_same_bytes_of_the_app(installed: Path, tmp_path: Path) -> None:
    file, digest = bare(installed, tmp_path, "-c", DIGEST).stdout.split()
    assert Path(file).is_relative_to(installed.parents[1]), "the wheel's own package answered"
    code = [sys.executable, "-c", DIGEST]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    own = subprocess.run(code, cwd=tmp_path, env=here, capture_output=True, text=True, check=True).stdout.split()
    assert Path(own[0]).is_relative_to(ROOT) and own[1] == digest
    assert len(digest) == hashlib.sha256().digest_size * 2


@pytest.mark.slow
def test_an_installed_wheel_trains_and_federates_in_a_bare_folder(installed: Path, tmp_path: Path) -> None:
    sslmed = ("-m", "sslmed_dist.cli")
    bare(installed, tmp_path, *sslmed, "data", "phantom", "shapes", "phantom", "channels=1", "train=120", "test=20")
    assert "smoke/simsiam" in bare(installed, tmp_path, *sslmed, "list", "recipes").stdout
    small = ["data.root=phantom/shapes.npz", "run.device=cpu", "plan.batch_size=16", "plan.epochs=1"]
    flat = "optim.schedule.warmup_epochs=0"
    assert bare(installed, tmp_path, *sslmed, "train", "simsiam", *small, "driver=local", flat).stdout.strip()
    few = ["federated.runtime=in_process", "federated.rounds=1", "plan.steps_per_epoch=1", "federated.compare=[]"]
    words = [*sslmed, "federate", "demo_federated", *small, *few, "evaluate.protocols=[{name: knn, k: 5}]"]
    bare(installed, tmp_path, *words, "run.start_from=null")
    assert list(tmp_path.glob("runs/*/checkpoints/round_00001.pt"))


@pytest.mark.slow
def test_demo_and_the_arms_of_a_federation_work_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    sslmed = ("-m", "sslmed_dist.cli")
    page = bare(installed, tmp_path, *sslmed, "demo", "--quick", "--out", "runs").stdout.split()[-1]
    assert Path(page).suffix == ".html" and (tmp_path / page).stat().st_size > 10_000
    phantom = next((tmp_path / "runs").rglob("shapes.npz"))
    words = ["demo_federated", f"data.root={phantom}", "run.device=cpu", "run.start_from=null", "--check"]
    assert "site" in bare(installed, tmp_path, *sslmed, "federate", *words).stdout
