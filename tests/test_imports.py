"""Who may import whom, and what is imported only when it is used. The tables are those of the design."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sslmed_dist", "clients", "server")

# What everybody may import: no knowledge of the subject is in it.
FOUNDATION = {"registry", "randomness", "distributed"}
# Part of sslmed_dist -> what of sslmed_dist it imports, beside itself and its version. The parts of TOP are not here:
# they may import everything below them.
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "registry": set(),
    "randomness": set(),
    "plain_yaml": set(),
    "command": set(),
    "distributed": {"randomness"},
    "sections": set(),
    "config": {"registry", "plain_yaml", "sections"},
    "envelope": {"config"},
    "table": {"config", "sections"},
    "table_file": {"config", "registry", "plain_yaml", "table"},
    "checkpoint": set(),
    "optim": {"registry"},
    "guard": {"config"},
    "gradient_cache": set(),
    "engine": {"config", "distributed", "gradient_cache", "guard", "optim"},
    "run_folder": {"config", "checkpoint"},
    **{part: FOUNDATION for part in ("losses", "models", "views", "data")},
    "methods": FOUNDATION | {"losses", "models"},
    **{
        part: FOUNDATION | {"data", "models", "views", "methods", "engine", "checkpoint"}
        for part in ("downstream", "analysis")
    },
}
TOP = ("cli", "drivers", "federation", "report")

CORE = {"torch", "torchvision", "numpy", "yaml"}
LAZY = {"nibabel", "monai", "pydicom", "highdicom", "pandas", "matplotlib", "skimage", "scipy", "sklearn", "PIL"}
LAZY |= {"rich", "tensorboard", "safetensors"}
NO_TORCH = ("cli", "command", "config", "plain_yaml", "registry", "sections", "table", "table_file", "__init__")
EMPTY_WORDS = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager", "handler"}


@dataclass(frozen=True)
class Import:
    """One imported module: in ``file``, at ``line``, inside a function or when the file itself is imported."""

    file: Path
    line: int
    module: str
    inside: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


@cache
def files(package: str) -> list[Path]:
    """All modules of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def part(file: Path) -> str:
    """``engine`` for sslmed_dist/engine.py, ``data`` for sslmed_dist/data/mrnet.py."""
    first = file.relative_to(ROOT).parts[1]
    return first.removesuffix(".py")


