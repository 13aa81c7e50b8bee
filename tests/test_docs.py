"""Documents that stay true: links and paths exist, the tree names what is there, pages that are generated are new."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from sslmed_dist.losses import LOSSES
from sslmed_dist.methods import METHODS
from tests import configs_page, methods_page

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("configs/*.md"), *ROOT.glob("examples/*.md")]
)
ROOMS = (
    "data",
    "views",
    "losses",
    "models",
    "methods",
    "training",
    "downstream",
    "federation",
    "drivers",
    "verbs",
    "report",
)
WIDTH, README_LINES = 120, 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_narrow_and_its_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        assert len(line) <= WIDTH or line.startswith("|"), f"{page.name}:{number} has {len(line)} characters"
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
    for path in re.findall(r"`((?:sslmed_dist|clients|server|tests|configs|docs|deploy|examples)/[\w./*-]+)`", text):
        assert list(ROOT.glob(path)), f"{page.name}: {path}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


TREE = ROOT / "docs" / "tree.md"


def named_in_tree() -> Iterator[tuple[Path, str]]:
    """(folder, name) of everything that the tree names at the start of a line."""
    block = TREE.read_text(encoding="utf-8").split("\n\n")[2]
    above: list[tuple[int, Path]] = []
    for line in block.splitlines():
        indent, words = len(line) - len(line.lstrip()), re.split(r"\s{2,}", line.strip())[0].split()
        if indent > 20:  # the words of the line above go on
            continue
        above = [(depth, folder) for depth, folder in above if depth < indent]
        folder = above[-1][1] if above else ROOT
        for word in words:
            yield folder, word
        if words[-1].endswith("/"):
            above.append((indent, folder / words[-1]))


def test_the_tree_names_what_is_there_and_leaves_no_room_out() -> None:
    named = list(named_in_tree())
    for folder, word in named:
        assert (folder / word).exists(), f"{folder.relative_to(ROOT)}/{word}"
    package = ROOT / "sslmed_dist"
    there = {p.name for p in package.iterdir() if p.suffix == ".py" or (p.is_dir() and p.name != "__pycache__")}
    missing = (
        there - {word.strip("/") for folder, word in named if folder == package} - {"__init__.py", "plain_yaml.py"}
    )
    assert not missing


def test_modules_that_the_tree_points_to_exist() -> None:
    text = TREE.read_text(encoding="utf-8")
    names = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    for word in re.findall(r"`(?:\w+/)?(\w+\.py)`", text):
        assert word in names, word


def docstrings() -> Iterator[tuple[Path, str]]:
    """Every docstring of the packages."""
    for package in ("sslmed_dist", "clients", "server"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    yield file, ast.get_docstring(node) or ""


def test_docstrings_name_modules_that_exist() -> None:
    """``losses.tiles`` in a docstring is a module, or a name in one: a move that forgets a docstring fails here."""
    seen = 0
    for file, text in docstrings():
        for reference in re.findall(rf"``((?:{'|'.join(ROOMS)})(?:\.\w+)+)``", text):
            if (ROOT / reference).name in ("federation.json", "federation.log") or reference.startswith("data.root"):
                continue
            words = reference.split(".")
            places = [ROOT / "sslmed_dist" / Path(*words[:end]) for end in range(len(words), 0, -1)]
            found = next((p for p in places if p.is_dir() or p.with_suffix(".py").is_file()), None)
            assert found is not None, f"{file.relative_to(ROOT)}: {reference}"
            seen += 1
    assert seen > 5


@pytest.mark.parametrize("generated", [configs_page, methods_page], ids=lambda module: module.__name__)
def test_a_page_that_is_generated_is_up_to_date(generated: ModuleType) -> None:
    assert generated.PAGE.read_text(encoding="utf-8") == generated.page(), f"python -m {generated.__name__}"


def test_every_method_and_loss_has_a_row_and_every_loss_of_a_paper_names_it() -> None:
    rows = {line.key: methods_page.paper(line) for line in methods_page.lines()}
    assert {method for method, _ in rows} == set(METHODS)
    assert {part for method, part in rows if method == "contrastive" and " at " not in part} == set(LOSSES)
    # combinations and plain means are of no paper; whatever else is, says of which
    assert {key for key, name in rows.items() if name == "none named"} == {
        ("classify", ""),
        ("contrastive", "sum"),
        ("diagnose", "mean"),
    }
