"""What travels between server and sites: the one place that names the fields of messages. Nothing here needs Flower.

A record is a plain mapping here (``{"round": 3}``); the Flower apps put it into a record of Flower's. The settings
travel as one base64 value of the run configuration, with all paths left out. Where a site's data lies and where it
keeps its state never travels: a node learns it when it is started (``Node``).
"""

import base64
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from sslmed_dist import __version__
from sslmed_dist.config import PATHS, Config, below, from_tree, to_tree
from sslmed_dist.json_files import Fields
from sslmed_dist.printable import excerpt

Record = dict[str, Any]

ARRAYS, ORDER, METRICS, SITE = "arrays", "config", "metrics", "site"  # the records of a message
SCALAR, MOST_SCALARS = re.compile(r"[a-z][a-z0-9_]{0,39}"), 64  # names and number of scalars that a server reads
HEALTH = tuple(f"health_{name}" for name in ("embedding_std", "effective_rank", "uniformity", "alignment"))
MOST_BYTES = 1 << 10  # of a text in a message
MARK = "sslmed: "  # begins the reasons that our own client app wrote; others may name files of the site
ENDING = "federation.json"  # in the run folder: an ``Ending``
# Environment variables by which a launcher tells simulated sites, which have no node configuration of their own, where
# the data lies and where they keep their state; and the server, which process started it.
DATA_ROOT, SITES_DIR, LAUNCHER = "SSLMED_DATA_ROOT", "SSLMED_SITES_DIR", "SSLMED_LAUNCHER"
DATA_CACHE, DATA_LIST = "SSLMED_DATA_CACHE", "SSLMED_DATA_LIST"


class SiteError(ValueError):
    """A site's mistake whose line may travel to the server: it names no file, path or patient."""


class Unreadable(ValueError):
    """What a message says is not of the closed schema. Of the message its line quotes printable excerpts only."""


def field(record: Mapping[str, Any], name: str, kind: type) -> Any:
    """The value of a record's field, of exactly the type ``kind``: a float is no count, a truth value is no number, a
    text has at most ``MOST_BYTES`` letters. ``Unreadable`` names the field."""
    value = record.get(name)
    if type(value) is not kind or (isinstance(value, str) and len(value) > MOST_BYTES):
        raise Unreadable(f"{name} is no {'text' if kind is str else 'whole number'}")
    return value


def only(record: Mapping[str, Any], names: Collection[str], what: str) -> None:
    """``Unreadable`` unless the record has the fields ``names`` and no others; ``what`` is what it is called."""
    unmatched = sorted(set(record) ^ set(names), key=str)
    if unmatched:
        known = "unknown" if unmatched[0] in record else "missing"
        raise Unreadable(f"{what}: {excerpt(str(unmatched[0]), 40)} is {known} ({len(unmatched)} such)")


def encode(settings: Config) -> str:
    """The settings as the one base64 value that travels to the sites. Paths of this machine are left out: where runs
    are written, and all ``PATHS`` (of data, its cache, the list of a subset, files of first weights), and so are
    trackers. A site's own paths stand in its ``Node``."""
    tree = to_tree(settings)
    for dotted in ("run.dir", "run.start_from", "run.continue_from", "run.track", *PATHS):
        *above, key = dotted.split(".")
        leaf = below(tree, above)
        if isinstance(leaf, dict):
            leaf.pop(key, None)
    return base64.b64encode(json.dumps(tree, sort_keys=True).encode()).decode()


def decode(text: str) -> Config:
    """The settings that ``encode`` wrote. ``SiteError`` for what is no such value, ``ValueError`` for settings of
    another schema."""
    try:
        tree = json.loads(base64.b64decode(text, validate=True))
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise SiteError("the run configuration holds no settings; use `sslmed federate`")
    return from_tree(tree, "run configuration")


@dataclass(frozen=True)
class RunSettings:
    """The run configuration, which every message carries: the settings as ``encode`` writes them, the version of the
    program that wrote them, and the run folder (absolute, on the machine where the ServerApp runs)."""

    config: str
    version: str
    run_dir: str

    @classmethod
    def of(cls, settings: Config, run_dir: Path) -> Self:
        """What this version of the program says of ``settings``."""
        return cls(encode(settings), __version__, str(run_dir))

    def to_record(self) -> dict[str, str]:
        """As Flower's run configuration (its keys stand in pyproject.toml, too)."""
        return {"config": self.config, "version": self.version, "run-dir": self.run_dir}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """What ``to_record`` wrote. ``KeyError`` where a field is missing."""
        return cls(str(record["config"]), str(record["version"]), str(record["run-dir"]))

    @property
    def settings(self) -> Config:
        """The settings, decoded; errors as of ``decode``."""
        return decode(self.config)


@dataclass(frozen=True)
class Hello:
    """What "hello" says of the server: the version of its program."""

    version: str

    def to_record(self) -> Record:
        """As a record of Flower's."""
        return asdict(self)


