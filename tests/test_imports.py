"""Who may import whom, and what is imported only when it is used. The tables are those of the design."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sslmed_dist", "clients", "server")

FOUNDATION = (
    "__init__ addresses arguments atomic_files checkpoint cli_arguments cli_completion cli_hospitals cli_parser "
    "cli_patients config curve_events distributed endings federated_section home_folder installation json_files links "
    "locks log_files outputs plain_yaml printable randomness registry run_folder sections state_dicts strips "
    "trackers user_cache weights zip_files "
)
# From the ground up: a part may import those below it, and of its own floor only itself; in the foundation the test
# for circles is what keeps order. A new part has to be put on its floor here.
FLOORS: tuple[set[str], ...] = (
    set(FOUNDATION.split()),
    {"data", "views", "losses", "models"},
    {"methods"},
    {"downstream", "analysis"},
    {"training"},
    {"federation"},
    {"report", "drivers"},
    {"verbs", "interface"},
    {"cli_answers"},
    {"cli_data", "cli_site", "cli_server", "cli_app", "cli_lookup", "cli_cluster", "cli_encoders"},
    {"cli_analyse", "cli_report", "cli_begin", "cli_reproduce"},
    {"cli"},
)
# Parts that may not import all that is below them: they know no configuration, no run and no file but their own.
NARROW = {"registry", "arguments", "atomic_files", "randomness", "distributed", "user_cache", "printable", "strips"}
NARROW |= {"weights", "outputs", "zip_files", "links", "addresses", "locks"}
ALLOWED: dict[str, set[str]] = {
    **{part: NARROW for part in ("data", "views", "losses", "models")},
    "methods": NARROW | {"losses", "models"},
    "downstream": NARROW | {"data", "views", "models", "methods", "checkpoint"},
    "analysis": NARROW | {"data", "views", "losses", "models", "methods", "checkpoint"},
}

CORE = {"torch", "torchvision", "numpy", "yaml"}
LAZY = {"nibabel", "monai", "pydicom", "highdicom", "pandas", "matplotlib", "skimage", "scipy", "sklearn", "PIL"}
LAZY |= {
    "rich",
    "packaging",
    "argcomplete",
    "tensorboard",
    "safetensors",
    "timm",
    "cryptography",
    "fsspec",
    "onnx",
    "onnxruntime",
    "mlflow",
    "wandb",
}
NO_TORCH = (
    "__init__ arguments atomic_files cli cli_analyse cli_answers cli_app cli_arguments cli_begin cli_cluster "
    "cli_completion cli_data cli_encoders cli_hospitals cli_lookup cli_parser cli_report cli_reproduce cli_server "
    "cli_site config endings federated_section home_folder installation json_files log_files plain_yaml printable "
    "registry sections "
)
RAY = {"ray_train.py", "ray_tasks.py", "ray_cluster.py", "ray_autoscaler.py", "ray_watch.py", "ray_nodes.py"}
RAY |= {"ray_tune.py"}
LONGEST_FILE, LONGEST_FUNCTION = 300, 60
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


def floor(name: str) -> int:
    """The floor of a part. A part without one fails here: a new one has to be put into ``FLOORS``."""
    found = [number for number, parts in enumerate(FLOORS) if name in parts]
    assert len(found) == 1, f"{name}: on {len(found)} floors"
    return found[0]


def test_no_import_runs_up() -> None:
    """Imports inside functions count."""
    for file in files("sslmed_dist"):
        own = part(file)
        for item in imports(file):
            words = item.module.split(".")
            if words[0] != "sslmed_dist" or len(words) == 1 or words[1] in (own, "__version__"):
                continue
            assert own not in ALLOWED or words[1] in ALLOWED[own], item
            assert floor(words[1]) < floor(own) or floor(own) == floor(words[1]) == 0, item


@cache
def module_files() -> dict[str, Path]:
    """All modules of all packages by their dotted names."""
    found = {}
    for package in PACKAGES:
        for file in files(package):
            words = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(words[:-1] if words[-1] == "__init__" else words)] = file
    return found


def imported_modules(name: str) -> set[str]:
    """The modules of ours that a module imports by name (not the packages above them, which hold only tables)."""
    modules, found = module_files(), set()
    for item in imports(modules[name]):
        words = item.module.split(".")
        found.update(
            [".".join(words[:end]) for end in (len(words), len(words) - 1) if ".".join(words[:end]) in modules][:1]
        )
    return found - {name}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle of a graph, as the names along it; empty where there is none."""
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            found = search(other, [*path, name])
            if found:
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := search(name, []))), [])


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_modules_and_rooms_import_in_no_circle() -> None:
    graph = {name: imported_modules(name) for name in module_files()}
    assert sum(map(len, graph.values())) > 400
    assert circle(graph) == []
    rooms: dict[str, set[str]] = {}
    for name, others in graph.items():
        rooms.setdefault(room(name), set()).update({room(other) for other in others} - {room(name)})
    assert circle(rooms) == []


def room(name: str) -> str:
    """The folder of a module, ``sslmed_dist.data.exams``; a module that lies beside folders is a room of its own."""
    modules = module_files()
    is_folder = modules[name].name == "__init__.py"
    above = name.rpartition(".")[0]
    beside = any(other.startswith(f"{above}.") and file.name == "__init__.py" for other, file in modules.items())
    return name if is_folder or beside else above


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
                assert item.inside and item.file.name in RAY and part(item.file) == "drivers", item
            if name == "flwr":
                assert package != "sslmed_dist", item


def test_the_core_needs_only_the_core() -> None:
    """Anything else is imported by the function that uses it, so that an extra may be missing."""
    for item in foreign("sslmed_dist"):
        name = item.module.split(".")[0]
        assert name in CORE | LAZY | {"ray"}, item
        assert name in CORE or item.inside, item
        if name == "torch" and part(item.file) in NO_TORCH.split():
            raise AssertionError(str(item))
    for package in ("clients", "server"):
        for item in foreign(package):
            assert item.module.split(".")[0] in CORE | {"flwr", "sslmed_dist"} or item.inside, item


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_files_are_short_and_named_by_what_they_do(package: str) -> None:
    for file in files(package):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= LONGEST_FILE, f"{file.relative_to(ROOT)} has {lines} lines"
        words = {word.lower() for name in file.relative_to(ROOT).parts for word in name.removesuffix(".py").split("_")}
        assert not words & EMPTY_WORDS, file
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert not node.name.endswith(("Manager", "Handler", "Helper", "Utils")), f"{file}: {node.name}"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and package != "tests":
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= LONGEST_FUNCTION, f"{file.relative_to(ROOT)}: {node.name} has {length} lines"


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
    code = "import sslmed_dist.drivers.local, sslmed_dist.verbs.evaluate, sslmed_dist.data.check"
    assert loaded(code, "torch", *sorted(LAZY - {"PIL"}), "ray", "flwr") == ["torch"]
