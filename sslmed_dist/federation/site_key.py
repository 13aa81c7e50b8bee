"""The data side's own key (Ed25519): made once, kept at the site, never sent."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sslmed_dist.atomic_files import open_itself


@dataclass(frozen=True)
class SiteKey:
    """``sign`` gives the 64 bytes of a signature; ``public`` is the public half, 64 hexadecimal digits: what the
    server knows the site by."""

    sign: Callable[[bytes], bytes]
    public: str


def make(path: Path) -> None:
    """Write a new key of the operating system's generator, readable by this user alone. ``ValueError`` where one is
    there already: answers signed by another key are forgeries to the server."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise ValueError(f"{path}: there is a key already; the server knows this site by it") from None
    with open(handle, "wb") as file:
        file.write(Ed25519PrivateKey.generate().private_bytes_raw())
        file.flush()
        os.fsync(file.fileno())


def load(path: Path) -> SiteKey:
    """The key in ``path``. ``ValueError`` where there is none, or others may read it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        raise ValueError(f"{path}: no key; `sslmed site init` makes one")
    with open(open_itself(path, os.O_RDONLY), "rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise ValueError(f"{path}: other users may read the key; chmod 600, and make a new one if they have")
        content = file.read(33)
    if len(content) != 32:
        raise ValueError(f"{path}: is no key of 32 bytes")
    key = Ed25519PrivateKey.from_private_bytes(content)
    return SiteKey(key.sign, key.public_key().public_bytes_raw().hex())
