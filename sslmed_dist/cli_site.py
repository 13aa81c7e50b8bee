"""``sslmed site ACTION``: each action is a function of ``verbs.site``."""

import argparse
from collections.abc import Callable

from sslmed_dist.cli_answers import found, show


def init(arguments: argparse.Namespace) -> int:
    """``sslmed site init``."""
    from sslmed_dist.verbs import site_init

    users = (arguments.user, arguments.network_user)
    made = site_init.init(
        arguments.file, arguments.name, arguments.data, arguments.server, arguments.root_certificate, users
    )
    show(*made)
    return 0


def network(arguments: argparse.Namespace) -> int:
    """``sslmed site network``."""
    from sslmed_dist.verbs import site_init

    show(*site_init.network(arguments.file))
    return 0


def check(arguments: argparse.Namespace) -> int:
    """``sslmed site check``. Exit code 2 where something is wrong, not proved, or would be refused."""
    from sslmed_dist.verbs import site

    if arguments.overrides and arguments.against is None:
        raise ValueError("overrides belong to a recipe; give it with --against CONFIG")
    return found(*site.check(arguments.file, arguments.against, arguments.overrides))


def accept(arguments: argparse.Namespace) -> int:
    """``sslmed site accept``."""
    from sslmed_dist.verbs import site

    show(*site.accept(arguments.file, arguments.digest))
    return 0


def start(arguments: argparse.Namespace) -> int:
    """``sslmed site start``."""
    from sslmed_dist.verbs import site

    show(*site.start(arguments.file))
    return 0


def status(arguments: argparse.Namespace) -> int:
    """``sslmed site status``."""
    from sslmed_dist.verbs import site

    show(*site.status(arguments.file))
    return 0


def reset(arguments: argparse.Namespace) -> int:
    """``sslmed site reset``."""
    from sslmed_dist.verbs import site

    show(*site.reset(arguments.file))
    return 0


def ledger(arguments: argparse.Namespace) -> int:
    """``sslmed site ledger verify | show | export``."""
    from sslmed_dist.verbs import site

    if arguments.head is not None and arguments.what != "verify":
        raise ValueError("--head belongs to `ledger verify`")
    if (arguments.out is not None) != (arguments.what == "export"):
        raise ValueError("--out FILE belongs to `ledger export`, which needs it")
    if arguments.what == "verify":
        return found(*site.verified(arguments.file, arguments.head))
    show(*(site.shown(arguments.file) if arguments.what == "show" else site.export(arguments.file, arguments.out)))
    return 0


SITE: dict[str, Callable[[argparse.Namespace], int]] = {
    "init": init,
    "network": network,
    "check": check,
    "accept": accept,
    "start": start,
    "status": status,
    "reset": reset,
    "ledger": ledger,
}
