"""Addresses of object stores, ``s3://bucket/folder``, in place of a path; never with a secret in them."""

import re
from collections.abc import Mapping

# What an address may begin with, and the package that reads it where fsspec alone does not.
STORES: Mapping[str, str | None] = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
STORES = {**STORES, "memory": None, "file": None}
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
SECRET_PARTS = re.compile(r"(://)[^/\s]*@|[?#]\S*")


def is_address(path: str) -> bool:
    """Whether a text is an address and no path of this machine."""
    return ADDRESS.match(path) is not None


def require_place(path: str, where: str) -> str:
    """The text itself. ``ValueError`` beginning with ``where`` for an address: nothing is written to object stores, and
    as a path it would be a folder called ``s3:`` here."""
    if is_address(path):
        raise ValueError(f"{where}: {without_secrets(path)}: is an address; allowed: a path of this machine")
    return path


def without_secrets(text: str) -> str:
    """``text`` with what may be a password (``user:password@``) or a signature (``?...``) of an address taken out."""
    return SECRET_PARTS.sub(lambda found: found[1] or "", text)


def require_plain(paths: Mapping[str, str], where: str) -> None:
    """``ValueError`` naming the key of an address of a store that is not known, or of one that holds a user, a password
    or a query: configurations are written into run folders and checkpoints, so no secret may stand in them."""
    for key, path in paths.items():
        if not is_address(path):
            continue
        store = path.partition("://")[0]
        if store not in STORES:
            raise ValueError(f"{where}: {key}: {store}:// is not read; allowed: a path, {'://, '.join(STORES)}://")
        if without_secrets(path) != path:
            raise ValueError(
                f"{where}: {key}: the address holds a user, a password or a query, which would be written into the run "
                "folder; allowed: the plain address, and credentials where the store's own tools look for them"
            )
