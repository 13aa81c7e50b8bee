"""The table of docs/hospitals.md has every drill."""

import re
from pathlib import Path

from tests.drills import table
from tests.drills.seen import plain

ROOT = Path(__file__).parents[2]
SOURCES = (
    *sorted((ROOT / "tests" / "drills").glob("test_*.py")),
    ROOT / "tests" / "drivers" / "test_tls_federation.py",
)


def test_every_drill_stands_in_the_table() -> None:
    page = (ROOT / "docs" / "hospitals.md").read_text(encoding="utf-8")
    begin = page.index(table.HEAD)
    rows = page[begin:].partition("\n\n")[0].splitlines()[2:]
    names = [re.split(r"(?<!\\)\|", row)[1].strip() for row in rows]
    assert len(set(names)) == len(names)
    drills = [name for path in SOURCES for name in re.findall(r"""\bsaw\(\s*f?"([^"]+)\"""", path.read_text())]
    assert len(drills) >= 15
    for drill in drills:  # {what}: a row for each of several
        pattern = re.sub(r"\\\{.*?\\\}", ".+", re.escape(drill))
        assert [name for name in names if re.fullmatch(pattern, name)], drill


def test_the_last_time_a_drill_was_seen_counts_and_a_cell_is_one_cell() -> None:
    rows = [{"drill": "a", "site": "old", "server": "", "then": ""}]
    rows += [{"drill": "a", "site": "x | `y`", "server": "", "then": "z"}]
    assert table.table(rows)[2:] == ["| a | `x \\| 'y'` |  | `z` |"]


def test_a_line_is_shown_without_what_is_of_one_run_alone() -> None:
    line = "12:00:01 WARNING /tmp/x/north/network/ca.crt at localhost:40123, node 6422668954004144654, " + "ab" * 32
    assert plain(line) == "/srv/sslmed/network/ca.crt at localhost:8443, node ..., ..."
