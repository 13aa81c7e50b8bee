"""CONTRIBUTING.md adds a loss in a copy of the repository, step by step as the page says, and its tests pass there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.code_blocks import Block, blocks

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
COPIED = ("sslmed_dist", "tests", "configs", "docs")


def apply(block: Block, folder: Path) -> None:
    """Do in ``folder`` what the mark of a block says: write the file, or add the block beside the line that it names.
    The named line is there once."""
    verb, _, rest = block.mark.partition(" ")
    if verb == "write":
        (folder / rest).write_text(block.text + "\n")
        return
    place, _, line = rest.removeprefix("to ").partition(": ")
    path, where = place.rsplit(" ", 1)
    text = (folder / path).read_text()
    lines = text.splitlines()
    found = [number for number, other in enumerate(lines) if other.strip() == line]
    assert verb == "add" and where in ("after", "before") and len(found) == 1, block
    indent = " " * (len(lines[found[0]]) - len(lines[found[0]].lstrip()))
    new = [indent + added if added else "" for added in block.text.splitlines()]
    at = found[0] + (where == "after")
    lines[at:at] = new if where == "after" else [*new, "", ""]
    (folder / path).write_text("\n".join(lines) + "\n")


def steps() -> list[Block]:
    """The blocks of the page that are steps, in their order."""
    return [block for block in blocks(PAGE) if not block.mark.startswith("not run:")]


def test_every_step_of_the_page_says_what_is_to_be_done() -> None:
    assert [block.mark.split(" ")[0] for block in steps()] == ["write", *["add"] * 5, "run", "run"]


@pytest.mark.slow
def test_the_steps_of_the_page_add_a_loss(tmp_path: Path) -> None:
    for name in COPIED:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    printed = ""
    for block in steps():
        if block.mark != "run":
            apply(block, tmp_path)
            continue
        for line in block.text.splitlines():
            words = line.replace("python ", f"{sys.executable} ", 1)
            done = subprocess.run(words, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            printed = done.stdout
    assert " passed" in printed and "skipped" not in printed
    assert "| `contrastive` | `soft_margin` |" in (tmp_path / "docs" / "methods.md").read_text()
    assert "soft_margin" in (tmp_path / "tests" / "golden" / "losses.json").read_text()
    assert "soft_margin" not in (ROOT / "tests" / "golden" / "losses.json").read_text()
