"""``sslmed reproduce``: published tables beside ours, and figures."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sslmed_dist.cli_answers import options, show


def reproduce(arguments: argparse.Namespace) -> int:
    """``sslmed reproduce``: a table, or a figure that is a closed form."""
    from sslmed_dist.verbs.reproduce import closed_form, published, run

    if arguments.table in closed_form.FIGURES:
        return figure(arguments)

    # An override behind an option that takes several words was read as one of them: it is taken out of these.
    rows, columns, folds = arguments.rows, arguments.columns, arguments.folds
    overrides = [
        *arguments.overrides,
        *(word for words in (rows, columns, folds) for word in words or () if "=" in word),
    ]
    asked = run.request(
        arguments.table,
        rows=names(rows),
        columns=names(columns),
        seeds=arguments.seeds,
        roots=arguments.root,
        overrides=overrides,
        folds=names(folds),
    )
    if arguments.dry_run or not run.possible(asked):
        show(*run.plan(asked))
    else:
        print(published.text(run.run(asked)), end="")
    return 0


def names(words: Sequence[str] | None) -> list[str] | None:
    """The words of an option that are no overrides; None where the option is not there."""
    return None if words is None else [word for word in words if "=" not in word]


def figure(arguments: argparse.Namespace) -> int:
    """``sslmed reproduce`` of a closed form. ``ValueError`` for what only a table takes."""
    from sslmed_dist.verbs.reproduce import closed_form

    given = options(arguments.overrides)
    run = given.pop("run", {})
    folder = run.pop("dir", "runs") if isinstance(run, dict) else None
    others = [arguments.rows, arguments.columns, arguments.folds, arguments.root, arguments.seeds != 1, given, run]
    if any(others) or not isinstance(folder, str):
        raise ValueError(f"{arguments.table}: a closed form, no run is behind it; allowed: run.dir=PATH, --dry-run")
    if arguments.dry_run:
        show(f"{arguments.table}: a closed form, no run is behind it: {Path(folder) / arguments.table}")
        return 0
    lines, files = closed_form.draw(arguments.table, Path(folder))
    show(*lines, *files)
    return 0
