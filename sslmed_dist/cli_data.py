"""``sslmed data ACTION``: each action imports what it needs."""

import argparse
from collections.abc import Callable

from sslmed_dist.cli_answers import found, options, show
from sslmed_dist.printable import say


def data_check(arguments: argparse.Namespace) -> int:
    """``sslmed data check``."""
    from sslmed_dist.data.check import inspect

    return found(*inspect(arguments.path))


def data_show(arguments: argparse.Namespace) -> int:
    """``sslmed data show``."""
    from sslmed_dist.config import load
    from sslmed_dist.verbs.show import show_views

    show(show_views(load(arguments.config, arguments.overrides), arguments.out, arguments.count))
    return 0


def data_prepare(arguments: argparse.Namespace) -> int:
    """``sslmed data prepare``."""
    from sslmed_dist.data.prepare import PREPARATIONS

    show(PREPARATIONS[arguments.kind](arguments.source, arguments.out, note=say))
    return 0


def data_pack(arguments: argparse.Namespace) -> int:
    """``sslmed data pack``."""
    from sslmed_dist.data.pack import pack_any

    leaf = {"root": arguments.root, **options(arguments.overrides), "name": arguments.name}
    packed = pack_any(
        leaf,
        arguments.out,
        form=arguments.format,
        short=arguments.short,
        quality=arguments.quality,
        rows=arguments.rows,
        workers=arguments.workers,
        note=say,
        force=arguments.force,
    )
    show(packed)
    return 0


def data_phantom(arguments: argparse.Namespace) -> int:
    """``sslmed data phantom``."""
    from sslmed_dist import registry
    from sslmed_dist.data.phantom import PHANTOMS

    leaf = {"name": arguments.kind, **options(arguments.overrides)}
    registry.build(PHANTOMS, leaf, "phantom", root=arguments.out)
    show(arguments.out)
    return 0


DATA: dict[str, Callable[[argparse.Namespace], int]] = {
    "check": data_check,
    "show": data_show,
    "prepare": data_prepare,
    "pack": data_pack,
    "phantom": data_phantom,
}