@cache
def imports(file: Path) -> list[Import]:
    """Every import of a file; ``from a import b`` counts as ``a.b``, for b may be a module."""

    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(file, child.lineno, alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0 and child.module, f"{file}: a relative import"
                yield from (Import(file, child.lineno, f"{child.module}.{a.name}", inside) for a in child.names)
            yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return list(walk(ast.parse(file.read_text(encoding="utf-8")), False))


def foreign(package: str) -> list[Import]:
    """The imports of a package that are neither its own nor the standard library's."""
    found = [item for file in files(package) for item in imports(file)]
    outside = [item for item in found if item.module.split(".")[0] not in sys.stdlib_module_names]
    return [item for item in outside if item.module.split(".")[0] != package]


def test_the_walk_sees_everything(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("import a.b\nfrom c import d\nif True:\n    import e\ndef f() -> None:\n    import g, h\n")
    seen = [(item.module, item.inside) for item in imports(file)]
    assert seen == [("a.b", False), ("c.d", False), ("e", False), ("g", True), ("h", True)]
    assert len(list(files("sslmed_dist"))) > 50 and all(files(package) for package in PACKAGES)


def test_every_part_has_its_place() -> None:
    """A new module has to be put into the table of the design, and into this one."""
    assert {part(file) for file in files("sslmed_dist")} <= ALLOWED.keys() | set(TOP)


@pytest.mark.parametrize("name", ALLOWED)
def test_parts_import_what_the_table_allows(name: str) -> None:
    for file in files("sslmed_dist"):
        if part(file) != name:
            continue
        for item in imports(file):
            words = item.module.split(".")
            if words[0] == "sslmed_dist" and len(words) > 1:
                assert words[1] in ALLOWED[name] | {name, "__version__"}, item


def test_nobody_below_imports_the_top() -> None:
    for file in files("sslmed_dist"):
        for item in imports(file):
            assert not item.module.startswith("sslmed_dist.cli"), item
            if item.module.startswith("sslmed_dist.report"):
                assert part(file) in ("report", "cli", "drivers"), item
            if item.module.startswith("sslmed_dist.drivers"):
                assert part(file) in ("cli", "drivers", "federation"), item
            if item.module.startswith("sslmed_dist.federation"):
                assert part(file) in ("cli", "drivers", "federation"), item


def test_training_knows_nothing_of_a_federation() -> None:
    drivers = ROOT / "sslmed_dist" / "drivers"
    for name in ("job", "check", "local", "ray_train", "encoder", "evaluation"):
        for item in imports(drivers / f"{name}.py"):
            assert not item.module.startswith(("sslmed_dist.federation", "sslmed_dist.drivers.comparison")), item


def test_the_packages_keep_apart() -> None:
    for package in PACKAGES:
        others = set(PACKAGES) - {package} - ({"sslmed_dist"} if package != "sslmed_dist" else set())
        for item in foreign(package):
            assert item.module.split(".")[0] not in others, item


def test_ray_and_flower_are_in_their_places() -> None:
    for package in PACKAGES:
        for item in foreign(package):
            name = item.module.split(".")[0]
            if name == "ray":
                assert item.inside and item.file.name == "ray_train.py" and part(item.file) == "drivers", item
            if name == "flwr":
                assert package != "sslmed_dist", item


def test_the_core_needs_only_the_core() -> None:
    """Anything else is imported by the function that uses it, so that an extra may be missing."""
    for item in foreign("sslmed_dist"):
        name = item.module.split(".")[0]
        assert name in CORE | LAZY | {"ray"}, item
        assert name in CORE or item.inside, item
        if name == "torch" and part(item.file) in NO_TORCH:
            raise AssertionError(str(item))
    for package in ("clients", "server"):
        for item in foreign(package):
            assert item.module.split(".")[0] in CORE | {"flwr", "sslmed_dist"} or item.inside, item


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_files_are_short_and_named_by_what_they_do(package: str) -> None:
    for file in files(package):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= 300, f"{file.relative_to(ROOT)} has {lines} lines"
        words = {word.lower() for name in file.relative_to(ROOT).parts for word in name.removesuffix(".py").split("_")}
        assert not words & EMPTY_WORDS, file
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert not node.name.endswith(("Manager", "Handler", "Helper", "Utils")), f"{file}: {node.name}"


def loaded(code: str, *modules: str) -> list[str]:
    """Which of ``modules`` a fresh interpreter has loaded after ``code``."""
    report = f"import sys\n{code}\nprint(*[m for m in {modules!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stderr.split()


def test_help_and_mistakes_in_a_configuration_answer_at_once() -> None:
    """``sslmed --help``, a wrong argument and a wrong configuration load nothing that takes seconds."""
    code = (
        "from sslmed_dist.cli import main\n"
        "sys.stderr = open('/dev/null', 'w')\n"
        "for arguments in (['--help'], ['train', '--help'], ['nonsense']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        "assert main(['train', 'gone.yaml']) == 2\n"
        "sys.stderr = sys.__stderr__"
    )
    slow = ("torch", "torchvision", "numpy", "ray", "flwr", "monai", "nibabel", "matplotlib", "pandas", "sklearn")
    named = loaded(code, *slow, "yaml", "sslmed_dist.config")
    assert named[-2:] == ["yaml", "sslmed_dist.config"]
    assert not set(named) & set(slow)


def test_the_trunk_loads_no_extra() -> None:
    code = "import sslmed_dist.drivers.local, sslmed_dist.drivers.evaluation, sslmed_dist.data.check"
    assert loaded(code, "torch", *sorted(LAZY - {"PIL"}), "ray", "flwr") == ["torch"]
