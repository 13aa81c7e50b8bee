"""``sslmed list`` and ``sslmed where``: what there is, and where it is written."""

import argparse
from collections.abc import Callable, Mapping

from sslmed_dist.cli_answers import show


def listing(arguments: argparse.Namespace) -> int:
    """``sslmed list``."""
    from sslmed_dist.verbs import catalogue

    show(*catalogue.listing(arguments.family, arguments.entry))
    return 0


def recipes(arguments: argparse.Namespace) -> int:
    """``sslmed recipes``, the older name of ``list recipes``: says so."""
    raise ValueError(f"is now `{' '.join(['sslmed list recipes', *arguments.names])}`")


def where(arguments: argparse.Namespace) -> int:
    """``sslmed where``."""
    from sslmed_dist.verbs.where import where

    words = arguments.number
    numbers = words if all(any(map(str.isdigit, word)) for word in words) else [" ".join(words)]  # "Eq. 5.21" is one
    show(*(line for number in numbers for line in where(number)))
    return 0


LOOKUP: Mapping[str, Callable[[argparse.Namespace], int]] = {"list": listing, "recipes": recipes, "where": where}
