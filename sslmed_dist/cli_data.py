"""``sslmed data ACTION``: each action imports what it needs."""

import argparse
from collections.abc import Callable

from sslmed_dist.cli_answers import found, options, show
from sslmed_dist.printable import say


def data_check(arguments: argparse.Namespace) -> int:
    """``sslmed data check``."""
    from sslmed_dist.data.check import inspect

    given = options(arguments.overrides)
    if set(given) - {"series"}:
        raise ValueError(f"data check: {sorted(set(given) - {'series'})[0]} is no option; allowed: series.SLOT=RULE")
    rules = given.get("series")
    if rules is not None and not (isinstance(rules, dict) and all(isinstance(rule, str) for rule in rules.values())):
        raise ValueError("series: expected series.SLOT=RULE, each rule a text")
    return found(*inspect(arguments.path, rules))


def data_labels(arguments: argparse.Namespace) -> int:
    """``sslmed data labels``."""
    from pathlib import Path

    from sslmed_dist import registry
    from sslmed_dist.analysis.labels import concurrence_plot, describe_labels
    from sslmed_dist.data import DATASETS
    from sslmed_dist.run_folder import phantoms_at

    leaf = {"root": arguments.root, **options(arguments.overrides), "name": arguments.name}
    split = leaf.pop("split", "all")
    dataset = registry.build(DATASETS, leaf, "data", split=split)
    if dataset.task != "multi":
        raise ValueError(f"{dataset.name}: has one label a sample; the description is of several that stand together")
    described = describe_labels(dataset.labels, dataset.classes)
    show(*described.lines())
    if arguments.plot is not None:
        phantoms = phantoms_at(Path(arguments.root).expanduser())
        show(concurrence_plot(described, arguments.plot, "phantoms" if phantoms else ""))
    return 0


def data_show(arguments: argparse.Namespace) -> int:
    """``sslmed data show``."""
    from sslmed_dist.config import load
    from sslmed_dist.verbs.show import show_views

    show(show_views(load(arguments.config, arguments.overrides), arguments.out, arguments.count))
    return 0


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
        force=arguments.force,
        verify=arguments.verify,
    )
    show(packed)
    return 0


def data_phantom(arguments: argparse.Namespace) -> int:
    """``sslmed data phantom``."""
    from sslmed_dist import registry
    from sslmed_dist.data.phantom import PHANTOMS

    leaf = {"name": arguments.kind, **options(arguments.overrides)}
    registry.build(PHANTOMS, leaf, "phantom", root=arguments.out)
    show(arguments.out)
    return 0


DATA: dict[str, Callable[[argparse.Namespace], int]] = {
    "check": data_check,
    "show": data_show,
    "labels": data_labels,
    "prepare": data_prepare,
    "pack": data_pack,
    "phantom": data_phantom,
}
