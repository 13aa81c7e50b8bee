"""``sslmed init`` and ``sslmed verdict``: a recipe for one's own data, and whether what it trains is learning."""

import argparse
from collections.abc import Callable, Mapping

from sslmed_dist.cli_answers import show


def init(arguments: argparse.Namespace) -> int:
    """``sslmed init``."""
    from sslmed_dist.verbs.init import tool

    file, lines = tool.init(
        arguments.path,
        arguments.out,
        minutes=arguments.minutes,
        medical=arguments.medical,
        sites=arguments.federated,
        ray=arguments.ray,
        force=arguments.force,
    )
    show(*lines)
    return 0


def verdict(arguments: argparse.Namespace) -> int:
    """``sslmed verdict``: exit code 1 where a run does not learn."""
    from sslmed_dist.verbs.verdict import tool

    found = tool.verdict(arguments.run, arguments.which, arguments.overrides)
    show(*found.lines)
    return 0 if found.healthy else 1


BEGIN: Mapping[str, Callable[[argparse.Namespace], int]] = {"init": init, "verdict": verdict}