@dataclass(frozen=True)
class Greeting:
    """The answer to "hello": who the site is, the version of its program, channels of its images, how many samples."""

    site: str
    version: str
    channels: int
    samples: int

    def to_record(self) -> Record:
        """As a record of Flower's."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """What ``to_record`` wrote. ``Unreadable`` for anything else."""
        only(record, ("site", "version", "channels", "samples"), "the greeting")
        texts, counts = ("site", "version"), ("channels", "samples")
        return cls(*(field(record, name, str) for name in texts), *(field(record, name, int) for name in counts))


@dataclass(frozen=True)
class Order:
    """What "train" asks for beside the shared tensors: round ``number`` (0, 1, ...)."""

    number: int

    def to_record(self) -> Record:
        """As a record of Flower's."""
        return {"round": self.number}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """What ``to_record`` wrote. ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
        return cls(int(record["round"]))


@dataclass(frozen=True)
class Account:
    """What a reply to "train" says beside its tensors: the site, its number of samples, the means of its scalars, the
    round that it answers (0, 1, ...) and the digest of the tensors that it started from (``federation.shared``)."""

    site: str
    samples: int
    scalars: Mapping[str, float]
    round: int
    model: str

    def to_metrics(self) -> Record:
        """The record ``METRICS``."""
        return {"num-examples": self.samples, **self.scalars}

    def to_site(self) -> Record:
        """The record ``SITE``."""
        return {"site": self.site, "round": self.round, "model": self.model}

    @classmethod
    def from_records(cls, metrics: Mapping[str, Any], site: Mapping[str, Any]) -> Self:
        """What ``to_metrics`` and ``to_site`` wrote. ``Unreadable`` for anything else: further fields, other types,
        more than ``MOST_SCALARS`` scalars, or one that has no plain name (``SCALAR``) or is not finite."""
        only(site, ("site", "round", "model"), "the record of the site")
        samples, told = field(metrics, "num-examples", int), dict(metrics)
        del told["num-examples"]
        if len(told) > MOST_SCALARS:
            raise Unreadable(f"{len(told)} scalars; allowed: {MOST_SCALARS}")
        for key, value in told.items():
            if not SCALAR.fullmatch(str(key)) or type(value) not in (int, float) or not math.isfinite(value):
                raise Unreadable(f"scalar {excerpt(str(key), 40)} has no plain name or is no finite number")
        scalars = {key: float(value) for key, value in told.items()}
        name, number, model = field(site, "site", str), field(site, "round", int), field(site, "model", str)
        return cls(name, samples, scalars, number, model)


@dataclass(frozen=True)
class Node:
    """What a node learns when it is started, and never by a message: the site's name, where its data lies, where it
    keeps its state, where the data's cache and the list of a subset are (``data.cache``, ``data.subset.file``), and in
    a simulation which share of one dataset it has (number ``partition`` of ``partitions``).

    ``deployed``: it was started with a state folder of its own, as a hospital's node is. Otherwise the folder comes
    from the launcher's environment.
    """

    site: str | None = None
    data_root: str | None = None
    state_dir: str | None = None
    data_cache: str | None = None
    data_list: str | None = None
    partition: int | None = None
    partitions: int | None = None
    deployed: bool = True

    @classmethod
    def read(cls, node_config: Mapping[str, Any], environment: Mapping[str, str]) -> Self:
        """A node's configuration, completed from the launcher's environment."""
        share = node_config.get("partition-id")

        def path(key: str, variable: str) -> str | None:
            return str(node_config.get(key) or environment.get(variable) or "") or None

        return cls(
            site=str(node_config["site"]) if node_config.get("site") else None,
            data_root=path("data-root", DATA_ROOT),
            state_dir=path("state-dir", SITES_DIR),
            data_cache=path("data-cache", DATA_CACHE),
            data_list=path("data-list", DATA_LIST),
            partition=None if share is None else int(share),
            deployed=bool(node_config.get("state-dir")),
        )

    def data(self, leaf: Mapping[str, Any]) -> Record:
        """What this node adds to the section ``data`` of a message: its own paths. ``SiteError`` where the section asks
        for a list and the node has none."""
        added: Record = {"root": self.data_root, "cache": self.data_cache}
        added = {key: path for key, path in added.items() if path is not None}
        subset = leaf.get("subset")
        if isinstance(subset, Mapping) and subset.get("name") == "listed":
            if self.data_list is None:
                raise SiteError("this node's configuration has no data-list, the file of the run's subset")
            added["subset"] = {"file": self.data_list}
        return added

    @property
    def name(self) -> str:
        """What the node is called before its data is read."""
        return self.site or f"partition-{self.partition}"

    def text(self) -> str:
        """The argument of ``--node-config``."""
        texts = {"site": self.site, "state-dir": self.state_dir, "data-root": self.data_root}
        texts |= {"data-cache": self.data_cache, "data-list": self.data_list}
        numbers = {"partition-id": self.partition, "num-partitions": self.partitions}
        # Flower reads TOML: texts stand in quotes, numbers do not.
        assignments = [f'{key}="{value}"' for key, value in texts.items() if value is not None]
        return " ".join(assignments + [f"{key}={value}" for key, value in numbers.items() if value is not None])


@dataclass(frozen=True)
class Ending:
    """``federation.json`` of the run folder: how a federation ended. ``kind`` is the class of the error, ``figures``
    the number of sites that gave any (``federated.evaluate``)."""

    status: Literal["finished", "failed"]
    rounds: int = 0
    reason: str = ""
    kind: str = ""
    figures: int = 0

    def to_tree(self) -> Record:
        """As it stands in the file."""
        if self.status == "finished":
            told = {"figures": self.figures} if self.figures else {}
            return {"status": self.status, "rounds": self.rounds, **told}
        return {"status": self.status, "reason": self.reason, "kind": self.kind}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Self:
        """What ``to_tree`` wrote."""
        return cls(**{key: tree[key] for fields in cls.fields() for key in fields if key in tree})

    @classmethod
    def fields(cls) -> tuple[Fields, Fields]:
        """The fields that the file has, and those that it may have, with their types."""
        return {"status": Literal["finished", "failed"]}, {"rounds": int, "reason": str, "kind": str, "figures": int}
