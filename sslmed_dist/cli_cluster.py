"""``sslmed watch`` and ``sslmed doctor``: a run, and the machines that it runs on."""

import argparse

from sslmed_dist.cli_answers import found, show


def watch(arguments: argparse.Namespace) -> int:
    """``sslmed watch``."""
    from sslmed_dist.verbs.watch import screen

    return screen.watch(arguments.run, show, once=arguments.once, every_s=arguments.every)


def doctor(arguments: argparse.Namespace) -> int:
    """``sslmed doctor``: of this machine, or with ``--cluster`` of every node of the cluster. ``ValueError`` for a
    recipe without ``--cluster``."""
    if not arguments.cluster:
        if arguments.config is not None or arguments.overrides:
            raise ValueError("CONFIG: what a recipe needs here says `sslmed train CONFIG --check`; allowed: --cluster")
        from sslmed_dist.verbs import doctor

        return found(*doctor.examine())
    from sslmed_dist import config
    from sslmed_dist.verbs import doctor_cluster

    recipe = arguments.config
    return found(*doctor_cluster.examine(None if recipe is None else config.load(recipe, arguments.overrides)))
