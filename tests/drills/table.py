"""The table of drills for docs/hospitals.md: ``python -m tests.drills.table FILE`` makes it of what ``seen`` wrote."""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

HEAD = "| what happens | the site's people see | the server's people see | how it goes on |"
RULE = "| --- | --- | --- | --- |"


def cell(text: str) -> str:
    """A line of a program in a table's cell."""
    return f"`{text.replace('|', chr(92) + '|').replace('`', chr(39))}`" if text else ""


def table(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """The lines of the table. Of a drill that was seen several times the last counts."""
    last = {row["drill"]: row for row in rows}
    found = [HEAD, RULE]
    for drill, row in last.items():
        found.append(f"| {drill} | {cell(row['site'])} | {cell(row['server'])} | {cell(row['then'])} |")
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests.drills.table")
    parser.add_argument("file", type=Path)
    rows = [json.loads(line) for line in parser.parse_args().file.read_text().splitlines()]
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
