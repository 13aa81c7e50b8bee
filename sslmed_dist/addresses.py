"""Addresses of object stores, ``s3://bucket/folder``, in place of a path; never with a secret in them."""

import re
from collections.abc import Mapping
from urllib.parse import unquote

# What an address may begin with, and the package that reads it where fsspec alone does not.
STORES: Mapping[str, str | None] = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
STORES = {**STORES, "memory": None, "file": None}
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
LITERAL = ("s3", "gs", "memory")  # stores in which a name is what stands there, and %20 no blank
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


def local_path(address: str) -> str:
    """The path of this machine that a ``file://`` address names (RFC 8089): ``file:///a%20b`` and
    ``file://localhost/a%20b`` are ``/a b``. ``ValueError`` where it names another machine, or no absolute path."""
    host, slash, path = address.removeprefix("file://").partition("/")
    if host not in ("", "localhost") or not slash:
        raise ValueError(f"{address}: file:// begins with a host; allowed: file:///absolute/path, of this machine")
    return unquote(f"/{path}")


def require_named(address: str, where: str) -> None:
    """``ValueError`` beginning with ``where`` for an address that names nothing, a file of another machine, or a name
    with an escape where the store takes names as they are."""
    store, _, place = address.partition("://")
    if not place.strip("/"):
        raise ValueError(f"{where}: {address}: names no bucket, host or folder; allowed: {store}://NAME/folder")
    if store == "file":
        try:
            local_path(address)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    found = ESCAPE.search(place)
    if found is not None and store in LITERAL:
        raise ValueError(
            f"{where}: {address}: holds {found[0]}, as links do; names in {store}:// are taken as they stand; "
            f"allowed: the name itself, with {unquote(found[0])!r} in its place"
        )


def require_plain(paths: Mapping[str, str], where: str) -> None:
    """``ValueError`` naming the key of an address of a store that is not known, that names nothing which can be read
    (``require_named``), or of one that holds a user, a password or a query: configurations are written into run folders
    and checkpoints, so no secret may stand in them."""
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
        require_named(path, f"{where}: {key}")
