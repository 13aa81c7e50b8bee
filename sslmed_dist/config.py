"""A run's configuration: the frozen ``sections`` read from YAML, one ``base:`` parent, and dotted overrides.

``load`` is strict: an unknown key or a value of the wrong type is a ``ValueError`` that names the file, the dotted
path and what is allowed. A *leaf* (``data``, ``views``, ``method``, ``optim``, ...) is a mapping with a ``name``; it is
checked against the signature of the constructor that it names, when a driver builds it. A *tree* is a configuration or
a part of it as plain data. No torch here, so that ``sslmed --help`` and configuration errors answer at once.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslmed_dist import plain_yaml, registry, sections
from sslmed_dist.addresses import is_address, require_plain
from sslmed_dist.arguments import in_full
from sslmed_dist.federated_section import Federated
from sslmed_dist.home_folder import at_home, require_homes
from sslmed_dist.sections import PATHS, PRETRAINED, Config, Diagnosis, Plan, Ray, Run

__all__ = [
    "PATHS",
    "Config",
    "Diagnosis",
    "Federated",
    "Plan",
    "Ray",
    "Run",
    "dump",
    "essential",
    "fingerprint",
    "from_tree",
    "load",
    "merge",
    "overridden",
    "parse_override",
    "paths",
    "replace",
    "to_tree",
]


@dataclasses.dataclass(frozen=True)
class Freedom:
    """In what a key of the configuration is free.

    ``run``         it may change while the run stays the same run, which is resumed elsewhere or logged otherwise
    ``experiment``  it may differ between the runs of one experiment, as seeds do
    ``resolved``    it may be null in a recipe and filled in from the data; the recipe and its run still agree
    """

    run: bool = False
    experiment: bool = False
    resolved: bool = False


SAME = Freedom(run=True, experiment=True)
SEEDS, LOOK, DATA = Freedom(experiment=True), Freedom(run=True), Freedom(resolved=True)
# The one table of what makes two runs the same. A key that is neither here nor below a key that is here decides the
# results. ``evaluate`` and ``compare`` change no training, but figures that are measured in two ways are not put
# together in one experiment.
FREEDOM: Mapping[str, Freedom] = {
    **dict.fromkeys(("driver", "ray", "run.name", "run.dir", "run.device", "run.threads", "run.tensorboard"), SAME),
    **dict.fromkeys(("run.seed", "run.start_from", "run.continue_from"), SEEDS),
    **dict.fromkeys(("data.root", "data.cache", "data.cache_gib", "data.workers"), SAME),
    **dict.fromkeys(("plan.log_every", "plan.checkpoint_every", "plan.keep_last", "plan.keep_every"), SAME),
    **dict.fromkeys(("plan.loader_threads", "plan.resident", "run.track"), SAME),
    **dict.fromkeys(("federated.runtime", "federated.timeout_s", "federated.quorum"), SAME),
    **dict.fromkeys(("evaluate", "federated.compare", "federated.evaluate", "federated.health", "diagnose"), LOOK),
    **dict.fromkeys(("evaluate.pictures", "evaluate.every"), SAME),
    "method.pretext_classes": DATA,
    **dict.fromkeys(("method.channels", "method.classes", "method.task", "method.names", "views.pixel_mm"), DATA),
    # A run resolves its normalisation (and counts its labels) from its own training data, so from its seed's partition.
    **dict.fromkeys(("views.mean", "views.std", "method.label_counts"), Freedom(experiment=True, resolved=True)),
}


def may(path: str, what: str) -> bool:
    """Whether ``FREEDOM`` gives the key ``path``, or one above it, the freedom ``what`` (run, experiment, resolved)."""
    words = path.split(".")
    key_and_above = (".".join(words[:end]) for end in range(1, len(words) + 1))  # a, a.b, a.b.c
    return any(getattr(FREEDOM[key], what) for key in key_and_above if key in FREEDOM)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read ``path``, merge it over its ``base:`` parent, apply ``section.key=value`` overrides, and check the types."""
    path = Path(path)
    tree = overridden(read(path), overrides)
    run = tree.setdefault("run", {})
    if isinstance(run, dict) and run.get("name") is None:
        run["name"] = path.stem
    return from_tree(tree, str(path))


