"""What a shell offers behind ``sslmed`` and TAB: verbs, options, recipes, and the keys of a configuration.

By argcomplete, which a person may install; the shell asks by calling ``sslmed`` with a variable set.
"""

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sslmed_dist import installation

ASKED = "_ARGCOMPLETE"  # set by the shell's side of argcomplete


def answer(top: argparse.ArgumentParser) -> None:
    """Where a shell asks for completions, write them and end the process; else, or without argcomplete, do nothing."""
    if ASKED not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        return
    for action in actions(top):
        if action.dest == "config":
            action.completer = recipes  # type: ignore[attr-defined]
        elif action.dest == "overrides":
            action.completer = keys  # type: ignore[attr-defined]
    argcomplete.autocomplete(top)


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument of a command line and of its verbs."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from actions(below)


def recipes(prefix: str, **_: Any) -> Iterable[str]:
    """The recipes that come with the program, and the configuration files that begin with ``prefix``."""
    above = Path(prefix).parent if "/" in prefix else Path()
    files = [str(path) for path in above.glob("*.yaml")] if above.is_dir() else []
    folders = [f"{path}/" for path in above.glob("*/") if not path.name.startswith(".")] if "/" in prefix else []
    return [*installation.recipes(), *files, *folders]


def keys(prefix: str, **_: Any) -> Iterable[str]:
    """``SECTION.KEY=`` of all keys of the recipe, or the run, on the command line, and of the sections' defaults."""
    from sslmed_dist import config

    tree: dict[str, Any] = {}
    for word in os.environ.get("COMP_LINE", "").split()[2:]:
        try:  # most words are no recipe, and a recipe may be half written
            source = installation.recipe(word)
            tree = config.to_tree(config.load(source / "config.yaml" if source.is_dir() else source))
            break
        except ValueError:
            continue
    empty: dict[str, Any] = {"data": {}, "views": {}, "method": {}}
    return sorted({*dotted(tree), *dotted(config.to_tree(config.Config(**empty)))})


def dotted(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """``a.b.c=`` of every value of a tree."""
    for key, value in tree.items():
        here = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            yield from dotted(value, here)
        else:
            yield f"{here}="
