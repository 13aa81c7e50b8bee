"""``sslmed app ACTION``: the Flower app that came with this program, and signatures of it."""

import argparse
from collections.abc import Callable
from pathlib import Path

from sslmed_dist.cli_answers import found, show


def digest(arguments: argparse.Namespace) -> int:
    """``sslmed app digest``."""
    from sslmed_dist.drivers import app_file, launcher

    show(app_file.digest(launcher.app_folder()))
    return 0


def key(arguments: argparse.Namespace) -> int:
    """``sslmed app key``."""
    from sslmed_dist.federation import site_key

    site_key.make(arguments.key)
    show(
        f"{arguments.key}: signs apps; keep it on a machine without a network",
        f"its public half, for the sites: {site_key.load(arguments.key).public}",
    )
    return 0


def sign(arguments: argparse.Namespace) -> int:
    """``sslmed app sign``: the app that came with this program, or that of a digest where Flower is not installed."""
    from sslmed_dist.drivers import app_file, launcher
    from sslmed_dist.federation import app_signature, site_key

    app = arguments.digest or app_file.digest(launcher.app_folder())
    write_new(arguments.out, app_signature.sign(site_key.load(arguments.key), app).text())
    show(f"{arguments.out}: signs the app {app}")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """``sslmed app check``. Exit code 2 for a signature of another app."""
    from sslmed_dist.drivers import app_file, launcher
    from sslmed_dist.federation.app_signature import Signature

    signature = Signature.read(arguments.signature)
    app = app_file.digest(launcher.app_folder())
    lines = [f"{arguments.signature}: signs the app {signature.app}", f"by the key {signature.key}"]
    other = [f"the app that came with this program is another: {app}"]
    return found(lines, [] if signature.app == app else other)


def trust(arguments: argparse.Namespace) -> int:
    """``sslmed app trust``."""
    from sslmed_dist.federation import app_signature

    write_new(arguments.out, app_signature.trusted(arguments.keys))
    show(f"{arguments.out}: for the site's node, which then runs what one of {len(arguments.keys)} keys has signed")
    return 0


def write_new(out: Path, text: str) -> None:
    """Write a file. ``ValueError`` where one is there."""
    from sslmed_dist.atomic_files import write_atomically

    if out.exists():
        raise ValueError(f"{out}: exists; nothing is written over it")
    write_atomically(out, text.encode())


APP: dict[str, Callable[[argparse.Namespace], int]] = {
    "digest": digest,
    "key": key,
    "sign": sign,
    "check": check,
    "trust": trust,
}
