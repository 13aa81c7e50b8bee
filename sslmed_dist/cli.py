"""``sslmed VERB``: the command line is parsed first, then what the verb needs is imported. So ``sslmed --help`` imports
neither torch nor ray.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from sslmed_dist.cli_parser import parse
from sslmed_dist.endings import USER_ERROR, ending_of
from sslmed_dist.printable import printable

if TYPE_CHECKING:
    from sslmed_dist.config import Config


def train(arguments: argparse.Namespace) -> int:
    """``sslmed train``."""
    settings = configured(arguments)
    if arguments.check:
        from sslmed_dist.training.check import check_training
        from sslmed_dist.training.evaluation_data import check_evaluation

        show(*check_training(settings).lines, *check_evaluation(settings))
        return 0
    if settings.driver == "ray":
        from sslmed_dist.drivers import ray_train

        ray_train.train(settings, arguments.resume)
    else:
        from sslmed_dist.drivers import local

        local.train(settings, arguments.resume)
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
    show(federate.run(settings, arguments.resume))
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """``sslmed evaluate``."""
    from sslmed_dist.atomic_files import refuse_links
    from sslmed_dist.verbs import pictures
    from sslmed_dist.verbs.evaluate import evaluate_run
    from sslmed_dist.verbs.similarities import similarities

    refuse_links(arguments.run)
    show(evaluate_run(arguments.run, arguments.which, arguments.part, arguments.overrides))
    pictures.of_run(arguments.run, arguments.which, arguments.part, arguments.overrides)
    if arguments.histogram:
        show(similarities(arguments.run, arguments.which, arguments.part, overrides=arguments.overrides))
    return 0


def reproduce(arguments: argparse.Namespace) -> int:
    """``sslmed reproduce``."""
    from sslmed_dist.verbs.reproduce import published, run

    # An override behind an option that takes several words was read as one of them: it is taken out of these.
    rows, columns, folds = arguments.rows, arguments.columns, arguments.folds
    overrides = [
        *arguments.overrides,
        *(word for words in (rows, columns, folds) for word in words or () if "=" in word),
    ]
    asked = run.request(
        arguments.table,
        rows=names(rows),
        columns=names(columns),
        seeds=arguments.seeds,
        roots=arguments.root,
        overrides=overrides,
        folds=names(folds),
    )
    if arguments.dry_run or not run.possible(asked):
        show(*run.plan(asked))
    else:
        print(published.text(run.run(asked)), end="")
    return 0


def names(words: Sequence[str] | None) -> list[str] | None:
    """The words of an option that are no overrides; None where the option is not there."""
    return None if words is None else [word for word in words if "=" not in word]


def report(arguments: argparse.Namespace) -> int:
    """``sslmed report``."""
    from sslmed_dist.atomic_files import refuse_links
    from sslmed_dist.report import write_report
    from sslmed_dist.report.events import write_events

    refuse_links(arguments.runs[0])  # the page goes there
    if arguments.pictures:
        from sslmed_dist.verbs import pictures

        pictures.make_for_report(arguments.runs)
    page, markdown = write_report(arguments.runs, arguments.out, pictures=arguments.pictures)
    if arguments.tensorboard is not None:
        write_events(arguments.runs, arguments.tensorboard)
    show(page, markdown)
    return 0


def export(arguments: argparse.Namespace) -> int:
    """``sslmed export``."""
    from sslmed_dist.verbs.export import export_encoder

    show(*export_encoder(arguments.run, arguments.out, arguments.which, arguments.part))
    return 0


def embed(arguments: argparse.Namespace) -> int:
    """``sslmed embed``."""
    from sslmed_dist.verbs.embed import embed

    count = embed(arguments.run, arguments.images, arguments.out, arguments.which, arguments.part)
    show(f"{arguments.out}: {count} images")
    return 0


def segment(arguments: argparse.Namespace) -> int:
    """``sslmed segment``."""
    from sslmed_dist.verbs.segment import tool

    head = options(arguments.head)
    written = tool.segment(
        arguments.model,
        support=arguments.support,
        support_mask=arguments.support_mask,
        query=arguments.query,
        out=arguments.out,
        labels=arguments.labels,
        which=arguments.which,
        head=head,
        pixel_mm=arguments.pixel_mm,
        intensity=arguments.intensity,
        window=None if arguments.window is None else tuple(arguments.window),
        quadrants=arguments.quadrants,
        dicom_seg=arguments.dicom_seg,
        device=arguments.device,
    )
    show(*written)
    return 0


def options(words: Sequence[str]) -> dict[str, object]:
    """Words ``KEY=VALUE`` as one tree, the values read as YAML."""
    from sslmed_dist import config

    tree: dict[str, object] = {}
    for word in words:
        tree = config.merge(tree, config.parse_override(word))
    return tree


def data(arguments: argparse.Namespace) -> int:
    """``sslmed data``."""
    return DATA[arguments.action](arguments)


def data_check(arguments: argparse.Namespace) -> int:
    """``sslmed data check``."""
    from sslmed_dist.data.check import inspect

    return found(*inspect(arguments.path))


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
    )
    show(packed)
    return 0


def data_phantom(arguments: argparse.Namespace) -> int:
    """``sslmed data phantom``."""
    from sslmed_dist import registry
    from sslmed_dist.data.phantom import PHANTOMS

    leaf = {"name": arguments.kind, **options(arguments.options)}
    registry.build(PHANTOMS, leaf, "phantom", root=arguments.out)
    show(arguments.out)
    return 0


def show(*lines: object) -> None:
    """The answer, one line each on stdout. What they name may hold control characters, which are escaped."""
    for line in lines:
        print(printable(str(line)))


def say(line: str) -> None:
    """One line for the person who waits."""
    print(printable(line), file=sys.stderr)


def found(lines: Sequence[str], problems: Sequence[str]) -> int:
    """Print what an inspection says. Returns the exit code, which is that of a mistake where there are problems."""
    show(*lines, *(f"problem: {problem}" for problem in problems))
    return USER_ERROR if problems else 0


def demo(arguments: argparse.Namespace) -> int:
    """``sslmed demo``."""
    from sslmed_dist.verbs import demo

    show(demo.run(arguments.out, quick=arguments.quick))
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """``sslmed doctor``."""
    from sslmed_dist.verbs import doctor

    return found(*doctor.examine())


DATA: dict[str, Callable[[argparse.Namespace], int]] = {
    "check": data_check,
    "prepare": data_prepare,
    "pack": data_pack,
    "phantom": data_phantom,
}
VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": train,
    "federate": federate,
    "evaluate": evaluate,
    "reproduce": reproduce,
    "report": report,
    "export": export,
    "embed": embed,
    "segment": segment,
    "data": data,
    "demo": demo,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Whatever goes wrong is one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that is no text of this terminal
    arguments = parse(argv)
    traceback = arguments.traceback or bool(os.environ.get("SSLMED_TRACEBACK"))
    return ending_of(lambda: VERBS[arguments.verb](arguments), arguments.verb, subject(arguments), traceback)


def subject(arguments: argparse.Namespace) -> Path | None:
    """What the verb works on: its configuration, run, model or folder; None where it has none."""
    for name in ("config", "run", "model", "path", "source", "root", "table"):
        if getattr(arguments, name, None):
            return Path(str(getattr(arguments, name)))
    return None


if __name__ == "__main__":
    sys.exit(main())
