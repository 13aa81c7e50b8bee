"""``sslmed VERB``: parses first, then imports what the verb needs; ``sslmed --help`` imports neither torch nor ray."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

USER_ERROR = 2


class Parser(argparse.ArgumentParser):
    """argparse with mistakes in one line; where the usage is to be had is said instead of printed."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments. Overrides may also stand after an option, where argparse does not take them up by itself."""
    top = parser()
    arguments, left = top.parse_known_args(argv)
    for text in left:
        if text.startswith("-") or "=" not in text or not hasattr(arguments, "overrides"):
            top.error(f"unrecognized argument {text!r}")
        arguments.overrides = [*arguments.overrides, text]
    return arguments


def parser() -> argparse.ArgumentParser:
    """The command line. Every verb's function is in ``VERBS``."""
    top = Parser(
        prog="sslmed",
        description="Self-supervised image encoders: train, federate, evaluate. Research use, not a medical device.",
    )
    top.add_argument("--traceback", action="store_true", help="show where an error came from, not only its line")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    train = verbs.add_parser("train", help="pretrain an encoder (driver=local or driver=ray)")
    configuration(train)
    train.add_argument("--check", action="store_true", help="validate everything, print plan, memory and time, stop")
    train.add_argument("--resume", choices=("auto", "never"), default="auto", help="go on with a run of this name")

    federate = verbs.add_parser("federate", help="pretrain at sites that never share an image, and compare")
    configuration(federate)
    federate.add_argument("--check", action="store_true", help="validate, print the sites, stop")
    federate.add_argument("--resume", choices=("auto", "never"), default="auto")

    evaluate = verbs.add_parser("evaluate", help="measure a run's encoder on frozen features")
    evaluate.add_argument("run", type=Path)
    evaluate.add_argument("--which", default="last", help="last, step_N or round_N")
    evaluate.add_argument("--part", choices=("encoder", "momentum"), default="encoder", help="or its slow copy")
    evaluate.add_argument("--histogram", action="store_true", help="also similarities of pairs of training views")

    reproduce = verbs.add_parser("reproduce", help="run what is missing of a published table, print ours beside it")
    reproduce.add_argument("table", metavar="TABLE", help="table-5.2, figure-6.8 or the path of a table's .yaml")
    reproduce.add_argument("overrides", nargs="*", default=[], metavar="SECTION.KEY=VALUE")
    reproduce.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows")
    reproduce.add_argument("--columns", nargs="+", metavar="COLUMN", help="only these columns")
    reproduce.add_argument("--seeds", type=int, default=1, help="seeds a cell (3 before a difference is called one)")
    reproduce.add_argument("--root", action="append", default=[], metavar="DATASET=PATH", help="where a dataset is")
    reproduce.add_argument("--dry-run", action="store_true", help="print the cells and what is there, run nothing")

    report = verbs.add_parser("report", help="one HTML page and Markdown from one or several runs (seeds)")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    report.add_argument("--out", type=Path, help="the page's path (default: report.html in the first run)")
    report.add_argument("--pictures", action="store_true", help="embed the runs' pictures: the page then holds pixels")
    report.add_argument("--tensorboard", type=Path, help="also write the curves as TensorBoard events to this folder")

    export = verbs.add_parser("export", help="write the encoder as safetensors and JSON")
    export.add_argument("run", type=Path)
    export.add_argument("out", type=Path)
    export.add_argument("--which", default="last")
    export.add_argument("--part", choices=("encoder", "momentum"), default="encoder", help="or its slow copy")

    embed = verbs.add_parser("embed", help="features of a folder of images")
    embed.add_argument("run", type=Path)
    embed.add_argument("images", type=Path)
    embed.add_argument("--out", type=Path, default=Path("features.npz"))
    embed.add_argument("--which", default="last")
    embed.add_argument("--part", choices=("encoder", "momentum"), default="encoder", help="or its slow copy")

    data = verbs.add_parser("data", help="look at data, make phantoms, pack image files")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    look = actions.add_parser("check", help="what a file or folder holds and what is wrong with it")
    look.add_argument("path", type=Path)
    phantom = actions.add_parser("phantom", help="write phantom data (shapes, knee, abdomen, stl10, mura, ...)")
    phantom.add_argument("kind")
    phantom.add_argument("out", type=Path)
    phantom.add_argument("options", nargs="*", metavar="KEY=VALUE")
    pack = actions.add_parser("pack", help="write a set of image files as shards read by memory map")
    pack.add_argument("name", metavar="NAME", help="of the dataset: imagenet, tiny_imagenet, image_folder, ...")
    pack.add_argument("root", metavar="ROOT")
    pack.add_argument("out", type=Path, metavar="OUT")
    pack.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="the dataset's other arguments")
    pack.add_argument("--format", choices=("jpeg", "raw"), default="jpeg")
    pack.add_argument("--short", type=int, default=256, help="short side in pixels")
    pack.add_argument("--quality", type=int, default=90, help="of the JPEG")
    pack.add_argument("--rows", type=int, default=8192, help="images a shard")
    pack.add_argument("--workers", type=int, default=2, help="processes")

    demo = verbs.add_parser("demo", help="the whole story on phantom data: Ray, Flower, report")
    demo.add_argument("--out", type=Path, default=Path("runs"), help="where runs and phantom data go")
    demo.add_argument("--quick", action="store_true", help="fewer steps, no Ray cluster and no Flower runtime")

    verbs.add_parser("doctor", help="what this machine has, what is missing, what will not work")
    return top


