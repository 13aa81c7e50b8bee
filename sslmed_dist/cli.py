"""``sslmed VERB``: parses first, then imports what the verb needs; ``sslmed --help`` imports neither torch nor ray."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from sslmed_dist.cli_parser import USER_ERROR, parse


def train(arguments: argparse.Namespace) -> int:
    """``sslmed train``."""
    from sslmed_dist import config

    settings = config.load(arguments.config, arguments.overrides)
    if arguments.check:
        from sslmed_dist.training.check import check_training

        print("\n".join(check_training(settings).lines))
        return 0
    if settings.driver == "ray":
        from sslmed_dist.drivers import ray_train

        ray_train.train(settings, arguments.resume)
    else:
        from sslmed_dist.drivers import local

        local.train(settings, arguments.resume)
    print(settings.folder)
    return 0


def federate(arguments: argparse.Namespace) -> int:
    """``sslmed federate``."""
    from sslmed_dist import config
    from sslmed_dist.verbs import federate

    settings = config.load(arguments.config, arguments.overrides)
    if arguments.check:
        print("\n".join(federate.check(settings)))
        return 0
    print(federate.run(settings, arguments.resume))
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """``sslmed evaluate``."""
    from sslmed_dist.verbs import pictures
    from sslmed_dist.verbs.evaluate import evaluate_run
    from sslmed_dist.verbs.similarities import similarities

    print(evaluate_run(arguments.run, arguments.which, arguments.part))
    pictures.of_run(arguments.run, arguments.which, arguments.part)
    if arguments.histogram:
        print(similarities(arguments.run, arguments.which, arguments.part))
    return 0


def reproduce(arguments: argparse.Namespace) -> int:
    """``sslmed reproduce``."""
    from sslmed_dist.verbs.reproduce import published, run

    words = {name: getattr(arguments, name) for name in ("rows", "columns", "folds")}
    overrides = [*arguments.overrides, *(word for found in words.values() for word in found or () if "=" in word)]
    names = {name: found and [word for word in found if "=" not in word] for name, found in words.items()}
    asked = run.request(
        arguments.table,
        **names,
        seeds=arguments.seeds,
        roots=arguments.root,
        overrides=overrides,
    )
    if arguments.dry_run or not run.possible(asked):
        print("\n".join(run.plan(asked)))
    else:
        print(published.text(run.run(asked)), end="")
    return 0


def report(arguments: argparse.Namespace) -> int:
    """``sslmed report``."""
    from sslmed_dist.report import write_report
    from sslmed_dist.report.events import write_events

    page, markdown = write_report(arguments.runs, arguments.out, pictures=arguments.pictures)
    if arguments.tensorboard is not None:
        write_events(arguments.runs, arguments.tensorboard)
    print(page, markdown, sep="\n")
    return 0


def export(arguments: argparse.Namespace) -> int:
    """``sslmed export``."""
    from sslmed_dist.verbs.export import export_encoder

    print(*export_encoder(arguments.run, arguments.out, arguments.which, arguments.part), sep="\n")
    return 0


def embed(arguments: argparse.Namespace) -> int:
    """``sslmed embed``."""
    from sslmed_dist.verbs.embed import embed

    count = embed(arguments.run, arguments.images, arguments.out, arguments.which, arguments.part)
    print(f"{arguments.out}: {count} images")
    return 0


def segment(arguments: argparse.Namespace) -> int:
    """``sslmed segment``."""
    from sslmed_dist import config
    from sslmed_dist.verbs.segment import tool

    head: dict[str, object] = {}
    for option in arguments.head:
        head = config.merge(head, config.parse_override(option))
    given = {name: getattr(arguments, name) for name in ("support", "support_mask", "query", "out")}
    knobs = {name: getattr(arguments, name) for name in ("which", "labels", "pixel_mm", "intensity", "quadrants")}
    window = None if arguments.window is None else tuple(arguments.window)
    devices = {"device": arguments.device, "dicom_seg": arguments.dicom_seg}
    print(*tool.segment(arguments.model, **given, head=head, window=window, **knobs, **devices), sep="\n")
    return 0


def data(arguments: argparse.Namespace) -> int:
    """``sslmed data``."""
    if arguments.action == "check":
        from sslmed_dist.data.check import inspect

        lines, problems = inspect(arguments.path)
        print("\n".join(lines))
        for problem in problems:
            print(f"problem: {problem}")
        return USER_ERROR if problems else 0
    if arguments.action == "prepare":
        from sslmed_dist.data.prepare import PREPARATIONS

        done = PREPARATIONS[arguments.kind](
            arguments.source, arguments.out, note=lambda line: print(line, file=sys.stderr)
        )
        print(done)
        return 0
    from sslmed_dist import config, registry

    options: dict[str, object] = {}
    for option in arguments.overrides if arguments.action == "pack" else arguments.options:
        options = config.merge(options, config.parse_override(option))
    if arguments.action == "pack":
        from sslmed_dist.data.pack import pack_any

        leaf = {"root": arguments.root, **options, "name": arguments.name}
        knobs = {name: getattr(arguments, name) for name in ("short", "quality", "rows", "workers")}
        knobs |= {"form": arguments.format, "note": lambda line: print(line, file=sys.stderr)}
        print(pack_any(leaf, arguments.out, **knobs))
        return 0
    from sslmed_dist.data.phantom import PHANTOMS

    registry.build(PHANTOMS, {"name": arguments.kind, **options}, "phantom", root=arguments.out)
    print(arguments.out)
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """``sslmed demo``."""
    from sslmed_dist.verbs import demo

    print(demo.run(arguments.out, quick=arguments.quick))
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """``sslmed doctor``."""
    from sslmed_dist.verbs import doctor

    lines, problems = doctor.examine()
    print("\n".join(lines))
    for problem in problems:
        print(f"problem: {problem}")
    return USER_ERROR if problems else 0


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
    """Run one verb. A user's mistake is one line on stderr and exit code 2; a stopped run is 0."""
    arguments = parse(argv)
    show = arguments.traceback or bool(os.environ.get("SSLMED_TRACEBACK"))
    try:
        return VERBS[arguments.verb](arguments)
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        if show:
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        print(f"sslmed {arguments.verb}: {kind}{' '.join(lines)[:1000]}", file=sys.stderr)
        return USER_ERROR if isinstance(error, (ValueError, OSError)) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