def read(path: Path, inherited_by: Path | None = None) -> dict[str, Any]:
    """The YAML file as a tree, merged over its parent, which may have no parent of its own."""
    if path.is_dir():
        again = path / "config.yaml"
        run = f"; to go on with the run in it: sslmed train {again}" if again.is_file() else ""
        raise ValueError(f"{path}: is a folder; expected a configuration file{run}")
    if not path.is_file():
        child = f" (the base of {inherited_by})" if inherited_by else ""
        raise ValueError(f"{path}: no such configuration file{child}")
    tree = plain_yaml.read(path)
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected sections {', '.join(section_names())}, got {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if inherited_by is not None:
        raise ValueError(f"{path}: a base may not have a base itself ({base}); one parent keeps a recipe readable")
    if not isinstance(base, str):
        raise ValueError(f"{path}: base: expected the path of one configuration file, got {base!r}")
    return merge(read((path.parent / base), path), tree)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The tree ``below`` with what ``above`` says in its place, key by key. A leaf in ``above`` that names another
    constructor replaces the whole leaf, because the new constructor does not know the arguments of the old one. An
    override of the name alone (``method.loss.name=mio_v3``) keeps the arguments, so that overrides may come in any
    order."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, Mapping) and "name" not in value:
            old = {"name": old}  # a leaf in short, ``loss: simclr``, that gets arguments
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not replaces(key, old, value):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def replaces(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the leaf ``new`` names another constructor than ``old``, so that nothing of ``old`` stays. The name in
    the section ``run`` is no constructor's."""
    return key != "run" and not isinstance(new, NameAlone) and new.get("name") not in (None, old.get("name"))


class NameAlone(dict[str, Any]):
    """The leaf ``{"name": ...}`` of an override that ends in ``.name``: it changes the name and keeps the arguments."""


def overridden(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The tree with the overrides of a command line merged over it, one after another. ``ValueError`` for a key that
    comes twice, or an override that is none."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key}: stands on the command line {keys.count(key)} times; give it once")
    for override in overrides:
        tree = merge(tree, parse_override(override))
    return dict(tree)


def parse_override(text: str) -> dict[str, Any]:
    """``plan.epochs=3`` as a nested tree; the value is YAML. ``ValueError`` where YAML would quietly read another value
    than was written: a text whose line breaks it turns into spaces, and ``~`` alone, which means nothing to it."""
    path, separator, value = text.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise ValueError(f"override {text!r}: expected section.key=value, such as plan.epochs=3")
    try:
        tree: Any = at_home(plain_yaml.parse(value))
    except ValueError as error:
        raise ValueError(f"override {text!r:.200}: the value is not valid YAML: {error}") from None
    if value.strip() == "~":
        raise ValueError(f"override {text!r:.200}: ~ alone is YAML's null; write null, or the path of the home folder")
    if isinstance(tree, str) and "\n" in value.strip():
        raise ValueError(f"override {text!r:.200}: a text of several lines, which YAML would make one")
    for key in reversed(keys):  # from the inside out
        tree = NameAlone(name=tree) if key == "name" else {key: tree}
    return dict(tree)


def paths(tree: Mapping[str, Any], keys: Sequence[str] = PATHS, addresses: bool = False) -> dict[str, str]:
    """The paths in the tree of a configuration, by their dotted keys; with ``addresses`` those of object stores, too.
    The word ``pretrained``, which asks for a download, is neither."""
    values = {dotted: below(tree, dotted.split(".")) for dotted in keys}
    texts = {key: text for key, text in values.items() if isinstance(text, str) and text not in ("", PRETRAINED)}
    return {key: text for key, text in texts.items() if addresses or not is_address(text)}


def below(tree: Any, keys: Sequence[str]) -> Any:
    """The value at ``keys``, one below the other; None where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """The tree that holds ``value`` at a dotted key and nothing else."""
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return dict(value)


def section_names() -> list[str]:
    """Names of the sections a configuration may have."""
    return [field.name for field in dataclasses.fields(Config)]


def from_tree(tree: Mapping[str, Any], where: str) -> Config:
    """A ``Config`` from plain data (of a YAML file, a checkpoint, a message). ``where`` names the source in messages.
    ``ValueError`` names the key and what is allowed."""
    tree = at_home(tree)
    require_plain(paths(tree, addresses=True), where)
    require_homes(paths(tree, (*PATHS, "run.dir", "run.start_from", "run.continue_from")), where)
    return typing.cast(Config, section(Config, tree, where, ""))


def section(kind: type, tree: Any, where: str, path: str) -> Any:
    """Build the frozen section ``kind`` from ``tree`` strictly, and the sections within it. ``path`` is its dotted key,
    "" at the top."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where}: {path or 'file'}: expected a mapping, got {tree!r}")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key not in hints:
            raise ValueError(f"{where}: {dotted}: unknown key; allowed: {', '.join(hints)}")
        # A key of type ``Plan`` or ``Federated | None`` is a section of its own.
        nested = [hint for hint in (hints[key], *typing.get_args(hints[key])) if dataclasses.is_dataclass(hint)]
        if nested and not (value is None and registry.matches(None, hints[key])):
            values[key] = section(typing.cast(type, nested[0]), value, where, dotted)
            continue
        value = in_full(value, hints[key])
        registry.require_match(f"{where}: {dotted}", value, hints[key])
        values[key] = tuple(value) if isinstance(value, list) else value
    for item in dataclasses.fields(kind):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.name not in values:
            raise ValueError(f"{where}: {path + '.' if path else ''}{item.name}: missing; it is required")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def to_tree(config: Config) -> dict[str, Any]:
    """Plain data that ``from_tree`` reads back: what stands in config.yaml, in checkpoints and in messages."""
    return typing.cast(dict[str, Any], plain(dataclasses.asdict(config)))


def plain(value: Any) -> Any:
    """Tuples to lists and mappings to dicts, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def dump(config: Config) -> str:
    """The resolved configuration as YAML."""
    return plain_yaml.write(to_tree(config))


def replace(config: Config, **trees: Any) -> Config:
    """A copy with sections merged over: ``replace(config, plan={"epochs": 3})``."""
    return from_tree(merge(to_tree(config), trees), config.run.name or "config")


def essential(config: Config) -> dict[str, Any]:
    """The tree without what may change within a run: what is left decides the results of a training. Of files of first
    weights only remains whether there is one, because its path differs from machine to machine."""
    tree: dict[str, Any] = without(to_tree(config), "run")
    encoder = tree["method"].get("encoder")
    tree["run"]["start_from"] = tree["run"]["start_from"] is not None
    tree["run"]["continue_from"] = tree["run"]["continue_from"] is not None or None
    sections.drop_added(tree)
    if isinstance(encoder, dict) and "weights" in encoder:
        encoder["weights"] = encoder["weights"] is not None
    return tree


def without(tree: Mapping[str, Any], what: str, above: str = "") -> dict[str, Any]:
    """A configuration's tree without the keys that have the freedom ``what``."""
    remaining = {}
    for key, value in tree.items():
        path = f"{above}.{key}" if above else str(key)
        if not may(path, what):
            remaining[str(key)] = without(value, what, path) if isinstance(value, Mapping) else value
    return remaining


def fingerprint(config: Config) -> str:
    """SHA-256 of all that decides the results of a training run. Paths, worker count, logging and evaluation are left
    out: a run may move to another folder, machine or number of workers and still be the same run. Values of ``plan``
    and ``federated`` that are the default are left out too, so that a key which a later version adds does not make it
    another run."""
    tree = essential(config)
    for name, kind in (("plan", Plan), ("federated", Federated)):
        if tree[name] is not None:
            defaults = plain(dataclasses.asdict(kind()))
            tree[name] = {key: value for key, value in tree[name].items() if value != defaults[key]}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
