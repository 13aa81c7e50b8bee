"""``sslmed server ACTION``: each action is a function of ``verbs.server``."""

import argparse
from collections.abc import Callable

from sslmed_dist.cli_answers import show


def init(arguments: argparse.Namespace) -> int:
    """``sslmed server init``."""
    from sslmed_dist.verbs import server

    show(*server.init(arguments.folder, arguments.host, arguments.port, arguments.listen))
    return 0


def renew(arguments: argparse.Namespace) -> int:
    """``sslmed server renew``."""
    from sslmed_dist.verbs import server

    show(*server.renew(arguments.folder))
    return 0


def add_site(arguments: argparse.Namespace) -> int:
    """``sslmed server add-site``."""
    from sslmed_dist.verbs import server

    keys = (arguments.node_key, arguments.data_key)
    show(*server.add_site(arguments.folder, arguments.name, *keys, arguments.samples))
    return 0


def start(arguments: argparse.Namespace) -> int:
    """``sslmed server start``."""
    from sslmed_dist.verbs import server

    show(*server.start(arguments.folder))
    return 0


def run(arguments: argparse.Namespace) -> int:
    """``sslmed server run``."""
    from sslmed_dist.verbs import server

    show(server.run(arguments.folder, arguments.config, arguments.overrides))
    return 0


def resume(arguments: argparse.Namespace) -> int:
    """``sslmed server resume``."""
    from sslmed_dist.verbs import server

    show(server.resume(arguments.folder, arguments.name))
    return 0


def status(arguments: argparse.Namespace) -> int:
    """``sslmed server status``."""
    from sslmed_dist.verbs import server

    show(*server.status(arguments.folder))
    return 0


SERVER: dict[str, Callable[[argparse.Namespace], int]] = {
    "init": init,
    "renew": renew,
    "add-site": add_site,
    "start": start,
    "run": run,
    "resume": resume,
    "status": status,
}
