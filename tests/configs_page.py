"""``configs/README.md``: every table and every recipe, what was published and what is ours.

``python -m tests.configs_page`` writes it anew; ``test_docs.py`` says when that is due. What a table publishes is read
from the table itself; ours is its key ``ours``, "not run" without one. What a recipe says is read from its header.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from sslmed_dist.installation import TABLES
from sslmed_dist.verbs.recipes import header, sentences, subject
from sslmed_dist.verbs.reproduce import read_table
from sslmed_dist.verbs.reproduce.table import Table

CONFIGS = Path(__file__).parents[1] / "configs"
PAGE = CONFIGS / "README.md"
HEAD = """# Recipes and tables

One file one run, or one file one published table. The header of a recipe has its command, hardware and result; a
table's has its command with what its datasets are called, and its key `published` has all figures (here: the best row
of the first column). This page is generated: `python -m tests.configs_page`.

A recipe: `sslmed train FILE data.root=PATH [KEY=VALUE ...]` (with a section `federated`: `sslmed federate`). A table:
`sslmed reproduce table-5.2 --root DATASET=PATH [--rows ...] [--columns ...] [--seeds 3]` runs what is missing of it
and prints ours beside theirs; `--dry-run` says what that is, `--folds` chooses of a cross-validation.
"""


def best(table: Table) -> str:
    """The row with the highest published figure in the first column and metric, "none" where nothing is published."""
    column = next(iter(table.columns))
    metric = next(iter(table.columns[column].metrics))
    rows = [*table.rows, *table.not_ours]
    figures = {row: table.published[row, column, metric][0] for row in rows if table.published[row, column, metric]}
    if not figures:
        return "none"
    row = max(figures, key=lambda name: figures[name])
    return f"{row} {figures[row]:g} ({column}, {metric}; best of {len(figures)})"


def said(text: str, begin: str) -> str:
    """What a header says after ``begin`` (a pattern), up to the next of "Published", "Measured" and "Ours:"."""
    match = re.search(rf"\b{begin}\s*(.*?)(?=\s(?:Published|Measured|Ours:)|$)", text)
    return "" if match is None else match[1].strip(" .;")


def by_number(path: Path) -> list[tuple[int, str]]:
    """Sort key in which table-5.10 comes after table-5.9."""
    return read_table.natural(path.stem)


def table_lines() -> Iterator[str]:
    """One line a table."""
    for folder in TABLES:
        for path in sorted((CONFIGS / folder).glob("*.yaml"), key=by_number):
            table = read_table.load(path)
            size = f"{len(table.rows)} x {len(table.columns)}"
            name = table.name if folder == "thesis" else f"configs/{folder}/{path.name}"
            yield f"| `{name}` | {table.title} | {size} | {best(table)} | {table.ours or 'not run'} |"


def recipe_lines() -> Iterator[str]:
    """One line a recipe."""
    for path in sorted(CONFIGS.rglob("*.yaml")):
        relative = path.relative_to(CONFIGS)
        if relative.parts[0] in TABLES:
            continue
        text = header(path)
        ours = said(text, r"Measured:?") or (sentences(said(text, "Ours:")) or ["not run"])[0].rstrip(".")
        if relative.parts[0] == "smoke":
            ours = "phantoms: no figure"
        yield f"| `{relative}` | {subject(path)} | {said(text, r'Published[:,]?') or 'none'} | {ours} |"


def page() -> str:
    """The whole page."""
    tables = [
        "| table | subject | rows x columns | published | ours |",
        "| --- | --- | --- | --- | --- |",
        *table_lines(),
    ]
    recipes = ["| recipe | subject | published | ours |", "| --- | --- | --- | --- |", *recipe_lines()]
    parts = [HEAD, "## Tables\n", *tables, "\n## Recipes\n", *recipes]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(CONFIGS.parent)}")
