"""``sslmed watch`` and ``sslmed doctor``: a run, and the machines that it runs on."""

import argparse

from sslmed_dist.cli_answers import found, show


def watch(arguments: argparse.Namespace) -> int:
    """``sslmed watch``."""
    from sslmed_dist.verbs.watch import screen

    return screen.watch(arguments.run, show, once=arguments.once, every_s=arguments.every)


def doctor(arguments: argparse.Namespace) -> int:
    """``sslmed doctor``."""
    from sslmed_dist.verbs import doctor

    return found(*doctor.examine())
