"""``sslmed export``, ``embed`` and ``bundle``: an encoder, its features, or the whole program, for others."""

import argparse

from sslmed_dist.cli_answers import show
from sslmed_dist.printable import plural, say


def export(arguments: argparse.Namespace) -> int:
    """``sslmed export``."""
    from sslmed_dist.verbs.export.tool import export_encoder

    written = export_encoder(
        arguments.run,
        arguments.out,
        arguments.which,
        arguments.part,
        format=arguments.format,
        licence=arguments.licence,
        data_licence=arguments.data_licence,
        force=arguments.force,
    )
    show(*written)
    return 0


def embed(arguments: argparse.Namespace) -> int:
    """``sslmed embed``."""
    from sslmed_dist.verbs.embed import embed

    done = embed(
        arguments.run,
        arguments.images,
        arguments.out,
        arguments.which,
        arguments.part,
        names=arguments.names,
        skip_bad=arguments.skip_bad,
        force=arguments.force,
        note=say,
    )
    left_out = f", {done.skipped} left out that cannot be read" if done.skipped else ""
    show(f"{arguments.out}: {plural(done.images, 'image')}{left_out}")
    return 0


def bundle(arguments: argparse.Namespace) -> int:
    """``sslmed bundle``."""
    from sslmed_dist.verbs import bundle

    extras = [extra for word in arguments.extras for extra in word.split(",") if extra]
    show(bundle.bundle(arguments.out, model=arguments.model, which=arguments.which, extras=extras))
    return 0
