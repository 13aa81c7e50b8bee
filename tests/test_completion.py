"""What a shell is offered behind ``sslmed``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def offered(line: str, cwd: Path) -> list[str]:
    """The words that complete ``line``, asked as argcomplete's shell code asks."""
    pytest.importorskip("argcomplete")
    answers = cwd / "answers"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answers), "_ARGCOMPLETE_IFS": "\n", "PYTHONPATH": str(ROOT)}
    code = "import sys; from sslmed_dist import cli; sys.argv = ['sslmed']; cli.main()"
    subprocess.run([sys.executable, "-c", code], cwd=cwd, env={**os.environ, **asked}, check=True, capture_output=True)
    return [word.strip() for word in answers.read_text().split("\n")]


@pytest.mark.parametrize(
    ("line", "word", "other"),
    [
        ("sslmed seg", "segment", "train"),
        ("sslmed export runs --form", "--format", "--force"),
        ("sslmed train cifar10_mio", "cifar10_mio_v3_cpu", "cifar10_simclr"),
        ("sslmed train mi", "mine.yaml", "cifar10_simclr"),
        ("sslmed train cifar10_simclr plan.ep", "plan.epochs=", "plan.clip="),
        ("sslmed train cifar10_simclr method.loss.", "method.loss.temperature=", "method.name="),
    ],
)
def test_verbs_options_recipes_and_keys(tmp_path: Path, line: str, word: str, other: str) -> None:
    (tmp_path / "mine.yaml").touch()
    words = offered(line, tmp_path)
    assert word in words and other not in words
