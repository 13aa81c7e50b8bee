"""Ed25519 keys in files of our own: the data side's (its X25519 key for secure sums comes from it), made once, kept at
the site, never sent; and the one that signs the Flower app (``app_signature``)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sslmed_dist.atomic_files import read_private, write_private
from sslmed_dist.federation.secure_keys import derive, public_of


@dataclass(frozen=True)
class SiteKey:
    """``sign`` gives the 64 bytes of a signature; ``public`` is the public half, 64 hexadecimal digits: what the
    server knows the site by. ``exchange`` is the private half of an X25519 key and ``peer`` its public half, 64
    hexadecimal digits: what the other sites of a secure sum know it by. It comes from the same 32 bytes by HKDF, so
    there is one secret to keep."""

    sign: Callable[[bytes], bytes]
    public: str
    exchange: bytes = field(repr=False)
    peer: str


def make(path: Path) -> None:
    """Write a new key of the operating system's generator, readable by this user alone. ``ValueError`` where one is
    there already: what another key signs is a forgery to whoever knows the first."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    write_private(path, Ed25519PrivateKey.generate().private_bytes_raw())


def load(path: Path) -> SiteKey:
    """The key in ``path``. ``ValueError`` where there is none, or others may read it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        raise ValueError(f"{path}: no key; `sslmed site init` makes one")
    content = read_private(path, 33)
    if len(content) != 32:
        raise ValueError(f"{path}: is no key of 32 bytes")
    key = Ed25519PrivateKey.from_private_bytes(content)
    exchange = derive(content, b"", "exchange")
    return SiteKey(key.sign, key.public_key().public_bytes_raw().hex(), exchange, public_of(exchange).hex())


def is_signed(content: bytes, signature: bytes, public: bytes) -> bool:
    """Whether the key whose public half this is has signed the content."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True


def require_of_others(peers: Mapping[str, str], own: SiteKey) -> None:
    """``ValueError`` for a line of ``peers`` with a key of the site itself: nothing that another site seals would open,
    and every secure sum would end there."""
    for name, key in peers.items():
        if key in (own.peer, own.public):
            raise ValueError(f"peers.{name}: is this site's own key; its people read theirs from `sslmed site status`")
