"""``sslmed report``: the page of one or several runs, or the page over all runs of a folder."""

import argparse

from sslmed_dist.cli_answers import show


def report(arguments: argparse.Namespace) -> int:
    """``sslmed report``."""
    from sslmed_dist.atomic_files import refuse_links
    from sslmed_dist.report import write_report
    from sslmed_dist.report.events import events_folders, write_events

    if arguments.all is not None or not arguments.runs:
        return overview(arguments)
    refuse_links(arguments.runs[0])  # the page goes there
    curves = arguments.tensorboard
    folders = [] if curves is None else events_folders(arguments.runs, curves, force=arguments.force)
    if arguments.pictures:
        from sslmed_dist.verbs.report_pictures import make_for_report

        make_for_report(arguments.runs, arguments.layer)
    elif arguments.layer is not None:
        raise ValueError("--layer: says where the pictures look; it needs --pictures")
    page, markdown = write_report(arguments.runs, arguments.out, pictures=arguments.pictures, force=arguments.force)
    if curves is not None:
        write_events(arguments.runs, folders)
    show(page, markdown, *folders)
    return 0


def overview(arguments: argparse.Namespace) -> int:
    """``sslmed report --all FOLDER``."""
    from sslmed_dist.atomic_files import refuse_links
    from sslmed_dist.report.overview import write_overview

    if arguments.all is None:
        raise ValueError("report: name at least one run folder, or a folder of runs with --all")
    if arguments.runs or arguments.pictures or arguments.tensorboard or arguments.layer:
        raise ValueError("report: --all FOLDER stands alone, or with --out and --force")
    refuse_links(arguments.all)
    show(write_overview(arguments.all, arguments.out, force=arguments.force))
    return 0
