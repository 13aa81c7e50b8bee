"""What follows a run's scalars elsewhere. ``metrics.jsonl`` is the truth; a tracker can be filled from it at any start.

A tracker gets scalars, and the configuration without paths. It never gets a picture, the name of a file or a path.
"""

import json
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sslmed_dist import config
from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.config import Config
from sslmed_dist.json_files import read_object
from sslmed_dist.printable import excerpt, say

IDS = "tracking.json"  # in the run folder: what the run is called at each tracker
Row = Mapping[str, Any]


class Follower(Protocol):
    """What ``run_folder.Metrics`` hands its rows to. ``before``: the rows that are there already."""

    def write(self, rows: list[dict[str, Any]], before: Iterable[Row]) -> None:
        """Add rows."""

    def close(self) -> None:
        """End; the next ``write`` starts anew."""


@dataclass(frozen=True)
class Tracked:
    """The run that is followed: its folder and its settings."""

    folder: Path
    settings: Config

    def parameters(self) -> dict[str, str]:
        """The configuration by dotted keys, as text. Whatever may name a file, a folder or a machine is left out: the
        keys of paths, the section ``run`` but for its seed, and each text with a slash, backslash or tilde in it."""
        tree = config.to_tree(self.settings)
        tree["run"] = {"seed": tree["run"]["seed"]}
        hidden = {*config.PATHS, "data.root", "ray.address"}
        return {key: str(value) for key, value in flat(tree) if key not in hidden and not names_place(value)}

    def known_as(self, tracker: str) -> str | None:
        """The run's id at a tracker, of an earlier start; None where it has none."""
        file = self.folder / IDS
        found = read_object(file).get(tracker) if file.is_file() else None
        return found if isinstance(found, str) else None

    def remember(self, tracker: str, identity: str) -> None:
        """Keep the run's id at a tracker for later starts."""
        file = self.folder / IDS
        ids = read_object(file) if file.is_file() else {}
        write_atomically(file, json.dumps({**ids, tracker: identity}, indent=1).encode() + b"\n")


def names_place(value: Any) -> bool:
    """Whether a value of a configuration may name a file, a folder or a machine."""
    text = str(value)
    return any(mark in text for mark in ("/", "\\", "~"))


def flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of the values of a tree; a list is one value."""
    for key, value in tree.items():
        dotted = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            yield from flat(value, dotted)
        else:
            yield dotted, value


def new_identity() -> str:
    """A name for a run that no other run has. It decides nothing that is computed."""
    return uuid.uuid4().hex[:12]


class Tracker(ABC):
    """A follower that another program reads. It is opened by the first row, and then filled with all that is missing.

    An error while the run goes on is said once, and the training goes on without the tracker: the next start fills it.
    """

    name: str

    def __init__(self, run: Tracked) -> None:
        self.run = run
        self.is_open = self.failed = False

    @abstractmethod
    def open(self) -> None:
        """Find the run of an earlier start, or make one."""

    @abstractmethod
    def add(self, rows: Iterable[Row]) -> None:
        """Add those of the rows that are not there yet."""

    @abstractmethod
    def end(self) -> None:
        """Say that this process writes no more."""

    def write(self, rows: list[dict[str, Any]], before: Iterable[Row]) -> None:
        """See ``Follower``."""
        if self.failed:
            return
        try:
            if not self.is_open:
                self.open()
                self.is_open = True
                self.add(before)
            self.add(rows)
        except Exception as error:  # a network, a server, a disk: each library has errors of its own
            self.fail(error)

    def close(self) -> None:
        """See ``Follower``."""
        if self.is_open and not self.failed:
            try:
                self.end()
            except Exception as error:
                self.fail(error)
        self.is_open = False

    def fail(self, error: Exception) -> None:
        """Say that the tracker is left behind, and why."""
        self.failed = True
        reason = excerpt((str(error).strip() or type(error).__name__).splitlines()[0], 160)
        say(f"run.track: {self.name}: {reason}; the run goes on without it, and its next start writes what is missing")


def setting(name: str, value: str) -> None:
    """Set a variable of the environment that a library reads, unless the user has set it."""
    os.environ.setdefault(name, value)
