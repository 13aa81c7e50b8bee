"""Which sites may take part: the one list of sites, ``sites.yaml``. It never travels.

    north: {samples: 1200, node_key: AAAAE2VjZHNh..., data_key: 0f3c...}
    south: {samples: 800}

``samples`` is the most that the site may count, as agreed with it; null: what it says in its greeting. ``node_key`` is
the public key of its network side: a node with another key is not this site, whatever it says. ``data_key`` is the
public key of its data side: an answer that it did not sign is not believed, the first one included.

A server (``sslmed server``) has one list for all its runs, and every site in it has both keys. A run by itself
(``sslmed federate``) may have a list in its run folder. Without one the names are those of ``federated.site_names``,
and a count is believed up to what the site said in its greeting.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslmed_dist import plain_yaml
from sslmed_dist.arguments import require_component
from sslmed_dist.atomic_files import open_itself, write_atomically
from sslmed_dist.config import Federated
from sslmed_dist.federation import node_key
from sslmed_dist.registry import MOST

SITES = "sites.yaml"
LISTED = "SSLMED_SITES"  # environment variable: the path of the list, where it does not lie in the run folder
FIELDS = ("samples", "node_key", "data_key")
FORM = "expected {samples: a whole number >= 1, node_key: WORD, data_key: 64 hexadecimal digits}"


@dataclass(frozen=True)
class Registered:
    """One site of the list; None where nothing is said."""

    samples: int | None = None
    node_key: str | None = None
    data_key: str | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and (type(self.samples) is not int or not 1 <= self.samples <= MOST):
            raise ValueError(f"samples: expected a whole number >= 1, got {self.samples!r:.40} (at most 2^53)")
        if self.node_key is not None:
            node_key.parsed(str(self.node_key))
        if self.data_key is not None and not is_key(self.data_key):
            raise ValueError(f"data_key {self.data_key!r:.20}: expected 64 hexadecimal digits, in quotes")


def is_key(value: Any) -> bool:
    """Whether it is a public key of a data side: 64 hexadecimal digits."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def read(path: Path) -> dict[str, Registered]:
    """The sites of a list by name, in its order; none where there is no file. ``ValueError`` names what is wrong."""
    tree = plain_yaml.read(path) if path.exists() else {}
    if not isinstance(tree, Mapping) and tree is not None:
        raise ValueError(f"{path}: expected sites by name, such as 'north: {{samples: 1200}}'")
    found: dict[str, Registered] = {}
    keys: dict[str, str] = {}
    for name, entry in (tree or {}).items():
        require_component(str(path), str(name))
        if not isinstance(entry, Mapping) or not entry or entry.keys() - set(FIELDS):
            raise ValueError(f"{path}: {name}: {FORM}, got {entry!r:.80}")
        try:
            site = Registered(**entry)
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {FORM} ({error})") from None
        for key in filter(None, (site.node_key, site.data_key)):
            if keys.setdefault(key, str(name)) != name:
                raise ValueError(f"{path}: {name} and {keys[key]} have the same key; every site has its own")
        found[str(name)] = site
    return found


@contextmanager
def changing(path: Path) -> Iterator[dict[str, Registered]]:
    """The sites of a list, written as they are when the block ends well. Only one process at a time is in it: two that
    read the same list would each write it without the other's site. ``ValueError`` as of ``read``."""
    handle = open_itself(path.parent / f".{path.name}.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        sites = read(path)
        yield sites
        write(path, sites)
    finally:
        os.close(handle)


def write(path: Path, sites: Mapping[str, Registered]) -> None:
    """Write a list as ``read`` reads it, what is None left out."""
    tree = {
        name: {field: getattr(site, field) for field in FIELDS if getattr(site, field) is not None}
        for name, site in sites.items()
    }
    write_atomically(path, plain_yaml.write(tree).encode())


def list_of(folder: Path) -> Path:
    """Where the list of the run in ``folder`` is."""
    return Path(os.environ.get(LISTED) or folder / SITES)


def registered(folder: Path, fed: Federated) -> dict[str, Registered] | None:
    """By the name of a site that may take part in the run in ``folder``, what is registered of it. None where nothing
    says which sites may take part. ``ValueError`` names what is wrong in the list."""
    path = list_of(folder)
    if not path.exists():
        return None if fed.site_names is None else dict.fromkeys(fed.site_names, Registered())
    found = read(path)
    if not found:
        raise ValueError(f"{path}: names no site")
    strangers = sorted(set(fed.site_names or ()) - found.keys())
    if strangers:
        raise ValueError(f"{path}: has no {', '.join(strangers)} of federated.site_names")
    return found if fed.site_names is None else {name: found[name] for name in fed.site_names}
