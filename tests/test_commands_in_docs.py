"""Every block of commands in the pages is run, at small settings where it says so, or says why it is not.

The comment above a block decides: ``run`` here and now; ``run slow`` by ``make test-all``, all such blocks of a page in
one shell and one folder; ``run slow with: KEY=VALUE ...`` with these settings behind each command that trains;
``not run: REASON``. CONTRIBUTING.md has marks of its own (``test_contributing.py``).
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sslmed_dist import cli
from tests.code_blocks import Block, commands, joined

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/*.md"), *ROOT.glob("examples/*.md")]
)
MARK = re.compile(r"run|run slow(?: with: (?P<settings>\S.*))?|not run: (?P<reason>\S.*)")
TRAINS = ("sslmed train ", "sslmed federate ", "sslmed diagnose ")
SHELL = """#!/bin/sh
exec {python} -m sslmed_dist.cli "$@"
"""


def named(page: Path) -> str:
    """A page's name in the output."""
    return str(page.relative_to(ROOT))


def slow(block: Block) -> bool:
    """Whether a block is run by ``make test-all``."""
    return block.mark.startswith("run slow")


def script(page: Path) -> str:
    """The slow blocks of a page as one shell script."""
    lines = ["set -euo pipefail"]
    for block in filter(slow, commands(page)):
        match = MARK.fullmatch(block.mark)
        assert match is not None
        further = " ".join(map(shlex.quote, shlex.split(match["settings"] or "")))
        lines += [f"{line} {further}" if line.strip().startswith(TRAINS) else line for line in joined(block)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=named)
def test_every_block_of_commands_is_run_or_says_why_not(page: Path) -> None:
    for block in commands(page):
        match = MARK.fullmatch(block.mark)
        assert match, (
            f"{named(page)}:{block.line}: {block.mark!r}; write above it <!-- run slow --> or <!-- not run: WHY -->"
        )
        assert not match["reason"] or len(match["reason"]) > 10, f"{named(page)}:{block.line}: why?"


def test_a_block_is_found_with_its_mark(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n<!-- run -->\n\n    sslmed list\n\n1. one:\n\n    <!-- run slow -->\n\n"
        "        make test \\\n          x\n\n"
        "    Open it.\n\n"
        "<!-- run slow with: a=1 -->\n\n```\nsslmed train x\n```\n\n    x = 1\n"
    )
    found = commands(page)
    assert [(block.line, block.mark, block.text) for block in found] == [
        (5, "run", "sslmed list"),
        (11, "run slow", "make test \\\n  x"),
        (18, "run slow with: a=1", "sslmed train x"),
    ]
    assert joined(found[1]) == ["make test    x"]
    assert script(page) == "set -euo pipefail\nmake test    x\nsslmed train x a=1\n"
    page.write_text("    sslmed list\n\n<!-- commands of this page are not run:\nno machine -->\n")
    assert [block.mark for block in commands(page)] == ["not run: no machine"]


def test_the_quick_blocks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    count = 0
    for page in PAGES:
        for line in (line for block in commands(page) if block.mark == "run" for line in joined(block)):
            program, *words = shlex.split(line, comments=True)
            assert program == "sslmed", f"{named(page)}: a block of other commands is slow"
            try:
                code = cli.main(words)
            except SystemExit as ending:  # --help ends the program
                code = int(ending.code or 0)
            assert code == 0 and capsys.readouterr().out, f"{named(page)}: {line}"
            count += 1
    assert count >= 5


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(slow, commands(page)))], ids=named)
def test_the_slow_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "sslmed"
    program.parent.mkdir()
    program.write_text(SHELL.format(python=sys.executable))
    program.chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-xc", script(page)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
