"""The pages build as a site without one warning, and the reference in it has every entry of every registry."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sslmed_dist.verbs.catalogue import FAMILIES

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'sslmed-dist[docs]'")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build the pages below ``root`` strictly: not quietly, for a warning that is not printed is not counted."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    return subprocess.run(words, cwd=root, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def text_of(page: Path) -> str:
    """The HTML of a page."""
    return page.read_text(encoding="utf-8")


def test_every_page_of_the_repository_is_there(site: Path) -> None:
    named = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    named |= {Path(name) for name in ("recipes.html", "examples.html", "changelog.html", "contributing.html")}
    there = {path.relative_to(site) for path in site.rglob("*.html")}
    assert named <= there and Path("index.html") in there
    menu = text_of(site / "index.html")
    assert all(f'href="{page}"' in menu for page in named), "a page that no menu leads to"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_reference_has_every_entry(site: Path, family: str) -> None:
    page = text_of(site / "reference" / f"{family}.html")
    headings = set(re.findall(r"<h2 id=\"([\w-]+)\"", page))
    assert headings == set(FAMILIES[family].table)


def test_the_reference_has_the_keys_and_the_commands(site: Path) -> None:
    keys, commands = (text_of(site / "reference" / f"{name}.html") for name in ("configuration", "commands"))
    assert all(f"<code>{key}</code>" in keys for key in ("run.seed", "plan.batch_size", "federated.rounds"))
    assert all(f'id="{verb}"' in commands for verb in ("train", "data-pack", "site-check", "segment"))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for address in re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(\w+:)?//", text_of(page)):
            raise AssertionError(f"{page.relative_to(site)}: {address}")


@pytest.mark.slow
@pytest.mark.parametrize("link", ["nowhere.md", "concepts.md#nowhere"])
def test_a_broken_link_or_anchor_ends_the_build(tmp_path: Path, link: str) -> None:
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)  # of a link the folder that it leads to would be taken
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "configs", "examples", "deploy"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "docs" / "broken.md").write_text(f"# A page\n\n[a link]({link})\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1 and "'broken.md' contains a link" in done.stdout + done.stderr
