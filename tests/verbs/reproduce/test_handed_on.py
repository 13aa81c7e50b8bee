"""``sslmed reproduce``: a table holds no path of the machine, and nothing on the command line is dropped silently."""

import json
from pathlib import Path

import pytest

from tests.verbs.reproduce.test_run import Capture, path, reproduce, write

__all__ = ["path"]  # a fixture


def test_a_table_that_is_handed_on_names_no_path_of_the_machine(path: Path, capsys: Capture) -> None:
    secret = path.parent / "St-Elsewhere"
    secret.mkdir()
    (path.parent / "tiny.npz").rename(secret / "tiny.npz")
    assert reproduce(path, f"data.root={secret / 'tiny.npz'}", "--rows", "SimCLR") == 0
    top = path.parent / "runs" / "table-9.1"
    # another row's data is gone when it is reported
    write(path.parent, cells={"MIOv3": {"tiny": {"data.root": str(secret / "gone.npz")}}})
    assert reproduce(path, f"run.dir={path.parent / 'runs'}") == 0
    for text in ((top / "table.md").read_text(), (top / "table.json").read_text(), capsys.readouterr().out):
        assert str(path.parent) not in text and "St-Elsewhere" not in text
    assert "not run: no data at …/gone.npz" in (top / "table.md").read_text()
    assert json.loads((top / "table.json").read_text())["overrides"] == ["run.dir=…/runs"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["plan.epochs=1", "plan.epochs=2"], "plan.epochs: stands on the command line 2 times; give it once"),
        (["--rows", "SimCLR", "plan.epochs=1", "--columns", "tiny", "plan.epochs=2"], "plan.epochs: stands on"),
        (["--root", "medmnist=a", "--root", "medmnist=b"], "--root medmnist: stands on the command line twice"),
    ],
)
def test_what_is_said_twice_is_refused(path: Path, capsys: Capture, words: list[str], line: str) -> None:
    assert reproduce(path, "--dry-run", *words) == 2
    assert line in capsys.readouterr().err


def test_rows_and_columns_that_come_again_are_added(path: Path, capsys: Capture) -> None:
    assert reproduce(path, "--dry-run", "--rows", "SimCLR", "--rows", "MIOv3") == 0
    assert [line.split(" / ")[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["SimCLR", "MIOv3"]
