"""``sslmed VERB``: the command line is parsed first, then what the verb needs is imported. So ``sslmed --help`` imports
neither torch nor ray."""

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from sslmed_dist.cli_answers import options, show
from sslmed_dist.cli_begin import BEGIN
from sslmed_dist.cli_cluster import doctor, watch
from sslmed_dist.cli_encoders import bundle, embed, export
from sslmed_dist.cli_parser import parse
from sslmed_dist.cli_report import report
from sslmed_dist.cli_reproduce import reproduce
from sslmed_dist.endings import ending_of
from sslmed_dist.printable import say

if TYPE_CHECKING:
    from sslmed_dist.config import Config


def train(arguments: argparse.Namespace) -> int:
    """``sslmed train``."""
    settings = configured(arguments)
    if arguments.check:
        from sslmed_dist.drivers.rehearsal import check_lines
        from sslmed_dist.training.evaluation_data import check_evaluation

        evaluation: list[str] = []
        show(*check_lines(settings, lambda: evaluation.extend(check_evaluation(settings))), *evaluation)
        return 0
    from sslmed_dist.drivers import choice

    stopped_at = choice.train(settings, arguments.resume)
    if stopped_at is not None:
        say(f"stopped at step {stopped_at}; run the same command again to go on")
    show(settings.folder)
    return 0


def configured(arguments: argparse.Namespace) -> "Config":
    """The configuration that the command line names, with its overrides."""
    from sslmed_dist import config

    settings = config.load(arguments.config, arguments.overrides)
    threads, cores = settings.run.threads or 0, len(os.sched_getaffinity(0))
    if threads > cores:
        say(f"warning: run.threads: {threads} threads on {cores} cores take turns, which is slower than {cores}")
    return settings


def federate(arguments: argparse.Namespace) -> int:
    """``sslmed federate``."""
    from sslmed_dist.verbs import federate

    settings = configured(arguments)
    if arguments.check:
        show(*federate.check(settings))
        return 0
    from sslmed_dist.report.plain import figure_lines

    folder = federate.run(settings, arguments.resume)
    show(*figure_lines(federate.results(folder), settings), folder)
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """``sslmed evaluate``: the figures, then the paths of the files that hold them."""
    from sslmed_dist.atomic_files import refuse_links
    from sslmed_dist.report.plain import figure_lines
    from sslmed_dist.verbs import evaluate, quarter_marks
    from sslmed_dist.verbs.measurement import measurement
    from sslmed_dist.verbs.similarities import similarities

    refuse_links(arguments.run)
    asked = measurement(arguments.run, arguments.which, arguments.part, arguments.overrides)
    written = evaluate.evaluate(asked)
    show(*figure_lines(written, asked.settings))
    quarter_marks.of_evaluation(asked)
    show(written, *([similarities(asked)] if arguments.histogram else []))
    return 0


def probe(arguments: argparse.Namespace) -> int:
    """``sslmed probe``: the figures, then the paths of the files that hold them."""
    from sslmed_dist import config
    from sslmed_dist.atomic_files import refuse_links
    from sslmed_dist.report.plain import figure_lines
    from sslmed_dist.verbs.probe import probe

    refuse_links(arguments.run)
    written = probe(arguments.run, arguments.what, arguments.which, arguments.overrides)
    settings = config.load(arguments.run / "config.yaml")
    for file in written:
        show(*figure_lines(file, settings))
    show(*written)
    return 0


def sweep(arguments: argparse.Namespace) -> int:
    """``sslmed sweep``: the table; exit code 1 where a trial failed or is not done."""
    from sslmed_dist.verbs.sweep import tool

    asked = tool.request(
        arguments.config,
        arguments.overrides,
        trials=arguments.trials,
        metric=arguments.metric,
        lower=arguments.lower,
        workers=arguments.workers,
        minutes=arguments.minutes,
        ray=arguments.ray,
    )
    if arguments.dry_run:
        show(*tool.budget(asked), *asked.trials)
        return 0
    lines, complete = tool.run(asked)
    show(*lines)
    return 0 if complete else 1


def segment(arguments: argparse.Namespace) -> int:
    """``sslmed segment``."""
    from sslmed_dist.verbs.segment import tool

    written = tool.segment(
        arguments.model,
        support=arguments.support,
        support_mask=arguments.support_mask,
        query=arguments.query,
        out=arguments.out,
        labels=arguments.labels,
        which=arguments.which,
        head=options(arguments.head),
        pixel_mm=arguments.pixel_mm,
        intensity=arguments.intensity,
        window=None if arguments.window is None else tuple(arguments.window),
        quadrants=arguments.quadrants,
        tidy=not arguments.no_tidy,
        copying=arguments.copying,
        span=arguments.range,
        supports=arguments.supports,
        dicom_seg=arguments.dicom_seg,
        names=arguments.names,
        probabilities=not arguments.no_probabilities,
        device=arguments.device,
        force=arguments.force,
        series=arguments.series,
        support_series=arguments.support_series,
    )
    show(*written)
    return 0


def diagnose(arguments: argparse.Namespace) -> int:
    """``sslmed diagnose``."""
    from sslmed_dist.verbs.diagnose import tool

    show(*tool.diagnose(arguments))
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """``sslmed demo``."""
    from sslmed_dist.verbs import demo

    show(demo.run(arguments.out, quick=arguments.quick))
    return 0


def lookup(arguments: argparse.Namespace) -> int:
    """``sslmed list``, ``recipes`` and ``where``."""
    from sslmed_dist.cli_lookup import LOOKUP

    return LOOKUP[arguments.verb](arguments)


def act(arguments: argparse.Namespace) -> int:
    """``sslmed data``, ``analyse``, ``site``, ``server``, ``app``: each action is a function of the verb's table."""
    module = importlib.import_module(f"sslmed_dist.cli_{arguments.verb}")
    return int(getattr(module, arguments.verb.upper())[arguments.action](arguments))


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    **BEGIN,
    "train": train,
    "watch": watch,
    "federate": federate,
    "evaluate": evaluate,
    "probe": probe,
    "analyse": act,
    "reproduce": reproduce,
    "sweep": sweep,
    "report": report,
    "export": export,
    "embed": embed,
    "bundle": bundle,
    "segment": segment,
    "diagnose": diagnose,
    "data": act,
    "demo": demo,
    "doctor": doctor,
    "server": act,
    "list": lookup,
    "where": lookup,
    "recipes": lookup,
    "site": act,
    "app": act,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Whatever goes wrong is one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that is no text of this terminal
    arguments = parse(argv)
    traceback = arguments.traceback or bool(os.environ.get("SSLMED_TRACEBACK"))
    with warnings.catch_warnings():
        warnings.showwarning = warn
        return ending_of(lambda: VERBS[arguments.verb](arguments), arguments.verb, subject(arguments), traceback)


def warn(message: Warning | str, *_: object, **__: object) -> None:
    """A library's warning as one line of ours: it may quote a file, control characters and all."""
    say(f"warning: {' '.join(str(message).split())}")


def subject(arguments: argparse.Namespace) -> Path | None:
    """What the verb works on: its configuration, run, model or folder; None where it has none."""
    for name in ("config", "run", "model", "path", "source", "root", "table"):
        if getattr(arguments, name, None):
            return Path(str(getattr(arguments, name)))
    return None


if __name__ == "__main__":
    sys.exit(main())
