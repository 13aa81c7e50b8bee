"""``sslmed VERB``: the command line is parsed first, then what the verb needs is imported. So ``sslmed --help`` imports
neither torch nor ray.
"""

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
        print("\n".join(run.plan(asked)))
    else:
        print(published.text(run.run(asked)), end="")
    return 0


def names(words: Sequence[str] | None) -> list[str] | None:
    """The words of an option that are no overrides; None where the option is not there."""
    return None if words is None else [word for word in words if "=" not in word]


def report(arguments: argparse.Namespace) -> int:
    """``sslmed report``."""
    from sslmed_dist.report import write_report
    from sslmed_dist.report.events import write_events

    page, markdown = write_report(arguments.runs, arguments.out, pictures=arguments.pictures, force=arguments.force)
    if arguments.tensorboard is not None:
        write_events(arguments.runs, arguments.tensorboard)
    print(page, markdown, sep="\n")
    return 0


def export(arguments: argparse.Namespace) -> int:
    """``sslmed export``."""
    from sslmed_dist.verbs.export import export_encoder

    written = export_encoder(arguments.run, arguments.out, arguments.which, arguments.part, force=arguments.force)
    print(*written, sep="\n")
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
    print(f"{arguments.out}: {done.images} images{left_out}")
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
        force=arguments.force,
    )
    print(*written, sep="\n")
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

    print(PREPARATIONS[arguments.kind](arguments.source, arguments.out, note=say))
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
        force=arguments.force,
    )
    print(packed)
    return 0


def data_phantom(arguments: argparse.Namespace) -> int:
    """``sslmed data phantom``."""
    from sslmed_dist import registry
    from sslmed_dist.data.phantom import PHANTOMS

    leaf = {"name": arguments.kind, **options(arguments.options)}
    registry.build(PHANTOMS, leaf, "phantom", root=arguments.out)
    print(arguments.out)
    return 0


def say(line: str) -> None:
    """One line for the person who waits."""
    print(line, file=sys.stderr)


def found(lines: Sequence[str], problems: Sequence[str]) -> int:
    """Print what an inspection says. Returns the exit code, which is that of a mistake where there are problems."""
    print("\n".join(lines))
    for problem in problems:
        print(f"problem: {problem}")
    return USER_ERROR if problems else 0


def demo(arguments: argparse.Namespace) -> int:
    """``sslmed demo``."""
    from sslmed_dist.verbs import demo

    print(demo.run(arguments.out, quick=arguments.quick))
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