def configuration(verb: argparse.ArgumentParser) -> None:
    """The arguments of every verb that reads a configuration."""
    verb.add_argument("config", type=Path, metavar="CONFIG")
    verb.add_argument("overrides", nargs="*", default=[], metavar="SECTION.KEY=VALUE")


def train(arguments: argparse.Namespace) -> int:
    """``sslmed train``."""
    from sslmed_dist import config

    settings = config.load(arguments.config, arguments.overrides)
    if arguments.check:
        from sslmed_dist.drivers import check

        print("\n".join(check.check(settings).lines))
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
    from sslmed_dist.drivers import comparison

    settings = config.load(arguments.config, arguments.overrides)
    if arguments.check:
        print("\n".join(comparison.check(settings)))
        return 0
    print(comparison.run(settings, arguments.resume))
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """``sslmed evaluate``."""
    from sslmed_dist.drivers import evaluation

    print(evaluation.evaluate_run(arguments.run, arguments.which, arguments.part))
    if arguments.histogram:
        print(evaluation.similarities(arguments.run, arguments.which, arguments.part))
    return 0


def reproduce(arguments: argparse.Namespace) -> int:
    """``sslmed reproduce``."""
    from sslmed_dist.drivers import reproduction
    from sslmed_dist.report import published

    words = {name: getattr(arguments, name) for name in ("rows", "columns")}
    overrides = [*arguments.overrides, *(word for found in words.values() for word in found or () if "=" in word)]
    names = {name: found and [word for word in found if "=" not in word] for name, found in words.items()}
    asked = reproduction.request(
        arguments.table, **names, seeds=arguments.seeds, roots=arguments.root, overrides=overrides
    )
    if arguments.dry_run or not reproduction.possible(asked):
        print("\n".join(reproduction.plan(asked)))
    else:
        print(published.text(reproduction.run(asked)), end="")
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
    from sslmed_dist.drivers import encoder

    print(*encoder.export(arguments.run, arguments.out, arguments.which, arguments.part), sep="\n")
    return 0


def embed(arguments: argparse.Namespace) -> int:
    """``sslmed embed``."""
    from sslmed_dist.drivers import evaluation

    count = evaluation.embed(arguments.run, arguments.images, arguments.out, arguments.which, arguments.part)
    print(f"{arguments.out}: {count} images")
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
    from sslmed_dist import config, registry

    options: dict[str, object] = {}
    for option in arguments.overrides if arguments.action == "pack" else arguments.options:
        options = config.merge(options, config.parse_override(option))
    if arguments.action == "pack":
        from sslmed_dist.data.pack import pack

        leaf = {"root": arguments.root, **options, "name": arguments.name}
        knobs = {name: getattr(arguments, name) for name in ("short", "quality", "rows", "workers")}
        print(pack(leaf, arguments.out, form=arguments.format, note=lambda line: print(line, file=sys.stderr), **knobs))
        return 0
    from sslmed_dist.data.phantom import PHANTOMS

    registry.build(PHANTOMS, {"name": arguments.kind, **options}, "phantom", root=arguments.out)
    print(arguments.out)
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """``sslmed demo``."""
    from sslmed_dist.drivers import demonstration

    print(demonstration.run(arguments.out, quick=arguments.quick))
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """``sslmed doctor``."""
    from sslmed_dist.drivers import diagnosis

    lines, problems = diagnosis.examine()
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
