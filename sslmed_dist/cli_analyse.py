"""``sslmed analyse``: what an analysis says, then the paths of its picture and its csv."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from sslmed_dist.cli_answers import options, show
from sslmed_dist.cli_parser import ANALYSES


def analyse(arguments: argparse.Namespace) -> int:
    """``sslmed analyse RUN WHAT``."""
    from sslmed_dist.verbs.analyse import tool

    show(*(it for part in tool.analyse(arguments.action, runs(arguments), options(arguments.overrides)) for it in part))
    return 0


def runs(arguments: argparse.Namespace) -> list[Path]:
    """RUN, then those of ``--beside``."""
    return [arguments.run, *(arguments.beside or [])]


ANALYSE: Mapping[str, Callable[[argparse.Namespace], int]] = dict.fromkeys(ANALYSES, analyse)
